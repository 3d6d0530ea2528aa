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
    nproc: int = 1
    """Processes that share the batch, by the configuration's ``parallel.strategy``."""
    threads: int | None = None
    """Of each process, on a CPU; None: torch's own choice."""

    @property
    def name(self) -> str:
        """Whose it is, and how."""
        name = self.peer or self.config.preset
        shared = f", {self.config.parallel.strategy} x {self.nproc}" if self.nproc > 1 else ""
        return f"{name}{shared}, compiled" if self.compiled else f"{name}{shared}"

    @property
    def own_batch_size(self) -> int:
        """Sequences of a step that one process has."""
        return self.config.train.batch_size // self.nproc
