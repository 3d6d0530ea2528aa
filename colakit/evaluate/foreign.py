"""A causal language model of `transformers` that is none of colakit's, as far as it is scored."""

from pathlib import Path
from typing import Any

import torch

from colakit.build import Machine
from colakit.data.loader import Batch
from colakit.data.tokenizer import Tokenizer
from colakit.errors import CheckpointError
from colakit.evaluate.evaluation import Subject
from colakit.evaluate.mode import evaluation_mode
from colakit.loss import TokenScores, scores_of_logits_
from colakit.units import GIB

_MOST_TOKENS = 2048
"""Of a window, unless told otherwise: some models read 100,000, whose whole logits no memory holds."""


class ForeignModel:
    """A causal language model of `transformers` that is none of colakit's: it can be scored, to compare with."""

    def __init__(self, place: Path, model: Any, tokenizer: Tokenizer, machine: Machine) -> None:
        # Any: whatever AutoModelForCausalLM gives
        self.place = place
        self.model = model
        self.tokenizer = tokenizer
        self.tokenizer_folder = place
        self.machine = machine
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.context = _context(model.config.get_text_config(), place)
        self.seq_len = min(self.context, _MOST_TOKENS)

    def stride(self, seq_len: int) -> int | None:
        """How far windows move on unless told: each document is read by itself, and no token twice."""
        return seq_len

    def subject(self) -> Subject:
        """What is evaluated."""
        return Subject(str(self.place), None, None, self.tokenizer.source, self.machine, self)

    def fitting_batch(self, seq_len: int) -> int:
        """Windows to try first: so many that whole logits, the largest of what stands, are 1 GiB in float32."""
        return max(1, GIB // (4 * seq_len * self.vocab_size))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TokenScores:
        """As `Scorer`. Whole logits stand in memory; a row is read as one."""
        device = self.machine.device
        with evaluation_mode(self.model), self.machine.autocast():
            logits = self.model(input_ids=batch.tokens.to(device), use_cache=False).logits
        logits = logits.float().flatten(0, 1)
        return scores_of_logits_(logits, batch.targets.to(device).flatten(), torch.empty_like(logits))


def _context(config: Any, place: Path) -> int:  # Any: a configuration of transformers
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(length := getattr(config, name, None), int):
            return length
    raise CheckpointError(f"{place}: its config.json does not say how long a text it reads (max_position_embeddings).")
