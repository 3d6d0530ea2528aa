"""A training run from a resolved configuration to its summary. `Trainer.fit` reads like a table of contents."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import torch

from colakit.build import Machine, build_loader, build_model, build_optimizer, build_schedule, pick_machine
from colakit.checkpoint.model_file import save_model
from colakit.config.schema import RunConfig
from colakit.data.ahead import ahead
from colakit.data.loader import Batch, TrainLoader, held_out_batches
from colakit.data.prepare import PreparedData, check_sources, prepare
from colakit.data.tokenise import Watch, unwatched
from colakit.errors import CheckpointError, RunError
from colakit.evaluate.generate import generate
from colakit.evaluate.loss import byte_lengths, count_bytes, evaluate, gzip_bits_per_byte
from colakit.model.lm import LM
from colakit.optim.schedule import learning_rate
from colakit.records import EvalRecord, RunSummary, StepRecord
from colakit.train.runs import RunFolder, create_run, plan_run_folder, write_json
from colakit.train.sinks import Sink
from colakit.train.step import StepResult, TrainStep, is_out_of_memory
from colakit.units import NATS_PER_BIT

log = logging.getLogger(__name__)

PROMPT_TOKENS = 32
_STEPS_AHEAD = 2
SAMPLE_TEMPERATURE = 0.8


class StopFlag:
    """Set by the first signal; the second one interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        log.warning("Stopping after this step: saving, evaluating. A second signal stops at once.")


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Turn SIGINT, SIGTERM and SIGHUP (a closed terminal) into a flag that the loop reads between steps.

    Outside the main thread: no handlers.
    """
    flag = StopFlag()
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = wanted if threading.current_thread() is threading.main_thread() else []
    before = {s: signal.signal(s, flag) for s in signals}
    try:
        yield flag
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class Trainer:
    """One run. Construction checks and prepares everything that can fail by the user's mistake; only then is the folder
    made. `sinks` builds the run's sinks once the folder exists."""

    def __init__(
        self,
        config: RunConfig,
        *,
        out: Path | None,
        sinks: Callable[[RunFolder], Sink],
        watch: Watch = unwatched,
    ) -> None:
        self.config = config
        plan_run_folder(out, config.preset)  # refused before the data is prepared
        check_sources(config.data)
        self.machine: Machine = pick_machine(config)
        model = config.model
        self.data: PreparedData = prepare(config.data, seq_len=model.seq_len, vocab_size=model.vocab_size, watch=watch)
        self.byte_lengths = byte_lengths(self.data.tokenizer.token_bytes)
        self.model: LM = build_model(config, self.machine)
        self.step = self._train_step()
        self.loader: TrainLoader = build_loader(config, self.data)
        self.schedule = build_schedule(config)
        self.folder, self.sinks = create_run(out, config, self.data.describe(), sinks)
        self.history: list[StepRecord] = []
        self.evaluations: list[EvalRecord] = []
        self.skipped = 0

    def fit(self) -> RunSummary:
        """Train to max_steps, or until a signal; evaluate, save and summarise."""
        started = time.perf_counter()
        try:
            # The signals stay caught to the end: one that comes late must not cost what was trained.
            with stop_on_signal() as stop:
                with self._saved_on_failure():
                    interrupted = self._loop(stop)
                save_model(self.model, self.folder.root)
                self.data.tokenizer.save(self.folder.tokenizer)
                if not self.evaluations or self.evaluations[-1].step < len(self.history):
                    self._evaluate()
                summary = self._summarise(time.perf_counter() - started, interrupted=interrupted)
                write_json(self.folder.summary, summary.to_dict())
        finally:
            self.sinks.close()
        return summary

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Where memory or disk runs out: keep what was trained, and say what to do. Raises RunError."""
        try:
            yield
        except (OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            if not self.history:
                self.folder.discard()
            raise RunError(f"{self._failure(error)} {self._rescue()}") from error

    def _failure(self, error: BaseException) -> str:
        if isinstance(error, OSError):
            return f"{self.folder.root} cannot be written: {error.strerror or error}. Free some space there."
        micro = self.config.train.effective_micro_batch_size
        advice = "Try a smaller model, or shorter sequences."
        if micro > 1:
            smaller = max(n for n in range(1, micro) if self.config.train.batch_size % n == 0)
            advice = f"Try --set train.micro_batch_size={smaller}, which keeps the batch size."
        return f"Out of memory at step {len(self.history) + 1}, in a micro-batch of {micro} sequences. {advice}"

    def _rescue(self) -> str:
        if not self.history:
            return "Nothing was trained, and no folder is left."
        try:
            save_model(self.model, self.folder.root)
        except CheckpointError as error:
            return str(error)
        return f"The weights of step {len(self.history)} are in {self.folder.root}."

    def _loop(self, stop: StopFlag) -> bool:
        """Train; True where a signal ended it early."""
        # Dropout draws from torch's global generator.
        torch.manual_seed(self.config.train.seed)
        self.model.train()
        train = self.config.train
        with closing(
            ahead(self.loader.steps(0, train.max_steps, train.effective_micro_batch_size), _STEPS_AHEAD)
        ) as steps:
            for step in range(train.max_steps):
                self._announce_stage(step)
                started = time.perf_counter()
                batches = next(steps)
                loaded = time.perf_counter()
                result = self.step(step, batches)
                ms = 1000.0 * (time.perf_counter() - started)
                self._record(step + 1, result, batches, ms, data_ms=1000.0 * (loaded - started))
                last = step + 1 == train.max_steps
                if not (stop.is_set or last) and (step + 1) % train.eval_every == 0:
                    self._evaluate()
                if stop.is_set and not last:
                    return True
        return False

    def _announce_stage(self, step: int) -> None:
        """Log where a step is the first with a block of a new stage."""
        stages, batch = self.config.data.mixture_stages, self.config.train.batch_size
        stage = self.schedule.stage_of((step + 1) * batch - 1)
        before = self.schedule.stage_of(step * batch - 1) if step else -1
        if len(stages) > 1 and stage != before:
            weights = stages[stage].weights
            shares = ", ".join(f"{name} {100 * w / sum(weights.values()):.3g} %" for name, w in weights.items())
            log.info("Stage %d of %d begins in step %d: %s.", stage + 1, len(stages), step + 1, shares)

    def _record(
        self, step: int, result: StepResult, batches: Sequence[Batch], step_ms: float, *, data_ms: float
    ) -> None:
        self.skipped += result.skipped
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
            skipped=result.skipped,
            nan_count=self.skipped,
        )
        self.history.append(record)
        self.sinks.step(record)

    def _bits_per_byte(self, result: StepResult, batches: Sequence[Batch]) -> float | None:
        if self.byte_lengths is None:
            return None
        text_bytes = sum(count_bytes(batch.targets, self.byte_lengths) for batch in batches)
        return result.loss * result.tokens / NATS_PER_BIT / text_bytes if text_bytes else None

    def _held_out(self) -> Iterator[Batch]:
        train = self.config.train
        return held_out_batches(
            self.data.held_out,
            batch_size=train.effective_micro_batch_size,
            max_tokens=train.eval_tokens,
            isolate_eot=self.data.isolate_eot,
        )

    def _evaluate(self) -> None:
        token_bytes = self.data.tokenizer.token_bytes
        record = evaluate(self.model, self._held_out(), self.machine, token_bytes, step=len(self.history))
        self.evaluations.append(record)
        self.sinks.evaluation(record)

    def _train_step(self) -> TrainStep:
        optim, train = self.config.optim, self.config.train
        return TrainStep(
            model=self.model,
            optimizer=build_optimizer(self.model, optim),
            machine=self.machine,
            lr_at=partial(
                learning_rate,
                peak=optim.lr,
                warmup_steps=optim.warmup_steps,
                max_steps=train.max_steps,
                min_frac=optim.min_lr_frac,
            ),
            grad_clip=optim.grad_clip,
        )

    def _sample(self) -> tuple[str, str]:
        """The beginning of a held-out document, and how the model goes on."""
        tokenizer = self.data.tokenizer
        # A document without a token to show is continued from its start, which follows an end-of-text token.
        prompt = tokenizer.encode_batch([self.data.prompt_text])[0][:PROMPT_TOKENS] or [tokenizer.eot_id]
        ids = generate(
            self.model,
            prompt,
            self.config.train.sample_tokens,
            self.machine,
            n_ids=tokenizer.n_tokens,
            temperature=SAMPLE_TEMPERATURE,
            seed=self.config.train.seed,
        )
        if len(ids) < self.config.train.sample_tokens:
            log.warning("The sample ends early: the model's outputs are not finite. Try a lower optim.lr.")
        return tokenizer.decode(prompt), tokenizer.decode(ids)

    def _summarise(self, train_s: float, *, interrupted: bool) -> RunSummary:
        final = self.evaluations[-1]
        prompt, sample = self._sample()
        steps_s = sum(r.step_ms for r in self.history) / 1000.0
        tokens = sum(r.tokens for r in self.history)
        return RunSummary(
            preset=self.config.preset,
            run_dir=str(self.folder.root),
            steps=len(self.history),
            interrupted=interrupted,
            first_loss=self.history[0].loss,
            last_loss=self.history[-1].loss,
            val_loss=final.val_loss,
            bits_per_byte=final.bits_per_byte,
            gzip_bits_per_byte=gzip_bits_per_byte(self._held_out(), self.data.tokenizer.token_bytes),
            accuracy=final.accuracy,
            tokens_seen=tokens,
            nan_count=self.skipped,
            parameters=sum(p.numel() for p in self.model.parameters()),
            train_s=train_s,
            tokens_per_s=tokens / steps_s,
            data_wait_frac=sum(r.data_ms for r in self.history) / (1000.0 * steps_s),
            epochs=self.loader.epochs(len(self.history)),
            optimizer=self.step.optimizer.costs(),
            data_fingerprint=self.data.fingerprint,
            prompt=prompt,
            sample=sample,
        )
