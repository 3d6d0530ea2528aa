"""Documents of packed sequences that do not attend to each other: where they lie, and that none sees another.

That each equals the same document alone is the business of tests/oracles/test_documents.py.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from colakit.model.documents import Documents
from colakit.model.rope import Rotary
from tests.model.tiny import tiny_config, tiny_model, tiny_tokens, without_dropout


def starts_of(*rows: tuple[int, ...]) -> Tensor:
    """[B, T] bool: where documents of these lengths begin."""
    return torch.stack([torch.cat([torch.arange(length) == 0 for length in row]) for row in rows])


def test_positions_bounds_and_lengths() -> None:
    rows = ((3, 1, 2), (6,), (1, 1, 1, 1, 1, 1), (5, 1))
    documents = Documents.of(starts_of(*rows))
    assert documents.positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5], [0] * 6, [0, 1, 2, 3, 4, 0]]
    assert documents.cu_seqlens.tolist() == [0, 3, 4, 6, 12, 13, 14, 15, 16, 17, 18, 23, 24]
    assert (documents.positions.dtype, documents.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert documents.lengths == rows
    assert documents.max_len == 6
    assert type(documents.max_len) is int


def test_a_row_begins_a_document_whatever_it_says() -> None:
    starts = starts_of((3, 1, 2), (6,))
    unsaid = starts.clone()
    unsaid[:, 0] = False
    kept = unsaid.clone()
    one, other = Documents.of(starts), Documents.of(unsaid)
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.cu_seqlens, other.cu_seqlens)
    assert one.lengths == other.lengths
    assert torch.equal(unsaid, kept)  # the caller's own


@pytest.mark.parametrize(
    "starts",
    [
        torch.ones(2, 3),
        torch.ones(3, dtype=torch.bool),
        torch.ones(2, 0, dtype=torch.bool),
        torch.ones(2, 3, dtype=torch.bool, device="meta"),
    ],
)
def test_what_is_no_batch_of_starts_on_the_host_is_refused(starts: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[B, T\] torch.bool on the CPU"):
        Documents.of(starts)


def test_moving_them_moves_the_tensors_and_keeps_the_numbers() -> None:
    documents = Documents.of(starts_of((2, 1)))
    moved = documents.to("meta")
    assert (moved.positions.device.type, moved.cu_seqlens.device.type) == ("meta", "meta")
    assert (moved.lengths, moved.max_len) == (documents.lengths, documents.max_len)


def test_documents_of_another_batch_are_refused() -> None:
    config = tiny_config()
    model, documents = tiny_model(config), Documents.of(starts_of((2, 4)))
    with pytest.raises(ValueError, match=r"\[1, 6\], the tokens \[1, 7\]"):
        model(tiny_tokens(config, batch=1, time=7), documents)


def test_rotary_angles_of_a_position_are_those_of_its_row_in_the_table() -> None:
    rotary = Rotary(6, seq_len=9, theta=20.0).double()
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = rotary(x)
    assert torch.equal(rotary(x, rotary.at(torch.arange(5).expand(2, 5))), plain)
    restarted = rotary(x, rotary.at(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])))
    assert torch.equal(restarted[0, :, :3], plain[0, :, :3])
    assert torch.equal(restarted[0, :, 3:], rotary(x[:1, :, 3:])[0])
    assert torch.equal(restarted[1], plain[1])


def test_queries_and_keys_of_equal_documents_are_equal_wherever_they_stand() -> None:
    """Products depend on distance alone, so that outputs tell restarted positions from others by roundings only."""
    model = tiny_model(tiny_config("cola-fan", "n_layers=1"))
    attention, seen = model.blocks[0].attention, []
    inner = attention.attend
    attention.attend = lambda q, k, v, p, d: (seen.append((q, k)), inner(q, k, v, p, d))[1]
    tokens = torch.tensor([[5, 8, 2, 5, 8, 2, 5]])
    model(tokens, Documents.of(starts_of((3, 3, 1))))
    model(tokens)
    for isolated, whole in zip(*seen, strict=True):
        torch.testing.assert_close(isolated[:, :, :3], isolated[:, :, 3:6], rtol=0.0, atol=1e-14)
        assert float((whole[:, :, 1:3] - whole[:, :, 4:6]).detach().abs().max()) > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_a_token_reaches_the_rest_of_its_own_document_and_nothing_else(attention: str) -> None:
    config = without_dropout(replace(tiny_config("cola-fan"), attention=attention))  # type: ignore[arg-type]
    model, tokens = tiny_model(config), tiny_tokens(config, batch=2, time=8)
    documents = Documents.of(starts_of((3, 1, 4), (8,)))
    with torch.no_grad():
        before = model(tokens, documents)
        for row, at, reached in [(0, 1, [1, 2]), (0, 3, [3]), (0, 4, [4, 5, 6, 7]), (0, 7, [7]), (1, 6, [6, 7])]:
            changed = tokens.clone()
            changed[row, at] = (changed[row, at] + 1) % config.vocab_size
            differs = (model(changed, documents) != before).any(dim=-1)
            expected = torch.zeros(2, 8, dtype=torch.bool)
            expected[row, reached] = True
            assert torch.equal(differs, expected), (row, at)


def test_in_dropout_too_no_other_document_is_seen() -> None:
    config = replace(tiny_config("cola-fan-dropout"), attention_dropout=0.3)
    model, tokens = tiny_model(config).train(), tiny_tokens(config, batch=1, time=8)
    documents = Documents.of(starts_of((3, 5)))
    changed = tokens.clone()
    changed[0, :3] = (changed[0, :3] + 1) % config.vocab_size
    outs = []
    for batch in (tokens, changed):
        torch.manual_seed(3)  # the same masks
        outs.append(model(batch, documents).detach())
    assert torch.equal(outs[0][:, 3:], outs[1][:, 3:])
    assert not torch.equal(outs[0][:, :3], outs[1][:, :3])
