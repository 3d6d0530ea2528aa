"""Who is measured."""

from dataclasses import dataclass
from typing import Literal

from colakit.config.schema import RunConfig

PeerName = Literal["hf-llama", "torch-muon"]
"""transformers' LlamaForCausalLM of the same shape; the same model with torch.optim.Muon."""


@dataclass(frozen=True)
class Contestant:
    """A configuration, as colakit runs it or as a peer does."""

    config: RunConfig
    compiled: bool = False
    peer: PeerName | None = None

    @property
    def name(self) -> str:
        """Whose it is, and how."""
        name = self.peer or self.config.preset
        return f"{name}, compiled" if self.compiled else name
