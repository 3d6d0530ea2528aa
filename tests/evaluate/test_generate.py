"""Generation: what is kept equals what would be computed anew, and each way of choosing chooses as it says."""

import math

import pytest
import torch
from torch import Tensor

from colakit.build import Machine, build_model
from colakit.config.load import resolve
from colakit.evaluate.generate import Reader, Sampling, generate
from colakit.model.lm import LM

CPU = Machine(torch.device("cpu"), torch.float32)
VOCAB = 61
LENGTH = 10


@pytest.fixture
def model() -> LM:
    sizes = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", f"vocab_size={VOCAB}")
    sets = [f"model.{s}" for s in (*sizes, f"seq_len={LENGTH}")]
    return build_model(resolve("cola-fan-dropout", smoke_run=True, sets=sets).config, CPU)


def sample(
    model: LM, prompt: list[int], n: int, *, n_ids: int = VOCAB, stop: int | None = None, **how: float
) -> list[int]:
    sampling = Sampling(**how)  # type: ignore[arg-type]
    return list(generate(model, prompt, n, CPU, n_ids=n_ids, sampling=sampling, stop=stop))


def test_it_is_seeded_and_stays_below_the_tokenizer_size(model: LM) -> None:
    first = sample(model, [3, 5], 30, n_ids=11, seed=1)
    assert first == sample(model, [3, 5], 30, n_ids=11, seed=1)
    assert first != sample(model, [3, 5], 30, n_ids=11, seed=2)
    assert len(first) == 30
    assert set(first) <= set(range(11))


def test_greedy_takes_the_most_probable_token_of_the_last_tokens_it_can_see(model: LM) -> None:
    """Within the context and beyond it."""
    ids = [3, 5]
    model.eval()
    with torch.no_grad():
        for _ in range(LENGTH + 5):
            ids.append(int(model(torch.tensor([ids[-LENGTH:]]))[0, -1].argmax()))
    assert sample(model, [3, 5], LENGTH + 5, temperature=0.0) == ids[2:]


def test_a_prompt_of_the_whole_context_or_more_is_seen_from_its_end(model: LM) -> None:
    prompt = [i % VOCAB for i in range(LENGTH + 4)]
    assert sample(model, prompt, 3, seed=4) == sample(model, prompt[-LENGTH:], 3, seed=4)


def test_it_ends_behind_the_stop_token_and_yields_as_it_goes(model: LM) -> None:
    free = sample(model, [3], 8, seed=0)
    stop = free[4]
    assert sample(model, [3], 8, seed=0, stop=stop) == free[: free.index(stop) + 1]
    read = []
    hidden = model.extend
    model.extend = lambda *a: (read.append(1), hidden(*a))[1]  # type: ignore[method-assign]
    tokens = generate(model, [3], 8, CPU, n_ids=VOCAB, sampling=Sampling())
    next(tokens)
    assert len(read) == 1


def test_it_ends_where_a_diverged_model_has_no_probabilities(model: LM) -> None:
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    assert sample(model, [3, 5], 4) == []


def test_each_token_is_read_once(model: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    extend = model.extend
    monkeypatch.setattr(
        model, "extend", lambda tokens, cache: (shapes.append(tokens.shape[1]), extend(tokens, cache))[1]
    )
    sample(model, [3, 5, 7], 5)
    assert shapes == [3, 1, 1, 1, 1]


def frequencies(logits: Tensor, n: int = 4000, **how: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(**how)  # type: ignore[arg-type]
    drawn = [sampling.next_token(logits, generator) for _ in range(n)]
    return torch.bincount(torch.tensor(drawn), minlength=len(logits)) / n


def test_tokens_come_as_often_as_they_are_probable() -> None:
    """4000 draws: 0.03 is four standard deviations of a frequency of one half."""
    p = torch.tensor([0.5, 0.05, 0.3, 0.15])
    torch.testing.assert_close(frequencies(p.log()), p, atol=0.03, rtol=0.0)
    hot = (p**0.5) / (p**0.5).sum()
    torch.testing.assert_close(frequencies(p.log(), temperature=2.0), hot, atol=0.03, rtol=0.0)


def test_top_k_and_top_p_leave_the_most_probable_and_their_proportions() -> None:
    p = torch.tensor([0.5, 0.05, 0.3, 0.15])
    two = torch.tensor([0.625, 0.0, 0.375, 0.0])
    torch.testing.assert_close(frequencies(p.log(), top_k=2), two, atol=0.03, rtol=0.0)
    torch.testing.assert_close(frequencies(p.log(), top_p=0.6), two, atol=0.03, rtol=0.0)
    three = torch.tensor([0.5, 0.0, 0.3, 0.15]) / 0.95
    torch.testing.assert_close(frequencies(p.log(), top_p=0.81), three, atol=0.03, rtol=0.0)
    torch.testing.assert_close(frequencies(p.log(), top_p=0.81, top_k=2), two, atol=0.03, rtol=0.0)
    only = torch.tensor([1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(frequencies(p.log(), top_p=0.0, n=50), only)
    torch.testing.assert_close(frequencies(p.log(), temperature=0.0, n=50), only)


def test_a_reader_reads_rows_together_and_in_parts(model: LM) -> None:
    tokens = torch.arange(3 * 9).view(3, 9) % VOCAB
    reader = Reader(model, CPU, max_len=9)
    parts = [reader.read(part) for part in torch.split(tokens, [4, 1, 3, 1], dim=1)]
    model.eval()
    with torch.no_grad():
        logits = model(tokens)
    for found, end in zip(parts, (4, 5, 8, 9), strict=True):
        torch.testing.assert_close(found, logits[:, end - 1], rtol=1e-5, atol=1e-6)
    assert reader.length == 9
    with pytest.raises(ValueError, match="room for 9 tokens, not for 10"):
        reader.read(tokens[:, :1])


def test_infinite_temperature_is_uniform() -> None:
    p = torch.tensor([5.0, 0.0, 3.0, 1.0])
    torch.testing.assert_close(frequencies(p, temperature=math.inf), torch.full((4,), 0.25), atol=0.03, rtol=0.0)
