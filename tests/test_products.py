"""Products by oneDNN in place of MKL's: the same numbers, on the CPUs that gain by it, and nothing else changed."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library

from colakit import build, products
from colakit.bench.peaks import matmul_flops_per_s
from tests.bench.tiny import CPU, tiny_config

M, K, N = 192, 160, 144
"""Enough multiplications for oneDNN."""


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Products are oneDNN's, whatever the CPU; the list tells of which sizes there were."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    made: list[tuple[int, ...]] = []
    honest = products._product

    def counted(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        made.append((*a.shape, b.shape[-1]))
        return honest(a, b, bias)

    monkeypatch.setattr(products, "_product", counted)
    library = products.override(Library("aten", "IMPL"))
    yield made
    library._destroy()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(ours: Tensor, exact: Tensor) -> None:
    """Float32 sums of K products in any order: some roundings of numbers of size √K."""
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "columns of a wider one": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "rows of a taller one, transposed": lambda x: torch.cat([x.mT, x.mT], dim=-1)[..., : x.shape[-2]].mT,
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_products_of_any_layout(by_onednn: list[tuple[int, ...]], left: str, right: str) -> None:
    a, b = LAYOUTS[left](random(M, K)), LAYOUTS[right](random(K, N))
    close(a @ b, a.double() @ b.double())
    assert by_onednn == [(M, K, N)]


@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (1, 0.5), (-2, 1), (0, 3)])
@pytest.mark.parametrize("added", ["bias", "constant", "one", "column", "matrix"])
def test_what_is_added(by_onednn: list[tuple[int, ...]], added: str, beta: float, alpha: float) -> None:
    a, b = random(M, K), random(K, N)
    c = {
        "bias": random(N),
        "constant": random(1).expand(N),
        "one": random(1),
        "column": random(M, 1),
        "matrix": random(M, N),
    }[added]
    if beta == 0:
        c = torch.full_like(c, torch.nan)  # it does not count
    exact = alpha * (a.double() @ b.double()) + (beta * c.double() if beta else 0.0)
    close(torch.addmm(c, a, b, beta=beta, alpha=alpha), exact)
    out = torch.empty(M, N)
    assert torch.addmm(c, a, b, beta=beta, alpha=alpha, out=out) is out
    close(out, exact)
    assert by_onednn == [(M, K, N)] * 2


def test_a_sum_may_be_written_over_what_is_added(by_onednn: list[tuple[int, ...]]) -> None:
    total, a, b = random(M, N), random(M, K), random(K, N)
    exact = total.double() + a.double() @ b.double()
    torch.addmm(total, a, b, out=total)
    close(total, exact)
    assert by_onednn


def test_stacks_of_matrices(by_onednn: list[tuple[int, ...]]) -> None:
    a, b, c = random(3, M, K), random(3, K, N), random(3, M, N)
    exact = a.double() @ b.double()
    close(torch.bmm(a, b), exact)
    close(torch.bmm(a, b, out=torch.empty(3, M, N)), exact)
    close(torch.baddbmm(c, a, b, beta=2.0, alpha=-1.0), 2 * c.double() - exact)
    close(torch.baddbmm(c, a, b, out=torch.empty(3, M, N)), c.double() + exact)
    assert by_onednn == [(3, M, K, N), *[(M, K, N)] * 3] * 4


def test_a_matrix_may_be_added_to_a_stack(by_onednn: list[tuple[int, ...]]) -> None:
    a, b, c = random(3, M, M), random(3, M, N), random(M, N)
    close(torch.baddbmm(c, a, b), c.double() + a.double() @ b.double())
    assert by_onednn


def test_gradients_and_biases_of_a_linear_layer(by_onednn: list[tuple[int, ...]]) -> None:
    x, w, b, by_out = random(2, M, K), random(N, K), random(N), random(2, M, N)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    got = torch.autograd.grad(F.linear(*inputs), inputs, by_out)
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, w, b)]
    exact = torch.autograd.grad(F.linear(*exact_inputs), exact_inputs, by_out.double())
    for ours, other in zip(got, exact, strict=True):
        close(ours, other)
    assert len(by_onednn) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_small_ones_and_odd_results_stay_where_they_were(
    by_onednn: list[tuple[int, ...]], dtype: torch.dtype
) -> None:
    a, b = random(M, K).to(dtype), random(K, N).to(dtype)
    assert (a @ b).dtype == torch.addmm(b[:1], a, b, beta=2).dtype == dtype
    small = torch.mm(random(4, 5), random(5, 6))
    close(small, random(4, 5).double() @ random(5, 6).double())
    grown = torch.mm(a.float(), b.float(), out=torch.empty(0))
    close(grown, a.float().double() @ b.float().double())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        random(M, K) @ random(N, K)
    assert by_onednn == []


def test_the_same_bits_each_time(by_onednn: list[tuple[int, ...]]) -> None:
    a, b = random(M, K), random(K, N)
    assert torch.equal(a @ b, a.clone() @ b.clone())
    assert by_onednn


@pytest.mark.parametrize(
    ("vendor", "capability", "chosen"),
    [
        ("AuthenticAMD", "AVX512", "oneDNN"),
        ("AuthenticAMD", "AVX2", "MKL"),
        ("GenuineIntel", "AVX512", "MKL"),
        (None, "AVX512", "MKL"),
    ],
)
def test_it_is_for_cpus_whose_instructions_mkl_leaves_unused(
    monkeypatch: pytest.MonkeyPatch, vendor: str | None, capability: str, chosen: str
) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("this PyTorch has no MKL")
    monkeypatch.setattr(products, "_cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    overridden: list[bool] = []
    monkeypatch.setattr(products, "_overridden", lambda: overridden.append(True))
    assert products.library() == chosen
    products.use_fastest()
    assert bool(overridden) == (chosen == "oneDNN")


def test_models_and_the_peak_they_are_measured_by_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(products, "use_fastest", lambda: asked.append(True))
    build.build_model(tiny_config(), CPU)
    assert len(asked) == 1
    matmul_flops_per_s(CPU.device, torch.float32, side=8)
    assert len(asked) == 2
