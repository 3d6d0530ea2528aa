"""A model on the text that was held out from it: its losses there, and how it continues the beginning of a document."""

import logging
from collections.abc import Iterator

from colakit.build import Machine
from colakit.config.schema import TrainConfig
from colakit.data.loader import Batch, held_out_batches
from colakit.data.prepare import PreparedData
from colakit.evaluate.generate import generate
from colakit.evaluate.loss import evaluate, gzip_bits_per_byte
from colakit.model.lm import LM
from colakit.records.run import EvalRecord

log = logging.getLogger(__name__)

PROMPT_TOKENS = 32
SAMPLE_TEMPERATURE = 0.8


class HeldOut:
    """The first ``eval_tokens`` of the held-out side of `data`, the same ones each time."""

    def __init__(self, model: LM, data: PreparedData, machine: Machine, train: TrainConfig) -> None:
        self._model = model
        self._data = data
        self._machine = machine
        self._train = train

    def evaluate(self, step: int) -> EvalRecord:
        """Loss and accuracy of the model, which has made `step` steps."""
        return evaluate(self._model, self._batches(), self._machine, self._data.tokenizer.token_bytes, step=step)

    def gzip_bits_per_byte(self) -> float | None:
        """What ``gzip -9`` reaches on the same text; None where a token's bytes are unknown."""
        return gzip_bits_per_byte(self._batches(), self._data.tokenizer.token_bytes)

    def sample(self) -> tuple[str, str]:
        """The beginning of a held-out document, and ``sample_tokens`` with which the model goes on."""
        tokenizer, n_tokens = self._data.tokenizer, self._train.sample_tokens
        # A document without a token to show is continued from its start, which follows an end-of-text token.
        prompt = tokenizer.encode_batch([self._data.prompt_text])[0][:PROMPT_TOKENS] or [tokenizer.eot_id]
        ids = generate(
            self._model,
            prompt,
            n_tokens,
            self._machine,
            n_ids=tokenizer.n_tokens,
            temperature=SAMPLE_TEMPERATURE,
            seed=self._train.seed,
        )
        if len(ids) < n_tokens:
            log.warning("The sample ends early: the model's outputs are not finite. Try a lower optim.lr.")
        return tokenizer.decode(prompt), tokenizer.decode(ids)

    def _batches(self) -> Iterator[Batch]:
        return held_out_batches(
            self._data.held_out,
            batch_size=self._train.effective_micro_batch_size,
            max_tokens=self._train.eval_tokens,
            isolate_eot=self._data.isolate_eot,
        )
