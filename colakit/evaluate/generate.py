"""Continue a text: each token is read once, and what it gave is kept.

Shapes: B rows, T tokens read at once, V vocab.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from colakit.build import Machine
from colakit.evaluate.mode import evaluation_mode
from colakit.model.cache import KVCache
from colakit.model.linear import FAN, Projections
from colakit.model.lm import LM


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """Logits are divided by it; 0: always the most probable token."""
    top_k: int | None = None
    """Only the so many most probable tokens."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability, of all, also with `top_k` (Holtzman et al.,
    arXiv 1904.09751)."""
    seed: int = 0

    def next_token(self, logits: Tensor, generator: torch.Generator) -> int | None:
        """A token by logits [V] float32 on the host; None where they are not finite, as a diverged model's are."""
        highest = logits.max()
        if not highest.isfinite():
            return None
        if self.temperature == 0.0:
            return int(logits.argmax())
        scaled = (logits - highest).double() / self.temperature
        probabilities, ids = scaled.softmax(dim=-1).sort(descending=True, stable=True)
        kept = probabilities.cumsum(dim=-1) - probabilities < self.top_p
        kept[0] = True
        if self.top_k is not None:
            kept[self.top_k :] = False
        return int(ids[torch.multinomial(probabilities * kept, 1, generator=generator)])


@torch.no_grad()
def generate(
    model: LM,
    prompt: Sequence[int],
    n_tokens: int,
    machine: Machine,
    *,
    n_ids: int,
    sampling: Sampling,
    stop: int | None = None,
) -> Iterator[int]:
    """Up to `n_tokens` ids below `n_ids` that follow `prompt` (at least one id), each as soon as it is chosen.

    It ends behind the id `stop`, and before a token whose logits are not finite. Behind ``seq_len`` tokens the model
    sees the last of them, which then are read anew for every token.
    """
    ids = list(prompt)
    generator = torch.Generator().manual_seed(sampling.seed)
    reader: Reader | None = None
    waiting = ids[-model.config.seq_len :]
    for _ in range(n_tokens):
        if reader is None or reader.length == reader.max_len:
            waiting = ids[-model.config.seq_len :]
            reader = Reader(model, machine, max_len=min(len(ids) + n_tokens, model.config.seq_len))
        logits = reader.read(torch.tensor([waiting], device=machine.device))[0, :n_ids]
        token = sampling.next_token(logits.cpu(), generator)
        if token is None:
            return
        yield token
        if token == stop:
            return
        ids.append(token)
        waiting = [token]


class Reader:
    """A model that reads rows of equal length, together, and tells what may follow.

    On CUDA single tokens are read by one graph of kernels, launched at once: launched one by one, they keep the GPU
    waiting. Its attention then goes over all of `max_len`, behind which nothing is seen.
    """

    def __init__(self, model: LM, machine: Machine, *, max_len: int) -> None:
        self.max_len = max_len
        self._model = model
        self._machine = machine
        self._cache = KVCache(model.config.n_layers, max_len)
        self._step: _CapturedStep | None = None

    @property
    def length(self) -> int:
        """Tokens read."""
        return self._cache.get_seq_length()

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """The next tokens [B, T] of every row → logits [B, V] float32 of what follows the last of them."""
        with evaluation_mode(self._model):
            if self._machine.device.type != "cuda" or tokens.shape[1] > 1 or self.length == 0:
                with self._machine.autocast():
                    return self._model.head(self._model.extend(tokens, self._cache)[:, -1]).float()
            if self._step is None:
                self._step = _CapturedStep(self._model, self._machine, self._cache, tokens)
            return self._step(tokens)


class _CapturedStep:
    """The reading of one token a row, as a CUDA graph over the buffers of a cache."""

    def __init__(self, model: LM, machine: Machine, cache: KVCache, tokens: Tensor) -> None:
        self._cache = cache
        self._tokens = tokens.clone()  # [B, 1]
        self._place = torch.tensor([cache.get_seq_length()], device=machine.device)
        # Kept, as everything is that the graph reads.
        self._everything = torch.arange(cache.max_len, device=machine.device)

        def step() -> Tensor:
            visible = (self._everything <= self._place)[None, None, None]  # [1, 1, 1, S]
            # Autocast's own cache of weights would outlive the graph that made it.
            with torch.autocast("cuda", machine.dtype, machine.dtype != torch.float32, cache_enabled=False):
                hidden = model.extend_at(self._tokens, cache.at(self._place), self._place, visible)
                return model.head(hidden[:, -1]).float()

        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are chosen and loaded before they are captured
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = step()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] float32, which the next call overwrites."""
        self._tokens.copy_(tokens)
        self._place.fill_(self._cache.advance())
        self._graph.replay()
        return self._logits


def with_products_in(model: LM, dtype: torch.dtype) -> LM:
    """`model` itself, its projections' weights in the type that autocast would turn them into for every token."""
    for module in model.modules():
        if isinstance(module, Projections | FAN):
            module.to(dtype)
    return model
