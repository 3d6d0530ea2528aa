"""colakit's loss beside PyTorch's and Liger's: time of value and gradients, and how far the gradients are apart.

    python benchmarks/loss.py

At the heads of `cola-smollm2` and `original`, on 2 × 512 tokens on a CPU in float32, on CUDA on 16 × 1024 in bfloat16:
the logits whole (``F.cross_entropy``), ``F.linear_cross_entropy`` in chunks of 256 tokens where this PyTorch has it,
Liger's fused kernel where it is installed, and ``colakit.loss``, which also counts how many targets were foreseen.
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from colakit import products
from colakit.host import keep_freed_memory
from colakit.loss import loss_sums

HEADS = {"cola-smollm2": (192, 49_152, True), "original": (768, 102_000, False)}
"""Input width, vocabulary, and whether there is a bias."""
REPEATS = 9
CHUNK = 256

Loss = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""The sum over targets [N], by x [N, K], weight [V, K] and bias [V]."""


def whole(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(x, weight, bias).float(), targets, reduction="sum")


def colakit(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """What trains here."""
    return loss_sums(x[None], weight, bias, targets[None]).nll


def torch_chunked(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """PyTorch's own chunks."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    return F.linear_cross_entropy(x, weight, targets, linear_bias=bias, reduction="sum", options=options)


def losses(device: torch.device) -> dict[str, Loss]:
    """All that can run here."""
    found: dict[str, Loss] = {"whole logits": whole, "colakit": colakit}
    if hasattr(F, "linear_cross_entropy"):
        found[f"linear_cross_entropy, {CHUNK}"] = torch_chunked
    if device.type == "cuda" and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        found["Liger"] = lambda x, weight, bias, targets: LigerFusedLinearCrossEntropyFunction.apply(
            x, weight, targets, bias, None, -100, 0.0, 0.0, "sum"
        )[0]
    return found


def main() -> None:
    """Measure in turns, and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cuda = device.type == "cuda"
    products.use_fastest()
    keep_freed_memory()
    n, autocast = (16 * 1024, True) if on_cuda else (2 * 512, False)

    def run(loss: Loss, inputs: list[Tensor | None], targets: Tensor) -> tuple[float, list[Tensor]]:
        wanted = [t for t in inputs if t is not None]
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            value = loss(inputs[0], inputs[1], inputs[2], targets) / n  # type: ignore[arg-type]
        gradients = list(torch.autograd.grad(value, wanted))
        if on_cuda:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began), gradients

    for head, (width, vocab, has_bias) in HEADS.items():
        torch.manual_seed(0)
        x = torch.randn(n, width, device=device, requires_grad=True)
        weight = (torch.randn(vocab, width, device=device) / width**0.5).requires_grad_()
        bias = torch.zeros(vocab, device=device, requires_grad=True) if has_bias else None
        inputs, targets = [x, weight, bias], torch.randint(vocab, (n,), device=device)
        contestants = losses(device)
        exact = run(whole, inputs, targets)[1]
        apart = {
            name: max(
                float((g - e).abs().max() / e.abs().max())
                for g, e in zip(run(loss, inputs, targets)[1], exact, strict=True)
            )
            for name, loss in contestants.items()
        }
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(REPEATS):
            for name, loss in contestants.items():
                times[name].append(run(loss, inputs, targets)[0])
        sys.stdout.write(f"{head}'s head, {n} tokens, {device.type}\n")
        for name, ms in times.items():
            sys.stdout.write(f"  {name:28} {statistics.median(ms):9.1f} ms   gradients apart by {apart[name]:.1e}\n")


if __name__ == "__main__":
    main()
