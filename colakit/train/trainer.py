"""A training run from a resolved configuration to its summary. `Trainer.fit` reads like a table of contents."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from colakit.build import (
    Machine,
    build_loader,
    build_model,
    build_schedule,
    deterministic,
    pick_machine,
)
from colakit.checkpoint import rng
from colakit.checkpoint.folders import Checkpoints
from colakit.checkpoint.model_file import MODEL_FILE, load_model, load_optimizer
from colakit.config.schema import RunConfig
from colakit.data.ahead import ahead
from colakit.data.cache import write_whole
from colakit.data.loader import Batch, TrainLoader
from colakit.data.prepare import check_sources, prepare
from colakit.data.tokenise import Watch, unwatched
from colakit.errors import RunError
from colakit.evaluate.text_bytes import byte_lengths, count_bytes
from colakit.host import describe_machine
from colakit.model.lm import LM
from colakit.records.run import EvalRecord, RunSummary, StepRecord
from colakit.train.diagnosis import first_bad_layer
from colakit.train.faults import describe_fault, how_to_go_on, is_expected
from colakit.train.held_out import HeldOut
from colakit.train.memory import check_budget, held_bytes, memory_budget
from colakit.train.metrics import last_records
from colakit.train.moved import check_same_data, check_where_it_lies
from colakit.train.resume import Resumption, reopen
from colakit.train.runs import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    STATE_FILE,
    TOTALS_FILE,
    RunFolder,
    create_run,
    plan_run_folder,
    write_json,
)
from colakit.train.saver import Saver
from colakit.train.signals import StopFlag, stop_on_signal
from colakit.train.sinks import Sink
from colakit.train.state import describe_state, warn_of_differences
from colakit.train.step import StepResult, TrainStep
from colakit.train.totals import Totals
from colakit.units import NATS_PER_BIT

log = logging.getLogger(__name__)

_STEPS_AHEAD = 2


class Trainer:
    """One run, or the rest of one. Construction checks and prepares everything that can fail by the user's mistake;
    only then is the folder made. `sinks` builds the run's sinks once the folder exists."""

    def __init__(
        self,
        config: RunConfig,
        *,
        out: Path | None = None,
        sinks: Callable[[RunFolder], Sink],
        watch: Watch = unwatched,
        resume: Resumption | None = None,
    ) -> None:
        """`out` is the folder of a new run, `resume` what an old one goes on from.

        Raises RunError where another process has the folder, DataError where the data is not what the old one read.
        """
        self.config = config
        with ExitStack() as on_failure:
            if resume is None:
                plan_run_folder(out, config.preset)  # refused before the data is prepared
            else:
                on_failure.callback(resume.folder.lock.release)
                resume.folder.lock.acquire()
            check_sources(config.data) if resume is None else check_where_it_lies(config)
            self.machine: Machine = pick_machine(config)
            model = config.model
            self.data = prepare(config.data, seq_len=model.seq_len, vocab_size=model.vocab_size, watch=watch)
            self.byte_lengths = byte_lengths(self.data.tokenizer.token_bytes)
            self.model: LM = build_model(config, self.machine)
            self.held_out = HeldOut(self.model, self.data, self.machine, config.train)
            self.step = TrainStep.of(config, self.model, self.machine)
            self.loader: TrainLoader = build_loader(config, self.data)
            self.schedule = build_schedule(config)
            self.totals = Totals()
            check_budget(config.train.memory_gib)
            self._held = held_bytes()
            self._environment = describe_machine().to_dict()
            self._rng: dict[str, Any] | None = None  # Any: JSON values
            self._before: tuple[list[torch.Tensor], dict[str, Any]] | None = None  # Any: JSON values
            """Of generators and guard, while a step is made: where that fails, the run stands there."""
            self._is_recording = False
            if resume is None:
                self.folder, self.sinks = create_run(out, config, self.data.describe(), sinks)
            else:
                self.folder, self.sinks = resume.folder, self._take_up(resume, sinks)
            on_failure.pop_all()
        self._first = self._saved = self.totals.steps
        self._trained_before_s = self.totals.train_s
        self._saver = Saver(
            Checkpoints(self.folder.checkpoints), keep_last=config.train.keep_last, keep_every=config.train.keep_every
        )

    def fit(self) -> RunSummary:
        """Train to max_steps, or until a signal; evaluate, save and summarise."""
        self._started = self._saved_at = time.perf_counter()
        try:
            # The signals stay caught to the end: one that comes late must not cost what was trained.
            with stop_on_signal() as stop, self._saved_on_failure():
                self.data.tokenizer.save(self.folder.tokenizer)
                with deterministic(self.config.train.deterministic), memory_budget(self.config.train.memory_gib):
                    interrupted = self._loop(stop)
                self._save()
                self._saver.wait()
                self._leave_model()
                seen = self.totals.evaluation
                if seen is None or seen.step < self.totals.steps:
                    self._evaluate()
                summary = self._summarise(interrupted=interrupted)
                write_json(self.folder.summary, summary.to_dict())
        except KeyboardInterrupt:
            self._saver.close()
            log.warning("Stopped at once. %s", how_to_go_on(self.folder))
            raise
        finally:
            self._saver.close()
            self._close_sinks()
            self.folder.lock.release()
        return summary

    def _close_sinks(self) -> None:
        try:
            self.sinks.close()
        except OSError as error:  # what matters more is saved by now, or has failed before
            log.warning("The last records in %s cannot be written: %s.", self.folder.root, error.strerror or error)

    def _take_up(self, resume: Resumption, sinks: Callable[[RunFolder], Sink]) -> Sink:
        """Put everything back where it was after the checkpoint's step, what is in the run's folder too."""
        state = resume.state
        check_same_data(resume.folder.root, resume.folder.data, state["data"]["fingerprint"], self.data)
        load_model(self.model, resume.checkpoint)
        load_optimizer(self.step.optimizer, resume.checkpoint)
        self.step.guard.load_state_dict(state["guard"])
        self.totals = resume.totals
        self._rng = state["rng"]
        warn_of_differences(state, self._state())
        try:
            reopen(resume)
            taken = sinks(resume.folder)
        except OSError as error:
            raise RunError(describe_fault(error, resume.folder, self.config, self.totals.steps, self._held)) from error
        for record in last_records(resume.folder.metrics):
            if isinstance(record, EvalRecord) and record.step == self.totals.steps:
                self.totals.note(record)
        log.info("Going on after step %d of %d.", self.totals.steps, self.config.train.max_steps)
        return taken

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Where memory or disk runs out: keep what was trained, and say what to do. Raises RunError."""
        try:
            yield
        except (OSError, MemoryError, RuntimeError) as error:
            if not is_expected(error):
                raise
            told = describe_fault(error, self.folder, self.config, self.totals.steps + 1, self._held)
            raise RunError(f"{told} {self._rescue()}") from error

    def _rescue(self) -> str:
        """Save what there is, and say where it is."""
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
            self._saver.wait()
        except (OSError, MemoryError, RuntimeError, RunError) as error:
            log.warning("Step %d is not saved: %s.", self.totals.steps, error)
        return how_to_go_on(self.folder)

    def _loop(self, stop: StopFlag) -> bool:
        """Train; True where a signal ended it early."""
        # Dropout draws from torch's global generator.
        rng.seed(self.config.train.seed) if self._rng is None else rng.restore(self._rng)
        self.model.train()
        train = self.config.train
        with closing(
            ahead(self.loader.steps(self._first, train.max_steps, train.effective_micro_batch_size), _STEPS_AHEAD)
        ) as steps:
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
                if stop.is_set or last:
                    break
                if reason is None:  # else what the weights have come to may be what is wrong
                    if self._is_checkpoint_due():
                        self._save()
                    if self._is_evaluation_due():
                        self._evaluate()
                if stop.is_set:
                    break
        return self.totals.steps < train.max_steps

    def _is_evaluation_due(self) -> bool:
        """At every `eval_every`-th step, or as soon after it as an update is made."""
        every, seen = self.config.train.eval_every, self.totals.evaluation
        last_due = self.totals.steps // every * every
        return last_due > (seen.step if seen is not None else 0)

    def _check_weights(self) -> None:
        """Raise RunError where a weight is not finite: no update mends it, and no checkpoint shall hold it."""
        parameters = dict(self.model.named_parameters())
        is_finite = torch.stack([torch.isfinite(p.detach()).all() for p in parameters.values()]).tolist()
        if not all(is_finite):
            name = list(parameters)[is_finite.index(False)]
            self._saver.wait()
            raise RunError(
                f"Step {self.totals.steps}: the weight {name} is not finite, which no update mends. "
                f"{how_to_go_on(self.folder)} Where it happens again, start anew with a lower optim.lr."
            )

    def _is_checkpoint_due(self) -> bool:
        steps, train = self.totals.steps, self.config.train
        minutes = (time.perf_counter() - self._saved_at) / 60.0
        return (
            self._is_evaluation_due()
            or (train.checkpoint_every is not None and steps % train.checkpoint_every == 0)
            or (train.checkpoint_every_min is not None and minutes >= train.checkpoint_every_min)
        )

    def _save(self) -> None:
        """Take a checkpoint of this step, unless there is one. Raises OSError, and RunError for weights not finite."""
        if self._saved == self.totals.steps:
            return
        self._check_weights()
        self.sinks.flush()
        self.totals.train_s = self._trained_before_s + time.perf_counter() - self._started
        documents = {
            STATE_FILE: self._state(),
            TOTALS_FILE: self.totals.to_dict(),
            CONFIG_FILE: self.config.model_dump(),
            ENVIRONMENT_FILE: self._environment,
        }
        self._saver.save(self.totals.steps, self.model, self.step.optimizer, documents, self.totals.best_step)
        self._saved, self._saved_at = self.totals.steps, time.perf_counter()

    def _state(self) -> dict[str, Any]:  # Any: JSON values
        return describe_state(
            self.config, self.totals, step=self.step, data=self.data, loader=self.loader, machine=self.machine
        )

    def _leave_model(self) -> None:
        """The trained model, beside its tokenizer, where every reader of a run folder looks for it."""
        newest = Checkpoints(self.folder.checkpoints).newest()
        assert newest is not None
        # A file of its own: one shared with the checkpoint would be damaged with it.
        write_whole(self.folder.model, lambda partial: shutil.copy(newest / MODEL_FILE, partial))

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
            return f"not finite, first in {first_bad_layer(self.step, batches)}"

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
            raise RunError(
                f"Step {self.totals.steps}: {n_skipped} updates in a row were left out, the last one: {reason}. "
                f"{how_to_go_on(self.folder)} {advice}"
            )

    def _bits_per_byte(self, result: StepResult, batches: Sequence[Batch]) -> float | None:
        if self.byte_lengths is None:
            return None
        text_bytes = sum(count_bytes(batch.targets, self.byte_lengths) for batch in batches)
        return result.loss * result.tokens / NATS_PER_BIT / text_bytes if text_bytes else None

    def _evaluate(self) -> None:
        record = self.held_out.evaluate(self.totals.steps)
        self.totals.note(record)
        self.sinks.evaluation(record)

    def _summarise(self, *, interrupted: bool) -> RunSummary:
        totals, final = self.totals, self.totals.evaluation
        assert final is not None
        assert totals.first_loss is not None
        assert totals.last_loss is not None
        train_s = self._trained_before_s + time.perf_counter() - self._started
        prompt, sample = self.held_out.sample()
        steps_s = totals.step_ms / 1000.0
        return RunSummary(
            preset=self.config.preset,
            run_dir=str(self.folder.root),
            steps=totals.steps,
            interrupted=interrupted,
            first_loss=totals.first_loss,
            last_loss=totals.last_loss,
            val_loss=final.val_loss,
            bits_per_byte=final.bits_per_byte,
            gzip_bits_per_byte=self.held_out.gzip_bits_per_byte(),
            accuracy=final.accuracy,
            tokens_seen=totals.tokens,
            nan_count=totals.skipped,
            parameters=sum(p.numel() for p in self.model.parameters()),
            train_s=train_s,
            tokens_per_s=totals.tokens / steps_s,
            data_wait_frac=totals.data_ms / totals.step_ms,
            epochs=self.loader.epochs(totals.steps),
            optimizer=self.step.optimizer.costs(),
            data_fingerprint=self.data.fingerprint,
            prompt=prompt,
            sample=sample,
        )
