"""Newton–Schulz orthogonalisation against one matrix at a time in float64.

Tolerance: in float64 the batched and the slow iteration differ by the order of sums, 1e-15 each, which five steps can
enlarge by at most 3.4445⁵ ≈ 500: 1e-11 is ample. In float32 the same gives 6e-8·500 ≈ 3e-5.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from colakit.optim.newton_schulz import COEFFICIENTS, compute_dtype, orthogonalize
from tests.oracles import reference as ref

TIGHT = {"rtol": 0.0, "atol": 1e-11}
SHAPES = [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1), (1, 1)]


def matrices(n: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 5, 10])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_batch_is_eq_14_and_15_for_each_matrix(rows: int, columns: int, steps: int) -> None:
    x = matrices(3, rows, columns)
    expected = torch.stack([ref.newton_schulz(m, steps) for m in x])
    torch.testing.assert_close(orthogonalize(x, steps, torch.float64), expected, **TIGHT)
    in_float32 = orthogonalize(x.float(), steps, torch.float32)
    assert in_float32.dtype == torch.float32
    if steps <= 5:
        torch.testing.assert_close(in_float32.double(), expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_batch_is_the_same_one_by_one(rows: int, columns: int) -> None:
    x = matrices(4, rows, columns) * torch.tensor([1.0, 1e-6, 1e6, 3.0], dtype=torch.float64)[:, None, None]
    one_by_one = torch.cat([orthogonalize(m[None], 5, torch.float64) for m in x])
    torch.testing.assert_close(orthogonalize(x, 5, torch.float64), one_by_one, **TIGHT)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_tall_matrix_is_the_transpose_of_a_wide_one(rows: int, columns: int) -> None:
    x = matrices(2, rows, columns)
    torch.testing.assert_close(
        orthogonalize(x.mT.contiguous(), 5, torch.float64), orthogonalize(x, 5, torch.float64).mT, **TIGHT
    )


def test_a_tall_matrix_costs_what_its_transpose_does() -> None:
    """It is iterated on its smaller Gram side."""
    flops = []
    for x in (matrices(2, 4, 30), matrices(2, 30, 4)):
        with FlopCounterMode(display=False) as counter:
            orthogonalize(x, 5, torch.float64)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(16, 24), (24, 16), (12, 40)])
def test_five_steps_bring_singular_values_near_1(rows: int, columns: int, dtype: torch.dtype) -> None:
    out = orthogonalize(matrices(5, rows, columns).float(), 5, dtype)
    assert out.dtype == torch.float32  # what it was given, whatever it iterated in
    singular = torch.linalg.svdvals(out)
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3


def test_coefficients_bring_values_above_a_hundredth_to_about_1() -> None:
    """The claim beside `COEFFICIENTS`, on scalars."""
    assert COEFFICIENTS == (3.4445, -4.7750, 2.0315)
    a, b, c = COEFFICIENTS
    s = torch.linspace(0.01, 1.0, 20_001, dtype=torch.float64)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert float(s.min()) > 0.65
    assert float(s.max()) < 1.2


def test_the_direction_of_singular_vectors_stays() -> None:
    x = matrices(1, 4, 7)[0]
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.T @ orthogonalize(x[None], 5, torch.float64)[0] @ vh.T
    torch.testing.assert_close(inner - inner.diagonal().diag(), torch.zeros(4, 4).double(), **TIGHT)
    assert float(inner.diagonal().min()) > 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_zero_matrix_stays_zero_beside_others(dtype: torch.dtype) -> None:
    x = matrices(3, 4, 7).float()
    x[1] = 0.0
    out = orthogonalize(x, 5, dtype)
    assert not out[1].any()
    assert bool(torch.isfinite(out).all())
    assert bool(out[0].any())


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_deficient_matrix_gives_no_nan(rank: int, steps: int) -> None:
    x = (matrices(2, 6, rank) @ matrices(2, rank, 9, seed=1)).float()
    out = orthogonalize(x, steps, torch.float32)
    assert bool(torch.isfinite(out).all())
    singular = torch.linalg.svdvals(out)
    assert float(singular[:, :rank].min()) > 0.6
    if steps == 5:  # in 20, even a singular value of 1e-8, a rounding error, has grown to 1
        assert float(singular[:, rank:].max()) < 0.1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(exponent=st.integers(-37, 37))
def test_scale_does_not_matter_at_any_size_that_float32_holds(exponent: int) -> None:
    """The claim in `orthogonalize`: the floor of the norm changes no matrix of representable size."""
    x = matrices(2, 4, 7).float().clamp(-3, 3)
    scaled = x * 10.0**exponent
    expected = orthogonalize(x, 5, torch.float32)
    torch.testing.assert_close(orthogonalize(scaled, 5, torch.float32), expected, rtol=0.0, atol=1e-3)


def test_the_input_is_left_alone() -> None:
    x = matrices(2, 4, 7)
    before = x.clone()
    orthogonalize(x, 5, torch.float64)
    assert torch.equal(x, before)


def test_cpu_iterates_in_float32() -> None:
    assert compute_dtype(torch.device("cpu")) == torch.float32
