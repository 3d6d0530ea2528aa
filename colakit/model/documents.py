"""Where the documents of packed sequences begin and end, for a model in which they do not attend to each other.

Everything that asks for values is worked out once, on the host: a forward pass on CUDA waits for none of it.

Shapes: B batch, T time, N spans in all rows, E head_dim. A span is a document, or the part of one that its row holds.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from colakit.model.rope import Angles


@dataclass(frozen=True)
class Documents:
    """The spans of a batch: tensors for kernels and tables, and the same lengths as plain numbers."""

    positions: Tensor
    """Each token's position in its span, [B, T] int64: 0 where one begins, and so at the start of each row."""
    cu_seqlens: Tensor
    """Where spans begin in the B·T tokens taken row by row, and the end: [N + 1] int32, what varlen kernels read."""
    lengths: tuple[tuple[int, ...], ...]
    """The tokens of each span, row by row; those of a row sum to T."""
    max_len: int
    """Tokens of the longest span."""

    @classmethod
    def of(cls, starts: Tensor) -> "Documents":
        """The spans of rows whose documents begin where `starts`, [B, T] bool on the CPU, is True.

        A row's first token begins a span whatever it says there. Raises ValueError for another dtype, shape or device.
        """
        if starts.dtype != torch.bool or starts.ndim != 2 or not starts.numel() or starts.device.type != "cpu":
            found = f"{list(starts.shape)} {starts.dtype} on {starts.device}"
            raise ValueError(f"starts must be [B, T] torch.bool on the CPU and not empty, not {found}")
        begins = starts.clone()
        begins[:, 0] = True
        index = torch.arange(starts.shape[1]).expand_as(starts)
        begun_at = torch.where(begins, index, 0).cummax(dim=1).values  # [B, T]
        ends = torch.tensor([starts.numel()])
        bounds = torch.cat([begins.flatten().nonzero().flatten(), ends])  # [N + 1]
        spans = bounds.diff()
        lengths = tuple(tuple(row.tolist()) for row in torch.split(spans, begins.sum(dim=1).tolist()))
        return cls(index - begun_at, bounds.to(torch.int32), lengths, int(spans.max()))

    def to(self, device: torch.device | str) -> "Documents":
        """The same with its tensors on `device`."""
        return replace(self, positions=self.positions.to(device), cu_seqlens=self.cu_seqlens.to(device))


@dataclass(frozen=True)
class Packed:
    """What every block of one forward pass over isolated documents reads."""

    documents: Documents
    angles: Angles
    """Of the documents' positions, gathered once for all blocks: cosines and sines [B, 1, T, E/2]."""
