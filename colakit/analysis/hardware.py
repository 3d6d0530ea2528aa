"""What a configuration would compute on, as far as it says before it is run."""

from dataclasses import dataclass
from typing import Literal

from colakit.config.schema import RunConfig

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Precision:
    """Where and in what type the products run; weights, gradients and the residual stream are float32 always."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]

    @property
    def itemsize(self) -> int:
        """Bytes of what the products give."""
        return 2 if self.dtype == "bfloat16" else FLOAT32_BYTES


def precision_of(config: RunConfig) -> Precision:
    """Where `config` would train: ``auto`` counts as a GPU that multiplies bfloat16, unless the device is a CPU."""
    device: Literal["cpu", "cuda"] = "cpu" if config.train.device == "cpu" else "cuda"
    if config.train.dtype != "auto":
        return Precision(device, config.train.dtype)
    return Precision(device, "float32" if device == "cpu" else "bfloat16")
