"""Checkpoints of a run that several processes share: the main one writes what it has whole, all what is divided."""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from colakit.checkpoint.folders import MODEL_FOLDER, OPTIMIZER_FOLDER, Checkpoints
from colakit.checkpoint.model_file import MODEL_FILE, OPTIMIZER_FILE, model_tensors, optimizer_tensors
from colakit.checkpoint.sharded import Parts, model_parts, optimizer_parts, save_parts
from colakit.errors import RunError, disk_fault
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.parallel.shards import is_sharded
from colakit.parallel.world import World
from colakit.train.saver import Saver
from colakit.train.start import check_seen


class SharedSaver(Saver):
    """As `Saver`; every process calls `save`, at the same steps."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        keep_last: int,
        keep_every: int | None,
        world: World,
        advice: Callable[[], str] = str,
    ) -> None:
        super().__init__(checkpoints, keep_last=keep_last, keep_every=keep_every)
        self._world = world
        self._advice = advice

    def save(
        self,
        step: int,
        model: LM,
        optimizer: CombinedOptimizer,
        documents: Mapping[str, dict[str, Any]],  # Any: JSON values
        best_step: int | None,
    ) -> None:
        """Take the checkpoint of `step`, the disk's confirmation and hashes meanwhile; weights may change behind it.

        Raises RunError in every process where one cannot write.
        """
        try:
            self._save_parts_and_whole(step, model, optimizer, documents)
        except BaseException:
            if self._world.is_main:  # nothing half-written takes room
                shutil.rmtree(self._checkpoints.aside_of(step), ignore_errors=True)
            raise
        if self._world.is_main:
            self._pending = self._pool.submit(self._publish, self._checkpoints.aside_of(step), best_step)

    def _save_parts_and_whole(
        self,
        step: int,
        model: LM,
        optimizer: CombinedOptimizer,
        documents: Mapping[str, dict[str, Any]],
    ) -> None:
        aside = self._checkpoints.aside_of(step)
        # What the main process does alone is waited for, however long it takes.
        self._told(self._world.main_first, self._begin, step)
        self._told(self._world.together, check_seen, aside)
        divided: dict[str, Parts] = {}
        if any(is_sharded(p) for p in model.parameters()):
            divided[MODEL_FOLDER] = model_parts(model, self._world)
        if optimizer.division.world.size > 1:
            divided[OPTIMIZER_FOLDER] = optimizer_parts(optimizer)
        for name, parts in divided.items():
            self._told(self._world.together, save_parts, parts, aside / name, self._world)
        self._told(self._world.main_first, self._write_whole, step, model, optimizer, documents, divided)

    def _begin(self, step: int) -> None:
        if self._world.is_main:
            self.wait()
            self._checkpoints.begin(step)

    def _write_whole(
        self,
        step: int,
        model: LM,
        optimizer: CombinedOptimizer,
        documents: Mapping[str, dict[str, Any]],
        divided: Mapping[str, Parts],
    ) -> None:
        if not self._world.is_main:
            return
        tensors = {}
        if MODEL_FOLDER not in divided:
            tensors[MODEL_FILE] = model_tensors(model)
        if OPTIMIZER_FOLDER not in divided:
            tensors[OPTIMIZER_FILE] = optimizer_tensors(optimizer)
        self._write(self._checkpoints.aside_of(step), tensors, documents)

    def _told(self, how: Callable[[Callable[[], None]], None], work: Callable[..., None], *arguments: Any) -> None:
        """Have every process do it, and raise in all of them where it fails in one."""

        def told() -> None:
            try:
                work(*arguments)
            except OSError as error:
                raise RunError(f"{disk_fault(self._checkpoints.folder, error)} {self._advice()}") from error

        how(told)
