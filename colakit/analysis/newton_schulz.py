"""What Newton–Schulz costs in its two forms, and which to take: one rule for the iteration and for what counts it.

Shapes: M the shorter and K the longer side of a matrix. A multiply and an add count as two operations.
"""

import itertools
import math
from typing import Literal

Form = Literal["textbook", "gram"]

_LARGEST_GROWTH = 2.0**15

_LEAST_ASPECT = 4 / 3
"""Squarer random matrices have singular values near 0, which the Gram form gives in float32 to 1.5e-5 of the whole
instead of 3e-6."""


def passes(steps: int, a: float) -> tuple[int, ...]:
    """How `steps` iterations are cut into passes, each of which forms the Gram matrix R = X·Xᵀ anew.

    Where R's eigenvalue is a rounding error ε·‖R‖, of either sign, an iteration multiplies it by a², since its
    polynomial is a at 0; X itself would only grow by a. A negative one is never brought back to 1 and ends in
    infinity. Below 2^15·ε, 2e-3 in float32, it is harmless: for the usual a of 3.44 that is up to 5 iterations a pass.
    In bfloat16, whose ε is 65,536 times as large, a pass could have but one, which is the textbook form.
    """
    longest = 1 + max(0, int(math.log(_LARGEST_GROWTH) / (2.0 * math.log(a)))) if a > 1.0 else steps
    full, rest = divmod(steps, longest)
    return (longest,) * full + ((rest,) if rest else ())


def textbook_flops(short: int, long: int, steps: int) -> int:
    """Per iteration X·Xᵀ, its square, and their product with X."""
    return steps * (4 * short * short * long + 2 * short**3)


def strips(m: int) -> tuple[tuple[int, int], ...]:
    """Rows from, to of the strips in which a symmetric product M × M is formed, each from the diagonal on.

    At least 128 rows: thinner ones multiply slower than they save.
    """
    n = max(1, m // 128)
    edges = [m * i // n for i in range(n + 1)]
    return tuple(itertools.pairwise(edges))


def gram_flops(short: int, long: int, steps: int, a: float) -> int:
    """Per pass X·Xᵀ and the product with X; four products M × M an iteration, less one in a first, two in a last.

    All but the product with X are symmetric, and formed in `strips`.
    """
    entries = sum((high - low) * (short - low) for low, high in strips(short))
    parts = passes(steps, a)
    squares = sum(4 * n - 3 for n in parts)
    return 2 * entries * (len(parts) * long + squares * short) + len(parts) * 2 * short * short * long


def cheaper_form(short: int, long: int, steps: int, a: float) -> Form:
    """The one with fewer operations; the textbook's where they tie, and for matrices that are nearly square."""
    if long < _LEAST_ASPECT * short:
        return "textbook"
    return "gram" if gram_flops(short, long, steps, a) < textbook_flops(short, long, steps) else "textbook"


def newton_schulz_flops(short: int, long: int, steps: int, a: float, form: Form) -> int:
    """Operations of one matrix in this form."""
    return gram_flops(short, long, steps, a) if form == "gram" else textbook_flops(short, long, steps)
