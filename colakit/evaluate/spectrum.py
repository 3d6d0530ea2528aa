"""The spectrum of activations (§2.2, Figure 3): the singular values of what the projections of each block read.

Figure 3 does not say which activations it shows. Measured here are the inputs of the layers that CoLA makes low-rank,
each beside the rank of the layer that reads it; o_proj's is left out, to keep this small. A block's output is no place
of its own: with HybridNorm, as in every preset, it is what Q, K and V (or ATF's FAN layer) of the next block read.

Shapes: B batch, T time, D width of a place, N real tokens; X [N, D] is what is measured.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from colakit.build import Machine
from colakit.data.loader import Batch
from colakit.errors import CheckpointError, DataError
from colakit.evaluate.mode import evaluation_mode
from colakit.loss import IGNORE
from colakit.model.attention import Attention
from colakit.model.block import Block
from colakit.model.documents import Documents
from colakit.model.linear import LowRank, Projections
from colakit.model.lm import LM
from colakit.model.mlp import MLP
from colakit.records.spectrum import Place, PlaceSpectrum, SpectrumRecord

ENERGY = 0.95
"""The share of the total energy that Figure 3's effective rank holds."""

MAX_TOKENS = 16_384
"""How many tokens are measured unless told otherwise."""


@torch.no_grad()
def measure_spectrum(
    model: LM,
    batches: Iterable[Batch],
    machine: Machine,
    *,
    preset: str,
    step: int | None,
    max_tokens: int = MAX_TOKENS,
    energy: float = ENERGY,
) -> SpectrumRecord:
    """The singular values and the effective ranks of `model`'s activations over the first `max_tokens` real tokens.

    X is not centred: the paper does not say that its is, and the layers read it as it is (an A has no bias), so that
    the mean takes a direction like any other. Positions without a target are left out. X is never held: XᵀX, in float64
    on the machine's device, is summed up batch by batch. The model's mode is put back.

    Raises DataError where there are fewer tokens than the widest place has dimensions, since a rank would then be that
    of the sample; CheckpointError where activations are not finite; ValueError for an `energy` outside (0, 1].
    """
    if not 0.0 < energy <= 1.0:
        raise ValueError(f"energy must be in (0, 1], not {energy}")
    moments = _Moments(model, machine.device)
    tokens = 0
    with evaluation_mode(model), moments.summing():
        for batch in batches:
            rows = (batch.targets != IGNORE).flatten().nonzero().flatten()[: max_tokens - tokens]
            moments.rows = rows.to(machine.device)
            starts = batch.document_starts
            documents = None if starts is None else Documents.of(starts).to(machine.device)
            with machine.autocast():
                model.hidden(batch.tokens.to(machine.device), documents)
            tokens += len(rows)
            if tokens >= max_tokens:
                break
    widest = max(layer.d_in for layer in moments.layers.values())
    if tokens < widest:
        raise DataError(
            f"{tokens:,} tokens were measured, in activations of {widest:,} dimensions: their rank would be that of "
            f"the sample. Give a text of {widest:,} tokens at least, better ten times as many: --data."
        )
    places = (moments.spectrum(block, place, energy) for block, place in moments.layers)
    return SpectrumRecord(preset, step, tokens, energy, tuple(places))


def singular_values(second_moment: Tensor) -> Tensor:
    """XᵀX [D, D] float64 → the D singular values of X, falling, float64.

    Those below √(D·ε) of the largest, with float64's ε, are 0: they are lost in the rounding of XᵀX.
    """
    squares = torch.linalg.eigvalsh(second_moment).flip(0)
    noise = len(squares) * torch.finfo(squares.dtype).eps * squares[0]
    return torch.where(squares > noise, squares, 0.0).sqrt()


def effective_rank(values: Tensor, energy: float) -> int:
    """The fewest of the falling singular `values` [D] whose squares sum to `energy` of all; 0 where all are 0.

    "Al 95 % de la energía total" (Figure 3): energy is read as the sum of squares, as is usual.
    """
    held = values.square().cumsum(0)
    return int((held < energy * held[-1]).sum()) + 1 if held[-1] > 0 else 0


class _Moments:
    """XᵀX of every place, summed up while the model runs over the positions `rows` of the B·T of a batch."""

    rows: Tensor

    def __init__(self, model: LM, device: torch.device) -> None:
        self.layers = dict(_layers(model))
        self._sums = {
            key: torch.zeros(layer.d_in, layer.d_in, dtype=torch.float64, device=device)
            for key, layer in self.layers.items()
        }

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Inside, whatever the model reads is added."""
        handles = [layer.register_forward_pre_hook(partial(self._add, key)) for key, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, key: tuple[int, Place], _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].flatten(0, 1)[self.rows].double()  # [B, T, D] → [N, D]
        self._sums[key].addmm_(x.T, x)

    def spectrum(self, block: int, place: Place, energy: float) -> PlaceSpectrum:
        """Of one place. Raises CheckpointError where its activations are not finite."""
        moment, layer = self._sums[block, place], self.layers[block, place]
        if not moment.isfinite().all():
            raise CheckpointError(f"The activations of block {block} are not finite: the model diverged.")
        values = singular_values(moment)
        shares = values / values[0] if values[0] > 0 else values
        return PlaceSpectrum(
            block=block,
            place=place,
            width=layer.d_in,
            singular_values=tuple(shares.tolist()),
            effective_rank=effective_rank(values, energy),
            layer_rank=layer.rank if isinstance(layer, LowRank) else None,
        )


def _layers(model: LM) -> Iterator[tuple[tuple[int, Place], Projections]]:
    """The projections that read each place, block by block."""
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        assert isinstance(block.attention, Attention)
        assert isinstance(block.mlp, MLP)
        yield (i, "attention_input"), block.attention.qkv
        yield (i, "mlp_input"), block.mlp.gate_up
        yield (i, "mlp_hidden"), block.mlp.down
