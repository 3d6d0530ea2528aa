"""Isolated documents in one packed batch against each document alone: outputs, and gradients of every parameter.

Tolerance: as in test_model.py, float64 sums in another order. It tells apart positions that do not restart, whose
cosines are rounded to float32: some 1e-8.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from colakit.model.config import LMConfig
from colakit.model.documents import Documents
from colakit.model.lm import LM
from tests.model.test_documents import starts_of
from tests.model.tiny import (
    published_gradients,
    published_leaves,
    tiny_config,
    tiny_model,
    tiny_tokens,
    without_dropout,
)
from tests.oracles import reference as ref

TIGHT = {"rtol": 0.0, "atol": 1e-10}
# Documents of one token, at a row's beginning, middle and end; ones that end with their row; a row of tiny ones; a row
# that is one document.
ROWS = ((1, 3, 1, 5), (9, 1), (2, 1, 1, 1, 2, 1, 1, 1), (10,))


def alone(model: LM, tokens: Tensor, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """Logits [B, T, V] of every document by itself."""
    logits = [
        torch.cat([model(part[None])[0] for part in torch.split(row, lengths)])
        for row, lengths in zip(tokens, rows, strict=True)
    ]
    return torch.stack(logits)


def logits_and_gradients(model: LM, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Of a loss that weighs every logit differently."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model.zero_grad()
    (logits * weights).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def agree(config: LMConfig, *, dtype: torch.dtype = torch.float64, tolerance: float = 1e-10) -> None:
    model = tiny_model(config).train().to(dtype)
    tokens = tiny_tokens(config, batch=len(ROWS), time=10)
    out, gradients = logits_and_gradients(model, model(tokens, Documents.of(starts_of(*ROWS))))
    expected, alone_gradients = logits_and_gradients(model, alone(model, tokens, ROWS))
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == alone_gradients.keys() == {n for n, _ in model.named_parameters()}
    for name, gradient in gradients.items():
        scale = max(1.0, float(alone_gradients[name].abs().max()))
        torch.testing.assert_close(gradient / scale, alone_gradients[name] / scale, rtol=0.0, atol=tolerance, msg=name)


@pytest.mark.parametrize("norm", ["pre", "post", "hybrid", "listing"])
@pytest.mark.parametrize("preset", ["original", "cola-smollm2", "cola-fan", "cola-fan-atf"])
def test_each_document_is_as_if_it_stood_alone(preset: str, norm: str) -> None:
    agree(without_dropout(tiny_config(preset, f"norm={norm}", "n_layers=2")))


@pytest.mark.parametrize("preset", ["original", "cola-fan"])
def test_with_tied_embeddings_too(preset: str) -> None:
    agree(without_dropout(tiny_config(preset, "tie_embeddings=true", "n_layers=2")))


@pytest.mark.parametrize(("preset", "norm"), [("cola-m", "pre"), ("cola-fan", "listing"), ("cola-fan-atf", "hybrid")])
def test_under_cola_m_too(preset: str, norm: str) -> None:
    agree(replace(without_dropout(tiny_config(preset, f"norm={norm}", "n_layers=2")), remat="cola_m"))


@pytest.mark.parametrize("n_kv_heads", [1, 3, 6])
@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_in_every_backend_and_sharing_of_heads(attention: str, n_kv_heads: int) -> None:
    config = without_dropout(tiny_config("cola-smollm2", f"n_kv_heads={n_kv_heads}", "n_layers=2", "rank=5"))
    agree(replace(config, attention=attention))  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["original", "cola-fan"])
def test_in_float32_to_five_digits(preset: str) -> None:
    """Gradients relative to the largest of their tensor: a hundred roundings of 6e-8."""
    agree(without_dropout(tiny_config(preset, "n_layers=2")), dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize("preset", ["original", "cola-fan", "cola-fan-atf"])
def test_rows_of_one_document_are_what_they_were(preset: str) -> None:
    config = without_dropout(tiny_config(preset))
    model, tokens = tiny_model(config), tiny_tokens(config)
    whole = Documents.of(torch.zeros(tokens.shape, dtype=torch.bool))
    torch.testing.assert_close(model(tokens, whole), model(tokens), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("preset", ["original", "cola-fan-atf", "refined-tied"])  # one of each projection
def test_each_document_is_the_paper_s_model_of_it(preset: str) -> None:
    """The independent model of reference.py, document by document."""
    config = replace(without_dropout(tiny_config(preset)), n_layers=2)
    rows = ((2, 1, 2), (4, 1))
    model, tokens = tiny_model(config), tiny_tokens(config, batch=2, time=5)
    logits = model(tokens, Documents.of(starts_of(*rows)))
    leaves = published_leaves(model)
    expected = torch.stack(
        [
            torch.cat([ref.lm(part[None], leaves, config)[0] for part in torch.split(row, lengths)])
            for row, lengths in zip(tokens, rows, strict=True)
        ]
    )
    torch.testing.assert_close(logits, expected, **TIGHT)

    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, gradient in published_gradients(model).items():
        torch.testing.assert_close(gradient, leaves[name].grad, **TIGHT, msg=lambda m, n=name: f"{n}: {m}")
