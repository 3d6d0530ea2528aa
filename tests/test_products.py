"""Products by oneDNN in place of MKL's: the same numbers, on the CPUs that gain by it, and nothing else changed."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Products are oneDNN's, whatever the CPU; the list tells which were."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    suited: list[bool] = []
    honest = products._suits

    def suits(*operands: Tensor, **options: object) -> bool:
        suited.append(honest(*operands, **options))  # type: ignore[arg-type]
        return suited[-1]

    monkeypatch.setattr(products, "_suits", suits)
    monkeypatch.setattr(products, "_overridden", lambda: None)  # not twice
    library = products.override(Library("aten", "IMPL"))
    yield suited
    library._destroy()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(ours: Tensor, exact: Tensor) -> None:
    """Float32 sums of K products in any order: some roundings of numbers of size √K."""
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


def exact(a: Tensor, b: Tensor) -> Tensor:
    """In float64, not by PyTorch."""
    return torch.from_numpy(a.numpy().astype("f8") @ b.numpy().astype("f8"))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "columns of a wider one": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "rows of a taller one, transposed": lambda x: torch.cat([x.mT, x.mT], dim=-1)[..., : x.shape[-2]].mT,
    "one row, expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_products_of_any_layout(by_onednn: list[bool], left: str, right: str) -> None:
    a, b = LAYOUTS[left](random(M, K)), LAYOUTS[right](random(K, N))
    close(a @ b, exact(a, b))
    out = torch.empty(N, M).t()
    assert torch.mm(a, b, out=out) is out
    close(out, exact(a, b))
    assert all(by_onednn)


@pytest.mark.parametrize("bias", [random(N), random(1).expand(N), random(2 * N)[::2]])
def test_a_bias(by_onednn: list[bool], bias: Tensor) -> None:
    a, b = random(M, K), random(K, N)
    wanted = bias.double() + exact(a, b)
    close(torch.addmm(bias, a, b), wanted)
    close(torch.addmm(bias, a, b, out=torch.empty(M, N)), wanted)
    assert all(by_onednn)


def test_gradients_and_biases_of_a_linear_layer(by_onednn: list[bool]) -> None:
    x, w, b, by_out = random(2, M, K), random(N, K), random(N), random(2, M, N)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    got = torch.autograd.grad(F.linear(*inputs), inputs, by_out)
    in_double = [t.detach().double().requires_grad_() for t in (x, w, b)]
    wanted = torch.autograd.grad(F.linear(*in_double), in_double, by_out.double())
    for ours, other in zip(got, wanted, strict=True):
        close(ours, other)
    assert sum(by_onednn) == 3


A, B, C = random(M, K), random(K, N), random(M, N)
OTHERS: dict[str, Callable[[], Tensor]] = {
    "a matrix added": lambda: torch.addmm(C, A, B),
    "a matrix added in place": lambda: torch.addmm(C.clone(), A, B, out=C.clone()),
    "beta": lambda: torch.addmm(random(N), A, B, beta=-2),
    "alpha": lambda: torch.addmm(random(N), A, B, alpha=0.5),
    "no alpha": lambda: torch.addmm(random(N), A * torch.inf, B, alpha=0),
    "nothing of what is added": lambda: torch.addmm(random(N) * torch.nan, A, B, beta=0),
    "one number": lambda: torch.addmm(random(1), A, B),
    "float64": lambda: torch.addmm(random(N).double(), A.double(), B.double(), beta=3),
    "bfloat16": lambda: torch.addmm(random(N).bfloat16(), A.bfloat16(), B.bfloat16(), alpha=3),
    "small": lambda: torch.addmm(random(6), random(4, 5), random(5, 6), beta=3, alpha=2),
    "few rows": lambda: random(2, 2048) @ random(2048, 2048),
    "few columns": lambda: random(2048, 2048) @ random(2048, 2),
    "empty": lambda: random(0, K) @ B,
    "grown": lambda: torch.mm(A, B, out=torch.empty(0)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_as_it_was(request: pytest.FixtureRequest, name: str) -> None:
    """To the bit: the kernel that was there makes it."""
    if products.library() == "oneDNN":
        products.use_fastest()  # so does every model before
    before = OTHERS[name]()
    suited = request.getfixturevalue("by_onednn")
    assert torch.equal(OTHERS[name](), before)
    assert len(suited) >= 1
    assert not any(suited)


WRONG: dict[str, Callable[[], Tensor]] = {
    "shapes": lambda: A @ random(N, K),
    "a type of the result": lambda: torch.mm(A, B, out=torch.empty(M, N, dtype=torch.float64)),
    "a type of the bias": lambda: F.linear(A, B.t(), random(N).bfloat16()),
    "types": lambda: torch.mm(A, B.double()),
    "a bias of another length": lambda: torch.addmm(random(N + 1), A, B),
    "three dimensions": lambda: torch.mm(random(1, M, K), random(1, K, N)),
    "three dimensions that seem to fit": lambda: torch.mm(random(1, M, K), random(M, 4, 4)),
    "one dimension": lambda: torch.mm(random(K), B),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_pytorchs_to_refuse(request: pytest.FixtureRequest, name: str) -> None:
    with pytest.raises((RuntimeError, IndexError)) as before:
        WRONG[name]()
    request.getfixturevalue("by_onednn")
    with pytest.raises((RuntimeError, IndexError)) as after:
        WRONG[name]()
    assert str(after.value) == str(before.value)


def test_the_same_bits_each_time(by_onednn: list[bool]) -> None:
    assert torch.equal(A @ B, A.clone() @ B.clone())
    assert all(by_onednn)


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str | None, capability: str, chosen: str
) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("this PyTorch has no MKL")
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\n" + (f"vendor_id\t: {vendor}\n" if vendor else ""))
    monkeypatch.setattr(products, "_CPUINFO", told)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    overridden: list[bool] = []
    monkeypatch.setattr(products, "_overridden", lambda: overridden.append(True))
    products._cpu_vendor.cache_clear()
    try:
        assert products.library() == chosen
        products.use_fastest()
    finally:
        products._cpu_vendor.cache_clear()
    assert bool(overridden) == (chosen == "oneDNN")


def test_a_machine_that_tells_nothing_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_CPUINFO", tmp_path / "none")
    products._cpu_vendor.cache_clear()
    assert products._cpu_vendor() is None
    products._cpu_vendor.cache_clear()


WHOLE = """
import torch
from colakit import products
products._cpu_vendor = lambda: "AuthenticAMD"
torch.backends.cpu.get_cpu_capability = lambda: "AVX512"
suited, honest = [], products._suits
products._suits = lambda *a, **o: suited.append(honest(*a, **o)) or suited[-1]
a = torch.ones(256, 256)
a @ a
before = len(suited)
products.use_fastest()
products.use_fastest()
a @ a
print(before, suited)
"""


def test_a_process_that_asked_for_it_has_it() -> None:
    outcome = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True, check=True)
    assert (outcome.stdout, outcome.stderr) == ("0 [True]\n", "")


def test_models_and_the_peak_they_are_measured_by_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(products, "use_fastest", lambda: asked.append(True))
    build.build_model(tiny_config(), CPU)
    assert len(asked) == 1
    matmul_flops_per_s(CPU.device, torch.float32, side=8)
    assert len(asked) == 2
