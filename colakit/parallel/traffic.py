"""What processes send each other in a step, and for how long they do: seen where the collectives are asked for.

Bytes are counted as the usual algorithms send them, by which all send alike: rings for sums and gathers; what one has
and all need goes N − 1 times, shared by the N processes. Only tensors of the training device count: what goes over the
CPU beside them, a few numbers, does not.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch does not tell of it
from torch.autograd.profiler_util import FunctionEvent
from torch.utils._python_dispatch import TorchDispatchMode

_NEGLIGIBLE = 64
"""Bytes: sums of losses and norms."""

Arguments = Sequence[Any]  # Any: an op's own


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Inside, counts in `sent` the bytes that this one of `n` processes sends, by the kind of collective."""

    def __init__(self, rank: int, n: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rank, self._n = rank, n
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Arguments = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # Any: an op's own
        if func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, op: str, args: Arguments) -> None:
        if op == "alltoall_base_":
            _, sent, _, _, to_each = args[:5]
            rows = [n for rank, n in enumerate(to_each) if rank != self._rank]
            self.sent["all-to-all"] += sum(rows) * sent[:1].nbytes
        elif op in _RULES:
            name, argument, times = _RULES[op]
            size = _bytes(args[argument])
            if size > _NEGLIGIBLE:
                self.sent[name] += times * size * (self._n - 1) // self._n


_RULES = {
    "allreduce_": ("all-reduce", 0, 2),
    "reduce_": ("reduce", 0, 1),
    "broadcast_": ("broadcast", 0, 1),
    "_allgather_base_": ("all-gather", 0, 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1, 1),
}
"""By op: its name, the argument that is as large as the whole, and how often that goes round the ring."""


def _bytes(tensors: Tensor | Iterable[Tensor]) -> int:
    return tensors.nbytes if isinstance(tensors, Tensor) else sum(t.nbytes for t in tensors)


def communicating_ms(events: Iterable[FunctionEvent], *, on_cuda: bool) -> float:
    """How long any collective was under way, of a profile's `events`; two at once count once.

    On CUDA NCCL's kernels, else gloo's work. The wait for others who are not there yet is part of it.
    """
    mark = "nccl" if on_cuda else "gloo:"
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if (event.device_type == DeviceType.CUDA) == on_cuda and event.name.startswith(mark)
    )
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1000.0
