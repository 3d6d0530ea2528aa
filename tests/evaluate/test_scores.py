"""Scores of windows of text against the slow obvious computation, document by document."""

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from colakit.build import Machine, build_model
from colakit.config.load import resolve
from colakit.data.loader import Batch
from colakit.data.packing import Joined, Packed, Padded
from colakit.errors import RunError
from colakit.evaluate.scores import LMScorer, Tally, estimate, score_windows
from colakit.evaluate.text_bytes import gzip_bits_per_byte
from colakit.evaluate.windows import BlockWindows, SlidingWindows, TextSource, Window, Windows, batch_of
from colakit.loss import ScoresOfLogits, TokenScores, scores_of_logits, scores_of_logits_, token_scores
from colakit.model.lm import LM
from colakit.records.evaluation import Scores
from tests.data.stores import EOT, make_store

CPU = Machine(torch.device("cpu"), torch.float32)
VOCAB = 61
SEQ_LEN = 10
TOKEN_BYTES = [b"", *(bytes([97 + i % 26]) * (1 + i % 3) for i in range(VOCAB - 1))]
LENGTHS = (3, 1, 34, 10, 0, 9, 21)


@pytest.fixture
def model() -> LM:
    sizes = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", f"vocab_size={VOCAB}")
    sets = [f"model.{s}" for s in (*sizes, f"seq_len={SEQ_LEN}")]
    return build_model(resolve("cola-fan-dropout", smoke_run=True, sets=sets).config, CPU)


def make_source(folder: Path, lengths: Sequence[int] = LENGTHS, chosen: Sequence[int] | None = None) -> TextSource:
    generator = torch.Generator().manual_seed(len(lengths))
    documents = [torch.randint(1, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    store = make_store(folder, [documents], VOCAB)
    mask = np.isin(np.arange(len(lengths)), range(len(lengths)) if chosen is None else list(chosen))
    return TextSource(folder.name, f"the text {folder.name}", store, mask)


def ids_of(source: TextSource, document: int) -> list[int]:
    start = int(source.store.starts[document])
    return source.store.read(start, start + int(source.store.lengths[document])).tolist()


def nll_and_rank(model: LM, context: Sequence[int], target: int) -> tuple[float, int]:
    """Of one token behind others, read anew."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([context]))[0, -1].double()
    return -float(logits.log_softmax(-1)[target]), int((logits > logits[target]).sum())


def scores_of(model: LM, windows: Windows, batch_size: int = 3, isolate_eot: int | None = None) -> Tally:
    tally = Tally(windows.n_documents, TOKEN_BYTES)
    score_windows(LMScorer(model, CPU), windows, tally, batch_size=batch_size, isolate_eot=isolate_eot)
    return tally


@dataclass
class Expected:
    nll: list[float]
    ranks: list[int]
    targets: list[int]

    def check(self, tally: Tally, document: int) -> None:
        assert tally.tokens[document] == len(self.targets)
        assert tally.nll[document] == pytest.approx(sum(self.nll), rel=1e-5)
        assert tally.top1[document] == sum(r < 1 for r in self.ranks)
        assert tally.top5[document] == sum(r < 5 for r in self.ranks)
        assert tally.text_bytes[document] == sum(len(TOKEN_BYTES[t]) for t in self.targets)


@pytest.mark.parametrize("stride", [1, 4, SEQ_LEN])
def test_each_token_of_a_document_is_scored_once_behind_what_its_window_holds(
    model: LM, tmp_path: Path, stride: int
) -> None:
    source = make_source(tmp_path / "a", chosen=(0, 1, 2, 3, 5))
    windows = SlidingWindows([source], seq_len=SEQ_LEN, stride=stride, eot_id=EOT, max_tokens=None)
    tally = scores_of(model, windows)
    for document in range(len(LENGTHS)):
        if not source.chosen[document] or document == 4:
            assert tally.tokens[document] == 0
            continue
        whole = [EOT, *ids_of(source, document)]
        found = Expected([], [], [])
        end = 0
        for i, target in enumerate(whole[1:]):
            if i >= end:  # the window that first holds this target
                end = min(SEQ_LEN, len(whole) - 1) if end == 0 else min(end + stride, len(whole) - 1)
            nll, rank = nll_and_rank(model, whole[max(0, end - SEQ_LEN) : i + 1], target)
            found.nll.append(nll)
            found.ranks.append(rank)
            found.targets.append(target)
        found.check(tally, document)


@pytest.mark.parametrize("isolate", [False, True])
def test_packed_blocks_are_scored_by_the_document_each_target_is_of(model: LM, tmp_path: Path, isolate: bool) -> None:
    source = make_source(tmp_path / "a", chosen=(0, 2, 3, 4, 6))
    blocks = Packed(source.store, source.chosen, SEQ_LEN)
    tally = scores_of(model, BlockWindows(blocks, None), isolate_eot=EOT if isolate else None)
    stream = [(t, d) for d in (0, 2, 3, 6) for t in ids_of(source, d)]
    found = {d: Expected([], [], []) for d in (0, 2, 3, 6)}
    for i in range(1, len(stream)):
        start = (i - 1) // SEQ_LEN * SEQ_LEN
        context = [t for t, _ in stream[start:i]]
        if isolate and EOT in context:  # a document is read behind the token that ended the one before
            context = context[len(context) - 1 - context[::-1].index(EOT) :]
        nll, rank = nll_and_rank(model, context, stream[i][0])
        of = found[stream[i][1]]
        of.nll.append(nll)
        of.ranks.append(rank)
        of.targets.append(stream[i][0])
    for document, expected in found.items():
        expected.check(tally, document)
    assert tally.tokens.sum() == len(stream) - 1


def test_padded_blocks_and_those_of_several_sources_know_their_documents(model: LM, tmp_path: Path) -> None:
    one, other = make_source(tmp_path / "a"), make_source(tmp_path / "b", (5, 12), chosen=(1,))
    parts = [Padded(s.store, s.chosen, SEQ_LEN, EOT) for s in (one, other)]
    tally = scores_of(model, BlockWindows(Joined(parts), None))
    lengths = [min(SEQ_LEN, n + 1) if n else 0 for n in LENGTHS]
    assert tally.tokens.tolist() == [*lengths, 0, SEQ_LEN]
    nll = [nll_and_rank(model, [EOT, *ids_of(other, 1)[:i]], ids_of(other, 1)[i])[0] for i in range(SEQ_LEN)]
    assert tally.nll[len(LENGTHS) + 1] == pytest.approx(sum(nll), rel=1e-5)


@pytest.mark.parametrize("stride", [None, 3])
def test_one_three_or_seven_batches_give_the_same_numbers(model: LM, tmp_path: Path, stride: int | None) -> None:
    source = make_source(tmp_path / "a")

    def windows() -> Windows:
        if stride is None:
            return BlockWindows(Packed(source.store, source.chosen, SEQ_LEN), None)
        return SlidingWindows([source], seq_len=SEQ_LEN, stride=stride, eot_id=EOT, max_tokens=None)

    n = len(windows())
    assert n >= 7
    found = [scores_of(model, windows(), batch_size=-(-n // batches)).scores() for batches in (1, 3, 7)]
    for other in found[1:]:
        assert other.loss.value == pytest.approx(found[0].loss.value, rel=1e-6)
        assert (other.top1, other.top5, other.tokens) == (found[0].top1, found[0].top5, found[0].tokens)
    assert scores_of(model, windows()).scores() == scores_of(model, windows()).scores(), "two evaluations are identical"


@pytest.mark.parametrize("stride", [None, 4])
def test_of_more_than_the_most_tokens_a_part_is_taken_the_same_each_time(tmp_path: Path, stride: int | None) -> None:
    source = make_source(tmp_path / "a")
    total = int(source.store.lengths.sum())

    def taken(most: int | None) -> list[tuple[int, ...]]:
        windows: Windows = (
            BlockWindows(Packed(source.store, source.chosen, SEQ_LEN), most)
            if stride is None
            else SlidingWindows([source], seq_len=SEQ_LEN, stride=stride, eot_id=EOT, max_tokens=most)
        )
        return sorted(tuple(windows[i].documents.tolist()) for i in range(len(windows)))

    def scored(most: int | None) -> int:
        return sum(d >= 0 for documents in taken(most) for d in documents)

    assert scored(None) == total - (stride is None)  # nothing stands before a stream's first token
    # Documents are taken by their bytes, of which a token of these has one.
    most = 40 if stride is None else 10
    assert 5 < scored(most) <= 40 + sum(n > 0 for n in LENGTHS) * (stride is not None)
    assert taken(most) == taken(most)
    assert taken(most) != taken(None)
    assert scored(1) > 0


def test_windows_of_like_length_come_together_and_padding_is_not_scored(tmp_path: Path) -> None:
    source = make_source(tmp_path / "a")
    windows = SlidingWindows([source], seq_len=SEQ_LEN, stride=4, eot_id=EOT, max_tokens=None)
    lengths = [len(windows[i].documents) for i in range(len(windows))]
    assert lengths == sorted(lengths, reverse=True)
    part = batch_of([windows[0], windows[len(windows) - 1]], None)
    assert part.batch.tokens.shape == part.batch.targets.shape == part.documents.shape == (2, SEQ_LEN)
    short = lengths[-1]
    assert (part.batch.targets[1, short:] == -100).all()
    assert (part.documents[1, short:] == -1).all()
    assert (part.batch.tokens[1, short:] == 0).all()


class Fixed(Windows):
    """Windows of one document each."""

    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = ids
        self.n_documents = len(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        ids = np.array(self.ids[index], dtype=np.int32)
        return Window(ids, np.full(len(ids) - 1, index))


def test_where_a_gpu_is_full_the_batch_is_halved_and_nothing_is_lost_or_counted_twice() -> None:
    sizes = []

    def scorer(batch: Batch) -> TokenScores:
        sizes.append(len(batch.tokens))
        if len(batch.tokens) > 2:
            raise torch.OutOfMemoryError("full")
        return TokenScores(batch.targets.flatten().float(), torch.zeros(batch.targets.numel(), dtype=torch.int64))

    windows = Fixed([[0, 5, 7], [0, 1, 2], [0, 3, 4], [0, 9, 9], [0, 8, 1]])
    tally, seen = Tally(5, None), []
    size = score_windows(scorer, windows, tally, batch_size=9, watch=lambda done, total: seen.append((done, total)))
    assert sizes == [5, 4, 2, 2, 1]
    assert size == 2
    assert tally.nll.tolist() == [12, 3, 7, 18, 9]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    with pytest.raises(RunError, match="Out of memory with one window of 2 tokens"):
        score_windows(lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("full")), windows, tally, batch_size=1)


def known_scores(documents: list[list[tuple[float, str]]]) -> Scores:
    """Of tokens with these probabilities that stand for these pieces of text."""
    pieces = sorted({piece for document in documents for _, piece in document})
    tally = Tally(len(documents), [piece.encode() for piece in pieces])
    windows = Fixed([[0, *(pieces.index(piece) for _, piece in document)] for document in documents])
    for i, document in enumerate(documents):
        nll = torch.tensor([-math.log(p) for p, _ in document])
        tally.add(batch_of([windows[i]], None), TokenScores(nll, torch.zeros(len(document), dtype=torch.int64)))
    return tally.scores()


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """A text of probability 2⁻¹², as letters, as syllables and as one word: 12 bits in 6 bytes."""
    letters = [(0.25, c) for c in "aebéx"]  # é takes two bytes
    letters[4] = (2.0**-4, "x")
    syllables = [(2.0**-3, "ae"), (2.0**-9, "béx")]
    found = [known_scores([tokens, tokens]) for tokens in (letters, syllables, [(2.0**-12, "aebéx")])]
    assert [s.text_bytes for s in found] == [12, 12, 12]
    assert [s.tokens for s in found] == [10, 4, 2]
    for s in found:
        assert s.bits_per_byte is not None
        assert s.bits_per_byte.value == pytest.approx(2.0, rel=1e-6)
    assert len({round(s.loss.value, 3) for s in found}) == 3


def test_without_the_bytes_of_tokens_there_are_no_bits_per_byte(model: LM, tmp_path: Path) -> None:
    source = make_source(tmp_path / "a")
    windows = BlockWindows(Packed(source.store, source.chosen, SEQ_LEN), None)
    tally = Tally(windows.n_documents, None)
    score_windows(LMScorer(model, CPU), windows, tally, batch_size=2)
    assert tally.scores().bits_per_byte is None
    assert tally.scores().text_bytes is None


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """95 % of 4000 samples of 60 documents of very different lengths, whose tokens depend on each other."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(4000):
        tokens = generator.integers(5, 200, 60)
        means = generator.normal(3.0, 0.5, 60)
        low, high = (lambda e: (e.low, e.high))(estimate(means * tokens, tokens))
        assert low is not None
        assert high is not None
        hits += low <= 3.0 <= high
    assert 0.93 < hits / 4000 < 0.96


def test_one_document_has_no_interval() -> None:
    found = estimate(np.array([6.0]), np.array([4]))
    assert (found.value, found.low, found.high) == (1.5, None, None)


def test_perplexity_is_of_the_ends_of_the_interval_too() -> None:
    s = known_scores([[(0.5, "a")] * 3, [(0.25, "b")] * 2])
    assert (s.loss.low, s.loss.high) != (None, None)
    assert s.perplexity.value == pytest.approx(math.exp(s.loss.value))
    assert s.perplexity.low == pytest.approx(math.exp(s.loss.low or 0.0))
    assert s.perplexity.high == pytest.approx(math.exp(s.loss.high or 0.0))


@pytest.mark.parametrize("of_logits", [None, scores_of_logits])
def test_scores_are_those_of_cross_entropy_and_of_sorting(
    of_logits: ScoresOfLogits | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colakit.analysis import chunking

    monkeypatch.setattr(chunking, "MAX_LOGITS", 4 * VOCAB)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((3, 5, 8), (VOCAB, 8), (VOCAB,)))
    targets = torch.randint(VOCAB, (3, 5), generator=generator)
    found = token_scores(x, weight, bias, targets, of_logits)
    logits = F.linear(x, weight, bias).flatten(0, 1)
    torch.testing.assert_close(found.nll, F.cross_entropy(logits, targets.flatten(), reduction="none"))
    order = logits.argsort(dim=-1, descending=True)
    assert found.rank.tolist() == [(row == t).nonzero().item() for row, t in zip(order, targets.flatten(), strict=True)]


def test_among_equal_logits_the_first_is_the_most_probable() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0]]).repeat(4, 1)
    assert scores_of_logits_(logits.clone(), torch.arange(4), torch.empty(5, 4)).rank.tolist() == [3, 0, 1, 2]
    assert scores_of_logits(logits, torch.arange(4)).rank.tolist() == [3, 0, 1, 2]


def test_the_mode_is_put_back(model: LM, tmp_path: Path) -> None:
    source = make_source(tmp_path / "a")
    model.train()
    scores_of(model, BlockWindows(Packed(source.store, source.chosen, SEQ_LEN), None))
    assert model.training


def batches() -> list[Batch]:
    tokens = torch.randint(VOCAB, (5, 11), generator=torch.Generator().manual_seed(3))
    targets = tokens[:, 1:].clone()
    targets[4, 2:] = -100
    return [Batch(tokens[:3, :-1], targets[:3]), Batch(tokens[3:, :-1], targets[3:])]


def test_gzip_compresses_exactly_the_text_that_is_scored() -> None:
    targets = torch.cat([b.targets for b in batches()]).flatten()
    text = b"".join(TOKEN_BYTES[t] for t in targets.tolist() if t != -100)
    assert gzip_bits_per_byte(batches(), TOKEN_BYTES) == 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)
    assert gzip_bits_per_byte(batches(), None) is None


def test_gzip_is_at_its_best() -> None:
    """Level 9 finds the far repetition of 20,000 random letters; level 1 looks less far."""
    letters = torch.randint(4, (2, 700), generator=torch.Generator().manual_seed(0)).repeat(1, 30)
    text = b"".join(TOKEN_BYTES[i] for i in letters.flatten().tolist())
    best, fast = (8 * len(gzip.compress(text, level, mtime=0)) / len(text) for level in (9, 1))
    assert gzip_bits_per_byte([Batch(letters, letters)], TOKEN_BYTES) == best != fast


def test_the_documents_that_a_limit_leaves_are_the_same_for_every_tokenizer(tmp_path: Path) -> None:
    """Of texts of equal bytes, whatever number of tokens they are."""

    def taken(factor: int) -> set[int]:
        lengths = [factor * n for n in (3, 8, 5, 2, 9, 4, 7, 6)]
        source = make_source(tmp_path / str(factor), lengths)
        source.store.facts.n_bytes[:] = [30, 80, 50, 20, 90, 40, 70, 60]
        windows = SlidingWindows([source], seq_len=SEQ_LEN, stride=4, eot_id=EOT, max_tokens=50)
        return {d for i in range(len(windows)) for d in windows[i].documents.tolist() if d >= 0}

    few, many = taken(1), taken(3)
    assert few == many
    assert 2 < len(few) < 8
    assert few != set(range(len(few))), "a random choice"


def test_documents_of_several_sources_are_told_apart(model: LM, tmp_path: Path) -> None:
    sources = [make_source(tmp_path / "a"), make_source(tmp_path / "b", (12, 5), chosen=(1,))]
    both = scores_of(model, SlidingWindows(sources, seq_len=SEQ_LEN, stride=3, eot_id=EOT, max_tokens=None))
    for i, source in enumerate(sources):
        alone = scores_of(model, SlidingWindows([source], seq_len=SEQ_LEN, stride=3, eot_id=EOT, max_tokens=None))
        part = slice(0, len(LENGTHS)) if i == 0 else slice(len(LENGTHS), None)
        assert both.tokens[part].tolist() == alone.tokens.tolist()
        assert both.nll[part] == pytest.approx(alone.nll, rel=1e-5)


def test_what_is_no_number_is_no_right_answer() -> None:
    logits = torch.tensor([[1.0, float("nan"), 0.0], [2.0, 1.0, 0.0]])
    for found in (
        scores_of_logits(logits, torch.tensor([0, 0])),
        scores_of_logits_(logits.clone(), torch.tensor([0, 0]), torch.empty(2, 3)),
    ):
        assert found.rank.tolist() == [3, 0]


def test_the_spread_of_a_mean_is_as_cochran_has_it() -> None:
    of, by = np.array([2.0, 9.0, 4.0]), np.array([1, 3, 2])
    residuals = of - 2.5 * by
    spread = 1.959964 * math.sqrt(3 / 2 * float((residuals**2).sum())) / 6
    found = estimate(of, by)
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - spread, 2.5 + spread))


def test_a_share_stays_within_0_and_1_and_a_perplexity_within_floats() -> None:
    tally = Tally(3, None)
    tally.tokens[:], tally.top1[:], tally.top5[:] = 10, [0, 0, 1], [10, 9, 10]
    tally.nll[:] = 1e5
    scores = tally.scores()
    assert scores.top1.low == 0.0
    assert scores.top5.high == 1.0
    assert math.isfinite(scores.perplexity.value)
