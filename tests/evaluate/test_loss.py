"""Held-out metrics against the slow obvious computation."""

import gzip
import math

import pytest
import torch
import torch.nn.functional as F

from colakit.build import Machine, build_model
from colakit.config.load import resolve
from colakit.data.loader import Batch
from colakit.evaluate.generate import generate
from colakit.evaluate.loss import evaluate, gzip_bits_per_byte
from colakit.model.lm import LM

CPU = Machine(torch.device("cpu"), torch.float32)
VOCAB = 61
TOKEN_BYTES = [b"", *(bytes([97 + i % 26]) * (1 + i % 3) for i in range(VOCAB - 1))]


@pytest.fixture
def model() -> LM:
    sizes = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", f"vocab_size={VOCAB}", "seq_len=10")
    return build_model(resolve("cola-fan-dropout", smoke_run=True, sets=[f"model.{s}" for s in sizes]).config, CPU)


def make_batches() -> list[Batch]:
    """Two batches with very different numbers of real targets: an average of averages would be wrong."""
    tokens = torch.randint(VOCAB, (5, 11), generator=torch.Generator().manual_seed(3))
    targets = tokens[:, 1:].clone()
    targets[4, 2:] = -100
    targets[3, 1:] = -100
    inputs = tokens[:, :-1].clone()
    return [Batch(tokens=inputs[:3], targets=targets[:3]), Batch(tokens=inputs[3:], targets=targets[3:])]


def test_metrics_are_sums_divided_once(model: LM) -> None:
    record = evaluate(model, make_batches(), CPU, TOKEN_BYTES, step=7)
    tokens = torch.cat([b.tokens for b in make_batches()])
    targets = torch.cat([b.targets for b in make_batches()])
    model.eval()
    with torch.no_grad():
        logits = model(tokens).double()
    real = targets != -100
    nll = F.cross_entropy(logits[real], targets[real], reduction="sum").item()
    n_bytes = sum(len(TOKEN_BYTES[t]) for t in targets[real].tolist())
    assert record.tokens == int(real.sum()) == 33
    assert record.text_bytes == n_bytes
    assert record.val_loss == pytest.approx(nll / 33, rel=1e-6)
    assert record.perplexity == pytest.approx(math.exp(nll / 33), rel=1e-5)
    assert record.bits_per_byte == pytest.approx(nll / math.log(2) / n_bytes, rel=1e-6)
    assert record.accuracy == pytest.approx((logits[real].argmax(-1) == targets[real]).double().mean().item())


def test_documents_that_a_batch_keeps_apart_are_scored_by_themselves(model: LM) -> None:
    tokens, targets = (getattr(make_batches()[0], name) for name in ("tokens", "targets"))  # [3, 10]
    starts = (torch.arange(10) % 5 == 0).expand(3, 10)
    apart, whole, alone = (
        evaluate(model, [batch], CPU, TOKEN_BYTES, step=0)
        for batch in (
            Batch(tokens, targets, starts),
            Batch(tokens, targets),
            Batch(tokens.reshape(6, 5), targets.reshape(6, 5)),
        )
    )
    assert apart.val_loss == pytest.approx(alone.val_loss, rel=1e-6)
    assert (apart.accuracy, apart.tokens, apart.text_bytes) == (alone.accuracy, alone.tokens, alone.text_bytes)
    assert abs(whole.val_loss - apart.val_loss) > 1e-4


def test_two_evaluations_are_identical_and_the_mode_is_put_back(model: LM) -> None:
    model.train()
    first, second = (evaluate(model, make_batches(), CPU, TOKEN_BYTES, step=0) for _ in range(2))
    assert (first.val_loss, first.accuracy) == (second.val_loss, second.accuracy)
    assert model.training


def test_bits_per_byte_are_none_where_bytes_are_unknown(model: LM) -> None:
    record = evaluate(model, make_batches(), CPU, None, step=0)
    assert record.bits_per_byte is None
    assert record.text_bytes is None
    assert gzip_bits_per_byte(make_batches(), None) is None


def test_gzip_compresses_exactly_the_text_that_is_scored() -> None:
    targets = torch.cat([b.targets for b in make_batches()]).flatten()
    text = b"".join(TOKEN_BYTES[t] for t in targets.tolist() if t != -100)
    assert gzip_bits_per_byte(make_batches(), TOKEN_BYTES) == 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


def test_generation_is_seeded_and_stays_below_the_tokenizer_size(model: LM) -> None:
    def sample(seed: int) -> list[int]:
        return generate(model, [3, 5], 30, CPU, n_ids=11, temperature=1.0, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert len(sample(1)) == 30
    assert set(sample(1)) <= set(range(11))


def test_generation_at_low_temperature_takes_the_most_probable_token(model: LM) -> None:
    model.eval()
    with torch.no_grad():
        best = int(model(torch.tensor([[3, 5]]))[0, -1].argmax())
    assert generate(model, [3, 5], 1, CPU, n_ids=VOCAB, temperature=1e-4, seed=0) == [best]


def test_generation_ends_where_a_diverged_model_has_no_probabilities(model: LM) -> None:
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    assert generate(model, [3, 5], 4, CPU, n_ids=VOCAB, temperature=1.0, seed=0) == []


def test_a_higher_temperature_is_more_random(model: LM) -> None:
    def different(temperature: float) -> int:
        samples = [generate(model, [3], 8, CPU, n_ids=VOCAB, temperature=temperature, seed=s) for s in range(6)]
        return len({tuple(ids) for ids in samples})

    assert different(1e-3) == 1
    assert different(50.0) == 6


def test_generation_sees_the_last_seq_len_tokens(model: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[list[int]] = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens: (windows.append(tokens[0].tolist()), hidden(tokens))[1])
    length = model.config.seq_len
    prompt = [i % VOCAB for i in range(length)]
    ids = generate(model, prompt, 3, CPU, n_ids=VOCAB, temperature=1.0, seed=0)
    whole = prompt + ids
    assert windows == [whole[n : n + length] for n in range(3)]


def test_gzip_is_at_its_best() -> None:
    """Level 9 finds the far repetition of 20,000 random letters; level 1 looks less far."""
    letters = torch.randint(4, (2, 700), generator=torch.Generator().manual_seed(0)).repeat(1, 30)
    batch = Batch(tokens=letters, targets=letters)
    text = b"".join(TOKEN_BYTES[i] for i in letters.flatten().tolist())
    best, fast = (8 * len(gzip.compress(text, level, mtime=0)) / len(text) for level in (9, 1))
    assert gzip_bits_per_byte([batch], TOKEN_BYTES) == best != fast
