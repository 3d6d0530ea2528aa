"""Who holds and updates what where several processes share a run: pure functions of sizes and costs.

Every process computes the same answer, so that none has to be told.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """Rows `start` … `stop` − 1 of tensor `index`."""

    index: int
    start: int
    stop: int


def balanced(costs: Sequence[float], n: int) -> list[int]:
    """For each of `costs` its owner, 0 … n − 1: the dearest first, each to who has least so far (Graham's LPT)."""
    loads = [0.0] * n
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[i] = min(range(n), key=lambda rank: (loads[rank], rank))
        loads[owners[i]] += costs[i]
    return owners


def poured(rows: Sequence[int], row_bytes: Sequence[int], held: Sequence[int]) -> list[list[Cut]]:
    """Divide tensors of so many `rows`, each row of so many bytes, among processes that hold `held` bytes already.

    Each gets what brings all to one level, as water does: a stretch of the tensors laid end to end, cut between rows.
    → the cuts of each process. Who holds more than the level gets nothing.
    """
    shares = _filled(sum(n * size for n, size in zip(rows, row_bytes, strict=True)), held)
    cuts: list[list[Cut]] = [[] for _ in held]
    rank, left = 0, shares[0]
    for index, (n_rows, size) in enumerate(zip(rows, row_bytes, strict=True)):
        start = 0
        while start < n_rows:
            is_last = rank == len(held) - 1
            fitting = n_rows - start if is_last else min(n_rows - start, round(left / size))
            if fitting > 0:
                cuts[rank].append(Cut(index, start, start + fitting))
                start += fitting
                left -= fitting * size
            if start < n_rows:
                rank += 1
                left += shares[rank]
    return cuts


def _filled(amount: int, held: Sequence[int]) -> list[float]:
    """How much of `amount` each gets so that all come as near to one level as they can."""
    lowest_first = sorted(range(len(held)), key=lambda rank: (held[rank], rank))
    level, below = 0.0, 0
    for n, rank in enumerate(lowest_first, 1):
        below += held[rank]
        level = (amount + below) / n
        if n == len(held) or level <= held[lowest_first[n]]:
            break
    return [max(0.0, level - h) for h in held]


def chunk(rows: int, n: int, rank: int) -> tuple[int, int]:
    """The rows of one process where `rows` are divided as `torch.chunk` and FSDP2 divide them: [start, stop)."""
    size = -(-rows // n)
    return min(rank * size, rows), min((rank + 1) * size, rows)
