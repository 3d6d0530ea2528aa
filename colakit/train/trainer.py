"""A training run from a resolved configuration to its summary. `Trainer.fit` reads like a table of contents."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from colakit.build import (
    Machine,
    build_loader,
    build_model,
    build_schedule,
    deterministic,
)
from colakit.checkpoint import rng
from colakit.checkpoint.folders import Checkpoints
from colakit.checkpoint.model_file import copy_model, load_model, load_optimizer
from colakit.config.schema import RunConfig
from colakit.data.ahead import ahead
from colakit.data.cache import write_whole
from colakit.data.loader import Batch, TrainLoader
from colakit.data.prepare import prepare
from colakit.data.tokenise import Watch, unwatched
from colakit.errors import RunError
from colakit.evaluate.text_bytes import byte_lengths, count_bytes
from colakit.host import describe_machine
from colakit.model.lm import LM
from colakit.parallel.environment import SOLE, Place
from colakit.parallel.world import ALONE, World
from colakit.records.run import EvalRecord, RunSummary, StepRecord
from colakit.train.diagnosis import first_bad_layer, first_bad_weight
from colakit.train.faults import describe_fault, how_to_go_on, is_expected
from colakit.train.held_out import HeldOut
from colakit.train.memory import check_budget, held_bytes, memory_budget
from colakit.train.metrics import last_records
from colakit.train.moved import check_same_data
from colakit.train.resume import Resumption, reopen
from colakit.train.runs import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    STATE_FILE,
    TOTALS_FILE,
    RunFolder,
    write_json,
)
from colakit.train.saver import Saver
from colakit.train.signals import StopFlag, stop_on_signal
from colakit.train.sinks import Sink, SinkSet
from colakit.train.start import check_same_everywhere, check_seen, check_start, new_folder
from colakit.train.state import describe_state, restore_rng, warn_of_differences
from colakit.train.step import StepResult, TrainStep
from colakit.train.summary import shared_costs, summarise
from colakit.train.totals import Totals
from colakit.units import NATS_PER_BIT

log = logging.getLogger(__name__)

_STEPS_AHEAD = 2


class Trainer:
    """One run, or the rest of one. Construction checks and prepares everything that can fail by the user's mistake;
    only then is the folder made. `sinks` builds the run's sinks once the folder exists.

    Of several processes each has a trainer, and they go through the run together; the main one alone has sinks and
    writes, but for what is divided among them.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        out: Path | None = None,
        sinks: Callable[[RunFolder], Sink],
        watch: Watch = unwatched,
        resume: Resumption | None = None,
        world: World = ALONE,
        place: Place = SOLE,
    ) -> None:
        """`out` is the folder of a new run, `resume` what an old one goes on from.

        Raises RunError where another process has the folder, DataError where the data is not what the old one read.
        """
        self.config = config
        self.world = world
        self._place = place
        with world.watched(lambda: "No step was made."), ExitStack() as on_failure:
            if resume is not None:
                on_failure.callback(resume.folder.lock.release)
            self.machine: Machine = world.together(lambda: check_start(config, out, resume, world, place))
            model = config.model
            self.data = world.main_first(
                lambda: prepare(
                    config.data,
                    seq_len=model.seq_len,
                    vocab_size=model.vocab_size,
                    watch=watch if world.is_main else unwatched,
                )
            )
            check_same_everywhere(self.data, world)
            self.byte_lengths = byte_lengths(self.data.tokenizer.token_bytes)
            self.model: LM = build_model(config, self.machine)
            self.step = TrainStep.of(config, self.model, self.machine, world)
            self.held_out = HeldOut(self.step.replica, self.data, self.machine, config.train, world)
            self.loader: TrainLoader = build_loader(config, self.data, world)
            self.schedule = build_schedule(config)
            self.totals = Totals()
            world.together(lambda: check_budget(config.train.memory_gib))
            self._held = held_bytes()
            self._environment = describe_machine().to_dict()
            self._resumed: dict[str, Any] | None = resume.state if resume is not None else None  # Any: JSON values
            self._before: tuple[list[torch.Tensor], dict[str, Any]] | None = None  # Any: JSON values
            """Of generators and guard, while a step is made: where that fails, the run stands there."""
            self._is_recording = False
            if resume is None:
                self.folder, self.sinks = new_folder(config, out, self.data, sinks, world)
            else:
                self.folder, self.sinks = resume.folder, self._take_up(resume, sinks)
            on_failure.pop_all()
        self._first = self._saved = self.totals.steps
        self._trained_before_s = self.totals.train_s
        make: Callable[..., Saver] = Saver
        if world.size > 1:
            from colakit.train.shared_saver import SharedSaver  # which loads torch.distributed.checkpoint

            make = partial(SharedSaver, world=world, advice=self._how_to_go_on)
        self._saver = make(
            Checkpoints(self.folder.checkpoints), keep_last=config.train.keep_last, keep_every=config.train.keep_every
        )

    def fit(self) -> RunSummary | None:
        """Train to max_steps, or until a signal; evaluate, save and summarise. Only the main process has a summary."""
        self._started = self._saved_at = time.perf_counter()
        try:
            # The signals stay caught to the end: one that comes late must not cost what was trained.
            shared = self.world.size > 1
            with stop_on_signal(is_shared=shared) as stop, self.world.watched(self._where), self._saved_on_failure():
                if self.world.is_main:
                    self.data.tokenizer.save(self.folder.tokenizer)
                with deterministic(self.config.train.deterministic), memory_budget(self.config.train.memory_gib):
                    interrupted = self._loop(stop)
                self._save()
                seen = self.totals.evaluation
                is_evaluated = seen is not None and seen.step == self.totals.steps
                self.world.main_first(self._leave_model)  # which may take its time
                if not is_evaluated:
                    self._evaluate()
                costs = shared_costs(self.step.optimizer)
                if not self.world.is_main:
                    return None
                summary = summarise(
                    self.config,
                    self.folder,
                    self.totals,
                    step=self.step,
                    held_out=self.held_out,
                    loader=self.loader,
                    costs=costs,
                    fingerprint=self.data.fingerprint,
                    train_s=self._train_s(),
                    interrupted=interrupted,
                )
                write_json(self.folder.summary, summary.to_dict())
        except KeyboardInterrupt:
            self._saver.close()
            log.warning("Stopped at once. %s", self._how_to_go_on())
            raise
        finally:
            self._saver.close()
            self._close_sinks()
            self.folder.lock.release()
        return summary

    def _where(self) -> str:
        """How far the run is, for who cannot go on."""
        return f"This was in step {self.totals.steps + 1}. {self._how_to_go_on()}"

    def _how_to_go_on(self) -> str:
        """From the newest checkpoint, which may be on its way to the disk."""
        try:
            self._saver.wait()
        except (OSError, MemoryError, RuntimeError) as error:
            log.warning("Step %d is not saved: %s.", self.totals.steps, error)
        return how_to_go_on(self.folder, self.world.size, self._place.machines)

    def _close_sinks(self) -> None:
        try:
            self.sinks.close()
        except OSError as error:  # what matters more is saved by now, or has failed before
            log.warning("The last records in %s cannot be written: %s.", self.folder.root, error.strerror or error)

    def _take_up(self, resume: Resumption, sinks: Callable[[RunFolder], Sink]) -> Sink:
        """Put everything back where it was after the checkpoint's step, what is in the run's folder too."""
        state = resume.state
        self.world.together(lambda: check_seen(resume.checkpoint))
        fingerprint = state["data"]["fingerprint"]
        self.world.together(lambda: check_same_data(resume.folder.root, resume.folder.data, fingerprint, self.data))
        self.world.together(lambda: load_model(self.model, resume.checkpoint, self.world))
        self.world.together(lambda: load_optimizer(self.step.optimizer, resume.checkpoint))
        self.step.guard.load_state_dict(state["guard"])
        self.totals = resume.totals
        warn_of_differences(state, self._state())
        taken = self.world.together(lambda: self._reopen(resume, sinks))
        for record in last_records(resume.folder.metrics):
            if isinstance(record, EvalRecord) and record.step == self.totals.steps:
                self.totals.note(record)
        log.info("Going on after step %d of %d.", self.totals.steps, self.config.train.max_steps)
        return taken

    def _reopen(self, resume: Resumption, sinks: Callable[[RunFolder], Sink]) -> Sink:
        if not self.world.is_main:
            return SinkSet([])
        try:
            reopen(resume)
            return sinks(resume.folder)
        except OSError as error:
            raise RunError(describe_fault(error, resume.folder, self.config, self.totals.steps, self._held)) from error

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Where memory or disk runs out: keep what was trained, and say what to do. Raises RunError."""
        try:
            yield
        except (OSError, MemoryError, RuntimeError) as error:
            if not is_expected(error):
                raise
            step = self.totals.steps + 1
            told = describe_fault(error, self.folder, self.config, step, self._held, self.world.size)
            raise self.world.told(RunError(f"{told} {self._rescue()}")) from error

    def _rescue(self) -> str:
        """Save what there is, and say where it is. A process that others depend on cannot save without them."""
        if self.world.size > 1:
            return self._how_to_go_on()
        if not self.totals.steps:
            self._saver.close()
            self.folder.discard()
            return "Nothing was trained, and no folder is left."
        try:
            # In the midst of an update the weights are those of no step; a step without its record would have none.
            if not (self.step.is_updating or self._is_recording):
                if self._before is not None:
                    states, guard = self._before
                    rng.put_back(states)
                    self.step.guard.load_state_dict(guard)
                self._save()
        except (OSError, MemoryError, RuntimeError, RunError) as error:
            log.warning("Step %d is not saved: %s.", self.totals.steps, error)
        return self._how_to_go_on()

    def _loop(self, stop: StopFlag) -> bool:
        """Train; True where a signal ended it early."""
        # Dropout draws from torch's global generator.
        restore_rng(self._resumed, self.config, self.world)
        self.model.train()
        train = self.config.train
        micro = train.micro_batch_size_of(self.world.size)
        with closing(ahead(self.loader.steps(self._first, train.max_steps, micro), _STEPS_AHEAD)) as steps:
            if self._first < train.max_steps and self._is_evaluation_due():
                self._evaluate()
            for step in range(self._first, train.max_steps):
                self._announce_stage(step)
                before = rng.torch_states()
                self._before = before, self.step.guard.state_dict()
                started = time.perf_counter()
                batches = next(steps)
                loaded = time.perf_counter()
                result = self.step(step, batches)
                ms = 1000.0 * (time.perf_counter() - started)
                reason = self._reason(result, batches, before)
                data_ms = 1000.0 * (loaded - started)
                self._record(step + 1, result, batches, step_ms=ms, data_ms=data_ms, reason=reason)
                self._before = None
                if reason is not None:
                    self._stop_where_hopeless(reason)
                last = step + 1 == train.max_steps
                is_stopped, is_time = self.world.totals(stop.is_set, self.world.is_main and self._is_time_to_save())
                if is_stopped:
                    stop.agreed()
                if is_stopped or last:
                    break
                # Where an update was left out, what the weights have come to may be what is wrong.
                is_due = self._is_evaluation_due()
                if reason is None and (is_due or is_time or self._is_checkpoint_due()):
                    self._save()
                    if is_due:
                        self._evaluate()
                    if self.world.any(stop.is_set):
                        stop.agreed()
                        break
        return self.totals.steps < train.max_steps

    def _is_evaluation_due(self) -> bool:
        """At every `eval_every`-th step, or as soon after it as an update is made."""
        every, seen = self.config.train.eval_every, self.totals.evaluation
        last_due = self.totals.steps // every * every
        return last_due > (seen.step if seen is not None else 0)

    def _check_weights(self) -> None:
        """Raise RunError where a weight is not finite: no update mends it, and no checkpoint shall hold it."""
        if (name := first_bad_weight(self.step)) is not None:
            self._saver.wait()
            message = (
                f"Step {self.totals.steps}: the weight {name} is not finite, which no update mends. "
                f"{self._how_to_go_on()} Where it happens again, start anew with a lower optim.lr."
            )
            raise self.world.told(RunError(message))

    def _is_checkpoint_due(self) -> bool:
        every = self.config.train.checkpoint_every
        return every is not None and self.totals.steps % every == 0

    def _is_time_to_save(self) -> bool:
        minutes, most = (time.perf_counter() - self._saved_at) / 60.0, self.config.train.checkpoint_every_min
        return most is not None and minutes >= most

    def _save(self) -> None:
        """Take a checkpoint of this step, unless there is one. Raises OSError, and RunError for weights not finite."""
        if self._saved == self.totals.steps:
            return
        self._check_weights()
        self.sinks.flush()
        self.totals.train_s = self._train_s()
        documents = {
            STATE_FILE: self._state(),
            TOTALS_FILE: self.totals.to_dict(),
            CONFIG_FILE: self.config.model_dump(),
            ENVIRONMENT_FILE: self._environment,
        }
        self._saver.save(self.totals.steps, self.model, self.step.optimizer, documents, self.totals.best_step)
        self._saved, self._saved_at = self.totals.steps, time.perf_counter()

    def _train_s(self) -> float:
        return self._trained_before_s + time.perf_counter() - self._started

    def _state(self) -> dict[str, Any]:  # Any: JSON values
        return describe_state(
            self.config, self.totals, step=self.step, data=self.data, loader=self.loader, machine=self.machine
        )

    def _leave_model(self) -> None:
        """The trained model, beside its tokenizer, where every reader of a run folder looks for it."""
        if not self.world.is_main:
            return
        self._saver.wait()
        newest = Checkpoints(self.folder.checkpoints).newest()
        assert newest is not None
        # A file of its own: one shared with the checkpoint would be damaged with it.
        write_whole(self.folder.model, lambda partial: copy_model(newest, partial))

    def _announce_stage(self, step: int) -> None:
        """Log where a step is the first with a block of a new stage."""
        batch, n_stages = self.config.train.batch_size, len(self.config.data.mixture_stages)
        stage = self.schedule.stage_of((step + 1) * batch - 1)
        if n_stages > 1 and (step == 0 or stage != self.schedule.stage_of(step * batch - 1)):
            shares = ", ".join(f"{name} {100 * share:.3g} %" for name, share in self.schedule.shares(stage).items())
            log.info("Stage %d of %d begins in step %d: %s.", stage + 1, n_stages, step + 1, shares)

    def _record(
        self,
        step: int,
        result: StepResult,
        batches: Sequence[Batch],
        step_ms: float,
        *,
        data_ms: float,
        reason: str | None,
    ) -> None:
        record = StepRecord(
            step=step,
            loss=result.loss,
            accuracy=result.accuracy,
            bits_per_byte=self._bits_per_byte(result, batches),
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens=result.tokens,
            step_ms=step_ms,
            data_ms=data_ms,
            skipped=result.skipped is not None,
            nan_count=self.totals.skipped + (result.skipped is not None),
            skip_reason=reason,
        )
        self._is_recording = True
        self.totals.add(record)
        self.sinks.step(record)
        self._is_recording = False

    def _reason(self, result: StepResult, batches: Sequence[Batch], before: list[torch.Tensor]) -> str | None:
        """Why the update was left out; of what is not finite, where it arose. `before`: the generators' state then."""
        if result.skipped != "not finite":
            return result.skipped
        with rng.at(before):
            place = first_bad_layer(self.step, batches)
        return f"not finite, {f'first in {place}' if place else 'but finite when the batch was run once more'}"

    def _stop_where_hopeless(self, reason: str) -> None:
        """Raise RunError where a weight is not finite, or updates have been left out too often in a row."""
        self._check_weights()
        n_skipped = self.step.guard.in_a_row
        if n_skipped >= self.config.train.max_skipped:
            self._saver.wait()
            if reason == "spike":
                advice = "Where it fails again, --set train.skip_spikes=… to a higher threshold, or to none."
            else:
                advice = "Where it fails again, start anew with a lower optim.lr."
            message = (
                f"Step {self.totals.steps}: {n_skipped} updates in a row were left out, the last one: {reason}. "
                f"{self._how_to_go_on()} {advice}"
            )
            raise self.world.told(RunError(message))

    def _bits_per_byte(self, result: StepResult, batches: Sequence[Batch]) -> float | None:
        if self.byte_lengths is None:
            return None
        own = sum(count_bytes(batch.targets, self.byte_lengths) for batch in batches)
        (text_bytes,) = self.world.totals(own)
        return result.loss * result.tokens / NATS_PER_BIT / text_bytes if text_bytes else None

    def _evaluate(self) -> None:
        record = self.held_out.evaluate(self.totals.steps)
        self.totals.note(record)
        self.sinks.evaluation(record)
