"""Writes checkpoints while training goes on: what must be taken at once is taken, the rest is done in a thread."""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from colakit.checkpoint.folders import Checkpoints, step_of
from colakit.checkpoint.model_file import MODEL_FILE, OPTIMIZER_FILE, model_tensors, optimizer_tensors, save_tensors
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.records.base import to_json

log = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one run. Besides the last `keep_last`, those of every `keep_every` steps and the best stay."""

    def __init__(self, checkpoints: Checkpoints, *, keep_last: int, keep_every: int | None) -> None:
        self._checkpoints = checkpoints
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="colakit-saver")
        self._pending: Future[None] | None = None

    def save(
        self,
        step: int,
        model: LM,
        optimizer: CombinedOptimizer,
        documents: Mapping[str, dict[str, Any]],  # Any: JSON values
        best_step: int | None,
    ) -> None:
        """Take the checkpoint of `step`; model and optimizer may change once this returns.

        On a GPU they are copied to the host, and written meanwhile. Elsewhere they are written at once; the disk's
        confirmation, the hashes and the removal of older checkpoints follow meanwhile. Raises OSError where this one or
        the one before cannot be written.
        """
        self.wait()
        aside = self._checkpoints.begin(step)
        tensors = {MODEL_FILE: model_tensors(model), OPTIMIZER_FILE: optimizer_tensors(optimizer)}
        if next(model.parameters()).device.type == "cpu":
            self._write(aside, tensors, documents)
            self._pending = self._pool.submit(self._publish, aside, best_step)
        else:
            self._pending = self._pool.submit(self._write_and_publish, aside, tensors, documents, best_step)

    def wait(self) -> None:
        """Until the last checkpoint is on disk. Raises OSError where it cannot be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait, and end the thread; a checkpoint that cannot be written is told in the log."""
        self._pool.shutdown()
        pending, self._pending = self._pending, None
        if pending is not None and (error := pending.exception()) is not None:
            log.warning("The last checkpoint cannot be written: %s.", error)

    def _write_and_publish(
        self,
        aside: Path,
        tensors: Mapping[str, Mapping[str, Tensor]],
        documents: Mapping[str, dict[str, Any]],
        best_step: int | None,
    ) -> None:
        self._write(aside, tensors, documents)
        self._publish(aside, best_step)

    def _write(
        self, aside: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, dict[str, Any]]
    ) -> None:
        try:
            for name, each in tensors.items():
                save_tensors(each, aside / name)
            for name, content in documents.items():
                (aside / name).write_text(to_json(content) + "\n", encoding="utf-8")
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def _publish(self, aside: Path, best_step: int | None) -> None:
        try:
            self._checkpoints.publish(aside)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        steps = [step_of(path) or 0 for path in self._checkpoints.all()]
        every = self._keep_every
        self._checkpoints.remove_all_but(
            {*steps[-self._keep_last :], best_step or 0, *(s for s in steps if every is not None and s % every == 0)}
        )
