"""Units used in names and reports: one place for each conversion."""

import math

GIB = 2**30
NATS_PER_BIT = math.log(2.0)


def gib(n_bytes: float) -> float:
    """Bytes as GiB (2**30 bytes)."""
    return n_bytes / GIB


def human_count(n: float) -> str:
    """A count in three significant digits with its suffix: 88_368_000 → ``88.4M``."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g}{suffix}" if abs(n) / size < 1000 else f"{n / size:,.0f}{suffix}"
    return f"{n:.0f}"
