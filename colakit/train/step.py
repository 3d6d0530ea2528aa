"""One optimizer step: accumulation, loss over the real tokens, clipping, the finite check, optimizer and schedule.

`bench` times this very function, so what is benchmarked is what trains.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from colakit.build import Machine, build_optimizer, build_replica
from colakit.checkpoint import rng
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.errors import RunError
from colakit.host import keep_freed_memory
from colakit.loss import IGNORE
from colakit.model.documents import Documents
from colakit.model.lm import LM
from colakit.optim.clock import Clock
from colakit.optim.combined import CombinedOptimizer
from colakit.optim.schedule import learning_rate
from colakit.parallel.world import ALONE, World
from colakit.parallel.wrap import Replica
from colakit.train.guard import Guard, Reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What one step saw. The loss is that of the weights before the update, in nats per real token."""

    loss: float
    accuracy: float
    grad_norm: float
    """Global norm before clipping."""
    lr: float
    tokens: int
    skipped: Reason | None
    """Why the update was left out."""


@dataclass
class TrainStep:
    """Calling it makes one optimizer step. `lr_at` maps a step, counted from 0, to its learning rate."""

    model: LM
    optimizer: CombinedOptimizer
    machine: Machine
    lr_at: Callable[[int], float]
    grad_clip: float
    replica: Replica
    world: World = ALONE
    guard: Guard = field(default_factory=Guard)
    is_updating: bool = False
    """Whether an update was begun and has not ended: some weights are those of the next step."""
    forward_clock: Clock = field(init=False)
    """Of each micro-batch's forward pass, its loss included."""
    backward_clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.forward_clock, self.backward_clock = Clock(self.machine.device), Clock(self.machine.device)

    @classmethod
    def of(cls, config: RunConfig, model: LM, machine: Machine, world: World = ALONE) -> "TrainStep":
        """The step of a run: with its optimizer, schedule, clipping and guard, and who else takes part."""
        optim, train = config.optim, config.train
        lr_at = partial(
            learning_rate,
            peak=optim.lr,
            warmup_steps=optim.warmup_steps,
            max_steps=train.max_steps,
            min_frac=optim.min_lr_frac,
        )
        guard = Guard(train.skip_spikes)
        if machine.device.type == "cpu":
            keep_freed_memory()
        if machine.compiles:
            try:
                model.compile_blocks()
                log.info("The blocks are compiled in the first step, which takes longer for it.")
            except (RuntimeError, ImportError) as error:  # there is no compiler for this Python
                _warn_of_failure(error)
        replica = build_replica(model, config, machine, world)
        optimizer = build_optimizer(model, optim, replica, world)
        return cls(model, optimizer, machine, lr_at, optim.grad_clip, replica, world, guard)

    def __call__(self, step: int, micro_batches: Sequence[Batch]) -> StepResult:
        """Accumulate the gradients of `micro_batches` and update.

        Each micro-batch's summed loss is divided by the real tokens of the whole step, of all processes, so that
        splitting a batch changes nothing. Where the guard says so the update is left out: weights and optimizer state
        stay.
        """
        own = sum(int((b.targets != IGNORE).sum()) for b in micro_batches)  # on the host, before any transfer
        (tokens,) = self.world.totals(own)
        nll, correct = self.accumulate(micro_batches, tokens)
        self.replica.finish()
        self.optimizer.attach()
        norm = self.optimizer.gradient_norm()
        # The step waits for the device here, once, to read all three.
        sums = self.world.sum_(torch.stack([nll, correct.to(nll.dtype)]))
        loss, right, grad_norm = torch.stack([*sums, norm]).tolist()
        lr = self.lr_at(step)
        reason = self.guard.judge(loss / tokens, grad_norm)
        if reason is None:
            self.is_updating = True
            if grad_norm > self.grad_clip:
                self.optimizer.clip(norm, to=self.grad_clip)
            self.optimizer.set_lr(lr)
            self.optimizer.step()
            self.is_updating = False
        self.optimizer.zero_grad()
        return StepResult(loss / tokens, right / tokens, grad_norm, lr, tokens, skipped=reason)

    def accumulate(
        self, micro_batches: Sequence[Batch], tokens: int, *, shares: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the gradients of the summed loss over `tokens`; that sum, and how many targets were foreseen, here.

        Without `shares` they stay here too, where the strategy allows for it. Where torch.compile fails, it is all done
        again without, from here on.
        """
        if not self.model.is_compiled:
            return self._accumulate(micro_batches, tokens, shares=shares)
        drawn = rng.torch_states()
        try:
            return self._accumulate(micro_batches, tokens, shares=shares)
        except torch._dynamo.exc.TorchDynamoException as error:
            if self.world.size > 1:  # which are in the midst of what they do together
                advice = "See `colakit doctor`, or add --set train.compile=false."
                raise self.world.told(
                    RunError(f"torch.compile fails: {_cause(error).rstrip('.')}. {advice}")
                ) from error
            _warn_of_failure(error)
        self.model.run_eagerly()
        self.optimizer.zero_grad()
        rng.put_back(drawn)
        return self._accumulate(micro_batches, tokens, shares=shares)

    def _accumulate(
        self, micro_batches: Sequence[Batch], tokens: int, *, shares: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.machine.device
        nll = torch.zeros((), device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for i, batch in enumerate(micro_batches, 1):
            starts = batch.document_starts
            documents = None if starts is None else Documents.of(starts).to(device)
            with self.replica.micro_step(is_last=shares and i == len(micro_batches)):
                with self.forward_clock.measure(), self.machine.autocast():
                    sums = self.replica.run(batch.tokens.to(device), batch.targets.to(device), documents)
                with self.backward_clock.measure():
                    (sums.nll / tokens).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nll += sums.nll.detach()
            correct += sums.correct
        return nll, correct


def _warn_of_failure(error: Exception) -> None:
    told = _cause(error)
    log.warning("torch.compile fails, so the blocks are not compiled; see `colakit doctor`. It says: %s", told)


def _cause(error: Exception) -> str:
    """The first line of what torch.compile says, without what it says of itself."""
    cause = getattr(error, "inner_exception", error)
    return next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on either device."""
    # Beyond CUDA's caching allocator it is a plain RuntimeError, which only its text tells from others.
    on_cpu = ("can't allocate memory", "can't start new thread", "std::bad_alloc")
    told = (*on_cpu, "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in told)
