"""What `colakit eval --spectrum` measures: in how many directions a trained model's activations lie."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from colakit.records.base import Record

Place = Literal["attention_input", "mlp_input", "mlp_hidden"]
"""What the projections Q, K and V read; what gate and up read; what down reads."""


@dataclass(frozen=True)
class PlaceSpectrum:
    """The activations at one place of one block, a matrix of tokens × ``width``."""

    block: int
    """Counted from 0."""
    place: Place
    width: int
    singular_values: tuple[float, ...]
    """``width`` of them, falling, as shares of the largest; all 0 where every activation is."""
    effective_rank: int
    """The fewest of them whose squares sum to the record's ``energy_frac`` of all; 0 where every activation is 0."""
    layer_rank: int | None
    """Of each low-rank product that reads them; None where a dense layer does."""


@dataclass(frozen=True)
class SpectrumRecord(Record):
    """The spectra of a model's activations over ``tokens`` real tokens, block by block."""

    kind: ClassVar[str] = "spectrum"
    preset: str
    step: int | None
    tokens: int
    energy_frac: float
    """The share of the total energy, the sum of the squared singular values, that an effective rank holds."""
    places: tuple[PlaceSpectrum, ...]
