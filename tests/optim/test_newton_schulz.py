"""Newton–Schulz orthogonalisation against one matrix at a time in float64.

Tolerance: in float64 the batched and the slow iteration differ by the order of sums, 1e-15 each, which the Gram form
enlarges by at most 2^15 in a pass: 1e-10 is ample. In float32 the same gives 6e-8 · 2^15 ≈ 2e-3 where singular values
are 0, and of the order of a rounding where none is small.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from colakit.analysis.newton_schulz import cheaper_form, gram_flops, passes, strips, textbook_flops
from colakit.config.schema import OptimConfig
from colakit.optim import newton_schulz
from colakit.optim.newton_schulz import (
    compute_dtype,
    flops,
    gram,
    normalize_,
    orthogonalize,
    symmetric_product,
    textbook,
)
from tests.oracles import reference as ref

TIGHT = {"rtol": 0.0, "atol": 1e-10}
SHAPES = [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1), (1, 1), (3, 20), (20, 3)]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
OTHERS = (2.0, -1.5, 0.5)

Form = Callable[[Tensor, tuple[float, float, float], int], Tensor]
FORMS = pytest.mark.parametrize("form", [textbook, gram])


def matrices(n: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(values: Tensor, columns: int) -> Tensor:
    """A matrix with these singular values, [1, M, K]."""
    m = len(values)
    u, _ = torch.linalg.qr(matrices(1, m, m)[0])
    v, _ = torch.linalg.qr(matrices(1, columns, m, seed=1)[0])
    return (u @ values.double().diag() @ v.T)[None]


def distance(x: Tensor, to: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((x.double() - to).norm() / to.norm())


@pytest.mark.parametrize("coefficients", [COEFFICIENTS, OTHERS])
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 10])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@FORMS
def test_a_batch_is_eq_14_and_15_for_each_matrix(
    form: Form, rows: int, columns: int, steps: int, coefficients: tuple[float, float, float]
) -> None:
    x = matrices(3, rows, columns)
    expected = torch.stack([ref.newton_schulz(m, steps, coefficients) for m in x])
    torch.testing.assert_close(form(normalize_(x.clone()), coefficients, steps), expected, **TIGHT)
    torch.testing.assert_close(orthogonalize(x.clone(), coefficients, steps), expected, **TIGHT)


def test_the_paper_s_coefficients_are_the_default() -> None:
    """Eq. 15."""
    assert OptimConfig().ns_coefficients == COEFFICIENTS == ref.JORDAN


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_batch_is_the_same_one_by_one(rows: int, columns: int) -> None:
    x = matrices(4, rows, columns) * torch.tensor([1.0, 1e-6, 1e6, 3.0], dtype=torch.float64)[:, None, None]
    one_by_one = torch.cat([orthogonalize(m[None].clone(), COEFFICIENTS, 5) for m in x])
    torch.testing.assert_close(orthogonalize(x, COEFFICIENTS, 5), one_by_one, **TIGHT)


@FORMS
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_tall_matrix_is_the_transpose_of_a_wide_one(form: Form, rows: int, columns: int) -> None:
    x = normalize_(matrices(2, rows, columns))
    tall = form(x.mT.contiguous(), COEFFICIENTS, 5)
    assert tall.is_contiguous()
    torch.testing.assert_close(tall, form(x, COEFFICIENTS, 5).mT, **TIGHT)


# What it costs


@pytest.mark.parametrize("steps", [1, 4, 5, 7, 10])
@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (6, 7), (10, 15), (300, 400), (399, 300), (400, 257)])
def test_the_cheaper_form_is_taken_and_counted(shape: tuple[int, int], steps: int) -> None:
    counts: list[int] = []
    for form in (textbook, gram, orthogonalize):
        with FlopCounterMode(display=False) as counter:
            form(matrices(3, *shape), COEFFICIENTS, steps)  # type: ignore[operator]
        counts.append(counter.get_total_flops())
    short, long = sorted(shape)
    formulas = textbook_flops(short, long, steps), gram_flops(short, long, steps, COEFFICIENTS[0])
    taken = min(formulas) if 3 * long >= 4 * short else formulas[0]  # squarer ones lose digits in the Gram form
    assert counts == [3 * formulas[0], 3 * formulas[1], 3 * taken]
    assert flops(shape, torch.float64, COEFFICIENTS, steps) == taken
    assert flops(shape, torch.bfloat16, COEFFICIENTS, steps) == formulas[0]


def test_what_the_gram_form_saves_at_the_shapes_of_cola() -> None:
    """1.8 times at an aspect of 4, 3.7 at 21, nothing at 1.5."""
    ratios = [textbook_flops(192, k, 5) / gram_flops(192, k, 5, COEFFICIENTS[0]) for k in (768, 4096, 288)]
    assert ratios == pytest.approx([1.8, 3.659, 1.0], abs=1e-3)
    assert [cheaper_form(192, k, 5, COEFFICIENTS[0]) for k in (768, 4096, 288)] == ["gram", "gram", "textbook"]


@pytest.mark.parametrize(
    ("steps", "a", "expected"),
    [
        (5, 3.4445, (5,)),
        (6, 3.4445, (5, 1)),
        (10, 3.4445, (5, 5)),
        (5, 4.0, (4, 1)),
        (3, 200.0, (1, 1, 1)),
        (20, 1.0, (20,)),
        (20, 1.01, (20,)),
    ],
)
def test_a_pass_ends_before_a_rounding_error_has_grown(steps: int, a: float, expected: tuple[int, ...]) -> None:
    assert passes(steps, a) == expected


@pytest.mark.parametrize(
    ("m", "expected"), [(1, 1), (192, 1), (255, 1), (256, 2), (383, 2), (384, 3), (512, 4), (768, 6)]
)
def test_strips_of_128_rows_or_more(m: int, expected: int) -> None:
    edges = strips(m)
    assert len(edges) == expected
    assert [row for low, high in edges for row in range(low, high)] == list(range(m))


# How close it comes.


def hard(rows: int, columns: int) -> dict[str, Tensor]:
    """Random, ill-conditioned and rank-deficient matrices of one shape."""
    short = min(rows, columns)
    rank_8 = matrices(1, rows, short // 8) @ matrices(1, short // 8, columns, seed=1)
    spike = torch.full((short,), 1e-4)
    spike[0] = 1.0
    return {
        "random": matrices(2, rows, columns),
        "condition 1e5": spectrum(torch.logspace(0, -5, short), columns),
        "spike": spectrum(spike, columns),
        "rank 1": matrices(1, rows, 1) @ matrices(1, 1, columns, seed=1),
        "rank m / 8": rank_8,
    }


@pytest.mark.parametrize(("rows", "columns"), [(192, 768), (384, 768), (512, 2048), (257, 400)])
def test_five_steps_in_float32_are_close_to_float64(rows: int, columns: int) -> None:
    """At shapes of the presets; strips and long sums of squares would show. Twice what was measured."""
    bounds = {"random": 6e-6, "condition 1e5": 3e-4, "spike": 1e-3, "rank 1": 1.2e-3, "rank m / 8": 4e-4}
    for kind, x in hard(rows, columns).items():
        expected = orthogonalize(x.clone(), COEFFICIENTS, 5)
        found = distance(gram(normalize_(x.float()), COEFFICIENTS, 5), expected)
        in_bfloat16 = distance(textbook(normalize_(x.float()).bfloat16(), COEFFICIENTS, 5).float(), expected)
        assert found < bounds[kind], kind
        assert found < in_bfloat16 / 10, kind


def test_a_long_sum_of_squares_is_exact() -> None:
    """One float32 sum over a million entries would be off by 1e-5."""
    x = matrices(1, 512, 2048).float()
    norm = float(normalize_(x.clone()).double().norm())
    assert norm == pytest.approx(1.0, abs=5e-7)


def test_a_symmetric_product_is_symmetric_to_the_last_bit() -> None:
    x = matrices(2, 400, 30).float()
    product = symmetric_product(x, x.mT)
    assert torch.equal(product, product.mT)
    torch.testing.assert_close(product.double(), x.double() @ x.double().mT, rtol=0.0, atol=1e-4)


HARD = {
    "condition 1e3": spectrum(torch.logspace(0, -3, 48), 192),
    "condition 1e5": spectrum(torch.logspace(0, -5, 48), 192),
    "condition 1e8": spectrum(torch.logspace(0, -8, 48), 192),
    "rank 5": matrices(1, 48, 5) @ matrices(1, 5, 192, seed=1),
    "rank 5 and noise": matrices(1, 48, 5) @ matrices(1, 5, 192, seed=1) + 1e-6 * matrices(1, 48, 192, seed=2),
    "rank 24": matrices(1, 48, 24) @ matrices(1, 24, 192, seed=1),
}


@pytest.mark.parametrize("steps", [5, 7, 10])
@pytest.mark.parametrize("kind", HARD)
def test_it_is_closer_to_float64_than_the_textbook_in_bfloat16(kind: str, steps: int) -> None:
    x = HARD[kind]
    expected = orthogonalize(x.clone(), COEFFICIENTS, steps)
    found = distance(orthogonalize(x.float(), COEFFICIENTS, steps), expected)
    assert found < distance(textbook(normalize_(x.float()).bfloat16(), COEFFICIENTS, steps).float(), expected) / 10
    if steps == 5:
        assert found < 8e-4


def test_without_passes_ten_iterations_of_the_gram_form_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why there are passes: an eigenvalue of −6e-8 grows 12 times an iteration, and nothing brings it back."""
    x = normalize_(HARD["rank 5"].float())
    assert bool(torch.isfinite(gram(x, COEFFICIENTS, 10)).all())
    monkeypatch.setattr(newton_schulz, "passes", lambda steps, _a: (steps,))
    assert float(gram(x, COEFFICIENTS, 10).abs().max()) > 1e3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(16, 24), (24, 16), (12, 40)])
def test_five_steps_bring_singular_values_near_1(
    rows: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newton_schulz, "compute_dtype", lambda _: dtype)
    out = orthogonalize(matrices(5, rows, columns).float(), COEFFICIENTS, 5)
    assert out.dtype == torch.float32  # what it was given, whatever it iterated in
    singular = torch.linalg.svdvals(out)
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3


def test_the_coefficients_bring_values_above_a_hundredth_to_about_1() -> None:
    """On scalars: the band that singular values of a random matrix's update lie in, measured above."""
    a, b, c = COEFFICIENTS
    s = torch.linspace(0.01, 1.0, 20_001, dtype=torch.float64)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    band = float(s.min()), float(s.max())
    assert band == pytest.approx((0.68, 1.13), abs=0.02)
    x = spectrum(torch.linspace(1.0, 0.1, 20), 50)  # at least 0.02 of the Frobenius norm
    singular = torch.linalg.svdvals(orthogonalize(x.float(), COEFFICIENTS, 5))
    assert float(singular.min()) > band[0] - 1e-4
    assert float(singular.max()) < band[1] + 1e-4


@FORMS
def test_the_direction_of_singular_vectors_stays(form: Form) -> None:
    x = matrices(1, 4, 7)[0]
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.T @ form(normalize_(x[None].clone()), COEFFICIENTS, 5)[0] @ vh.T
    torch.testing.assert_close(inner - inner.diagonal().diag(), torch.zeros(4, 4).double(), **TIGHT)
    assert float(inner.diagonal().min()) > 0.6


@pytest.mark.parametrize("columns", [7, 40])  # in either form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_zero_matrix_stays_zero_beside_others(
    dtype: torch.dtype, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newton_schulz, "compute_dtype", lambda _: dtype)
    x = matrices(3, 4, columns).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x[1] = 0.0
    out = orthogonalize(x, COEFFICIENTS, 5)
    assert not out[1].any()
    assert bool(torch.isfinite(out).all())
    assert bool(out[0].any())


@FORMS
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_deficient_matrix_gives_no_nan(form: Form, rank: int, steps: int) -> None:
    x = (matrices(2, 6, rank) @ matrices(2, rank, 9, seed=1)).float()
    out = form(normalize_(x), COEFFICIENTS, steps)
    assert bool(torch.isfinite(out).all())
    singular = torch.linalg.svdvals(out)
    assert float(singular[:, :rank].min()) > 0.6
    if steps == 5:  # in 20, even a singular value of 1e-8, a rounding error, has grown to 1
        assert float(singular[:, rank:].max()) < 0.1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(exponent=st.integers(-37, 37), columns=st.sampled_from([7, 40]))
def test_scale_does_not_matter_at_any_size_that_float32_holds(exponent: int, columns: int) -> None:
    """The claim in `normalize_`: the floor of the norm changes no matrix of representable size."""
    x = matrices(2, 4, columns).float().clamp(-3, 3)
    scaled = x * 10.0**exponent
    expected = orthogonalize(x, COEFFICIENTS, 5)
    torch.testing.assert_close(orthogonalize(scaled, COEFFICIENTS, 5), expected, rtol=0.0, atol=1e-3)


def test_a_cpu_multiplies_in_float32_or_float64() -> None:
    types = {torch.float64: torch.float64}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert compute_dtype(torch.zeros(1, dtype=dtype)) == types.get(dtype, torch.float32)
        assert orthogonalize(torch.ones(1, 2, 3, dtype=dtype), COEFFICIENTS, 5).dtype == dtype
