"""A model's scores on windows of text, added up by document: sums first, divided once.

Everything is added up on the host, in float64 and in order, so that two evaluations are identical on a GPU too.
"""

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.build import Machine
from colakit.data.loader import Batch
from colakit.errors import RunError
from colakit.evaluate.mode import evaluation_mode
from colakit.evaluate.windows import ScoredBatch, Share, Windows, batch_of
from colakit.loss import ScoresOfLogits, TokenScores, scores_of_logits, token_scores
from colakit.model.documents import Documents
from colakit.model.lm import LM
from colakit.parallel.world import ALONE, World
from colakit.parallel.wrap import Objective
from colakit.records.evaluation import Estimate, Scores
from colakit.units import NATS_PER_BIT

log = logging.getLogger(__name__)

_NORMAL_95 = 1.959964
"""The normal distribution has 95 % of its mass within so many standard deviations."""

_LARGEST_EXPONENT = 700.0
"""Beyond e^709 a float overflows."""


class Scorer(Protocol):
    """A model that scores tokens, wherever it comes from."""

    def __call__(self, batch: Batch) -> TokenScores:
        """The scores of the batch's targets, [B·T] each, on any device; no gradients."""


Factors = Callable[[torch.Tensor, Documents | None], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


class LMScorer:
    """colakit's own model. `factors` gives what its `logit_factors` gives, where it is not asked itself."""

    def __init__(self, model: LM, machine: Machine, factors: Factors | None = None) -> None:
        self._model = model
        self._factors = factors or Objective(model).factors
        self._machine = machine
        self._of_logits = _compiled_scores() if machine.compiles and machine.device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TokenScores:
        """As `Scorer`; without dropout."""
        device = self._machine.device
        starts = batch.document_starts
        documents = None if starts is None else Documents.of(starts).to(device)
        targets = batch.targets.to(device)
        with evaluation_mode(self._model), self._machine.autocast():
            factors = self._factors(batch.tokens.to(device), documents)
            if self._of_logits is not None:
                try:
                    return token_scores(*factors, targets, self._of_logits)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self._of_logits = None
                    log.warning("torch.compile fails, so scores take longer; see `colakit doctor`. It says: %s", error)
            return token_scores(*factors, targets)


@cache
def _compiled_scores() -> ScoresOfLogits | None:
    """On a GPU single operations would read the logits, the largest of what there is, a dozen times."""
    try:
        return torch.compile(scores_of_logits, dynamic=True)
    except (RuntimeError, ImportError):  # there is no compiler for this Python
        return None


class Tally:
    """Sums of every document, [N] each: a row for what is scored."""

    def __init__(self, n_documents: int, token_bytes: Sequence[bytes] | None) -> None:
        self.nll = np.zeros(n_documents)
        self.top1, self.top5, self.tokens, self.text_bytes = (np.zeros(n_documents, dtype=np.int64) for _ in range(4))
        self._lengths = None if token_bytes is None else np.array([len(b) for b in token_bytes], dtype=np.int64)

    def add(self, part: ScoredBatch, scores: TokenScores) -> None:
        """Add what is scored of `part`; waits for the scores."""
        real = part.documents.ravel() >= 0
        of, rank = part.documents.ravel()[real], scores.rank.cpu().numpy()[real]
        np.add.at(self.nll, of, scores.nll.cpu().numpy()[real].astype(np.float64))
        np.add.at(self.top1, of, rank < 1)
        np.add.at(self.top5, of, rank < 5)
        np.add.at(self.tokens, of, 1)
        if self._lengths is not None:
            np.add.at(self.text_bytes, of, self._lengths[part.batch.targets.numpy().ravel()[real]])

    def share(self, world: World) -> None:
        """Add what all processes have added, everywhere."""
        for sums in (self.nll, self.top1, self.top5, self.tokens, self.text_bytes):
            world.sum_(torch.from_numpy(sums))

    def scores(self, part: slice = slice(None)) -> Scores:
        """Of the documents in `part`."""
        is_scored = self.tokens[part] > 0
        sums = (self.nll, self.top1, self.top5, self.tokens, self.text_bytes)
        nll, top1, top5, tokens, text_bytes = (x[part][is_scored] for x in sums)
        n_bytes = int(text_bytes.sum())
        loss = estimate(nll, tokens)
        return Scores(
            loss=loss,
            perplexity=Estimate(*(None if x is None else _exp(x) for x in (loss.value, loss.low, loss.high))),  # type: ignore[arg-type]  # the value is a number
            bits_per_byte=estimate(nll / NATS_PER_BIT, text_bytes) if n_bytes else None,
            top1=_share(estimate(top1, tokens)),
            top5=_share(estimate(top5, tokens)),
            tokens=int(tokens.sum()),
            text_bytes=n_bytes if self._lengths is not None else None,
            documents=int(is_scored.sum()),
        )


def estimate(of: NDArray[Any], by: NDArray[Any]) -> Estimate:
    """The sum of `of` over that of `by`, [N] each, one entry a document, and its 95 % interval over documents.

    A document's tokens are not independent of each other: documents are what is drawn. The variance of a ratio of two
    sums is, to first order, n/(n−1)·Σ(of − ratio·by)² / (Σ by)² (Cochran, Sampling Techniques, 1977, §6.4).
    """
    n, total = len(by), float(by.sum())
    ratio = float(of.sum()) / total
    if n < 2:
        return Estimate(ratio, None, None)
    spread = _NORMAL_95 * math.sqrt(n / (n - 1) * float(np.square(of - ratio * by).sum())) / total
    return Estimate(ratio, ratio - spread, ratio + spread)


def _share(of: Estimate) -> Estimate:
    """Within 0 and 1, as a share is."""
    if of.low is None or of.high is None:
        return of
    return Estimate(of.value, max(0.0, of.low), min(1.0, of.high))


def _exp(x: float) -> float:
    return math.exp(min(x, _LARGEST_EXPONENT))


class Progress(Protocol):
    """Told how many windows of how many are scored."""

    def __call__(self, done: int, total: int, /) -> None: ...


def score_windows(
    scorer: Scorer,
    windows: Windows,
    tally: Tally,
    *,
    batch_size: int,
    isolate_eot: int | None = None,
    watch: Progress = lambda _done, _total: None,
    world: World = ALONE,
) -> int:
    """Add the scores of all `windows` to `tally`; → the windows that were scored at once.

    Of several processes each scores its share, and all get all scores; they make equally many passes, in which FSDP2's
    all take part. Where a batch does not fit in the GPU's memory, it is halved and tried again, by a process that is
    alone. Raises RunError where it does not fit otherwise.
    """
    own = windows if world.size == 1 else Share(windows, world)
    start, before = 0, None
    while start < len(own):
        part = batch_of([own[i] for i in range(start, min(start + batch_size, len(own)))], isolate_eot)
        try:
            scores = scorer(part.batch)
        except torch.OutOfMemoryError as error:
            if batch_size == 1 or world.size > 1:
                n, t = part.batch.tokens.shape
                raise RunError(
                    f"Out of memory with {'one window' if n == 1 else f'{n} windows'} of {t} tokens."
                ) from error
            batch_size //= 2
            continue
        # A batch is waited for when the next one is on its way.
        if before is not None:
            tally.add(*before)
        before = part, scores
        start += len(part.documents)
        watch(start, len(own))
    if before is not None:
        tally.add(*before)
    tally.share(world)
    return batch_size
