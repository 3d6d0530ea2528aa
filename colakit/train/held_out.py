"""A model on the text that was held out from it: its losses there, and how it continues the beginning of a document."""

import logging
import time

from colakit.build import Machine
from colakit.config.schema import TrainConfig
from colakit.data.loader import held_out_batches
from colakit.data.prepare import PreparedData
from colakit.evaluate.generate import Sampling, generate
from colakit.evaluate.scores import LMScorer, Tally, score_windows
from colakit.evaluate.text_bytes import gzip_bits_per_byte
from colakit.evaluate.windows import BlockWindows
from colakit.model.lm import LM
from colakit.parallel.world import ALONE, World
from colakit.parallel.wrap import Replica
from colakit.records.run import EvalRecord

log = logging.getLogger(__name__)

PROMPT_TOKENS = 32
SAMPLE_TEMPERATURE = 0.8


class HeldOut:
    """The first ``eval_tokens`` of the held-out side of `data`, the same ones each time, shared by all processes."""

    def __init__(
        self, replica: Replica, data: PreparedData, machine: Machine, train: TrainConfig, world: World = ALONE
    ) -> None:
        self._replica = replica
        self._data = data
        self._machine = machine
        self._train = train
        self._world = world

    def evaluate(self, step: int) -> EvalRecord:
        """Loss and accuracy of the model, which has made `step` steps."""
        started = time.perf_counter()
        windows = BlockWindows(self._data.held_out, self._train.eval_tokens)
        tally = Tally(windows.n_documents, self._data.tokenizer.token_bytes)
        score_windows(
            LMScorer(self._replica.model, self._machine, self._replica.objective.factors),
            windows,
            tally,
            batch_size=self._train.micro_batch_size_of(self._world.size),
            isolate_eot=self._data.isolate_eot,
            world=self._world,
        )
        self._replica.rest()
        scores = tally.scores()
        return EvalRecord(
            step=step,
            val_loss=scores.loss.value,
            perplexity=scores.perplexity.value,
            bits_per_byte=scores.bits_per_byte.value if scores.bits_per_byte is not None else None,
            accuracy=scores.top1.value,
            tokens=scores.tokens,
            text_bytes=scores.text_bytes,
            eval_s=time.perf_counter() - started,
        )

    def gzip_bits_per_byte(self) -> float | None:
        """What ``gzip -9`` reaches on the same text; None where a token's bytes are unknown."""
        data, train = self._data, self._train
        batches = held_out_batches(data.held_out, train.effective_micro_batch_size, train.eval_tokens)
        return gzip_bits_per_byte(batches, data.tokenizer.token_bytes)

    def sample(self, model: LM) -> tuple[str, str]:
        """The beginning of a held-out document, and ``sample_tokens`` with which `model` goes on."""
        tokenizer, n_tokens = self._data.tokenizer, self._train.sample_tokens
        # A document without a token to show is continued from its start, which follows an end-of-text token.
        prompt = tokenizer.encode_batch([self._data.prompt_text])[0][:PROMPT_TOKENS] or [tokenizer.eot_id]
        sampling = Sampling(temperature=SAMPLE_TEMPERATURE, seed=self._train.seed)
        ids = list(generate(model, prompt, n_tokens, self._machine, n_ids=tokenizer.n_tokens, sampling=sampling))
        if len(ids) < n_tokens:
            log.warning("The sample ends early: the model's outputs are not finite. Try a lower optim.lr.")
        return tokenizer.decode(prompt), tokenizer.decode(ids)
