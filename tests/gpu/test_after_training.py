"""On CUDA: generation by a graph of kernels, and evaluation. Run with ``-m gpu``."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from colakit.analysis.hardware import Precision
from colakit.analysis.memory import evaluation_bytes
from colakit.build import Machine, build_model, pick_machine
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.evaluate.generate import Reader, Sampling, generate, with_products_in
from colakit.evaluate.scores import LMScorer, Tally, score_windows
from colakit.evaluate.windows import Window, Windows
from colakit.model.cache import KVCache
from colakit.model.lm import LM

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DTYPES = ["float32", "bfloat16"]


def config_of(preset: str, dtype: str, *more: str) -> RunConfig:
    sizes = ("model.n_layers=3", "model.seq_len=128", "model.vocab_size=3000", f"train.dtype={dtype}")
    return resolve(preset, sets=[*sizes, "train.device=cuda", "model.attention=sdpa", *more]).config


def built(preset: str, dtype: str) -> tuple[LM, Machine]:
    config = config_of(preset, dtype)
    machine = pick_machine(config)
    return build_model(config, machine).eval(), machine


def eager(model: LM, machine: Machine, parts: list[Tensor]) -> list[Tensor]:
    cache, found = KVCache(model.config.n_layers, 128), []
    with torch.no_grad(), machine.autocast():
        for part in parts:
            found.append(model.head(model.extend(part, cache)[:, -1]).float())
    return found


@pytest.mark.parametrize("preset", ["original", "cola-smollm2", "cola-fan-dropout", "cola-fan-atf", "refined-tied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_graph_gives_what_its_kernels_give_one_by_one(preset: str, dtype: str) -> None:
    """Its attention goes over all of the cache, with a mask, by other sums: bfloat16 has 3 digits."""
    model, machine = built(preset, dtype)
    tokens = torch.randint(3000, (3, 40), device="cuda")
    parts = [tokens[:, :20], *(tokens[:, i : i + 1] for i in range(20, 40))]
    reader = Reader(model, machine, max_len=64)
    found = [reader.read(part).clone() for part in parts]
    tolerance = 1e-3 if dtype == "float32" else 6e-2
    for one, other in zip(found, eager(model, machine, parts), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert reader.length == 40


def test_weights_that_are_turned_beforehand_give_the_same_bits() -> None:
    model, machine = built("cola-fan-dropout", "bfloat16")
    parts = [torch.randint(3000, (2, n), device="cuda") for n in (9, 1, 1)]
    before = eager(model, machine, parts)
    after = eager(with_products_in(model, torch.bfloat16), machine, parts)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_generation_goes_on_beyond_the_context_and_is_reproducible() -> None:
    model, machine = built("cola-fan-dropout", "bfloat16")

    def text(seed: int) -> list[int]:
        sampling = Sampling(temperature=0.8, top_k=50, seed=seed)
        return list(generate(model, [3, 5, 7], 140, machine, n_ids=2900, sampling=sampling))

    assert text(0) == text(0)
    assert text(0) != text(1)
    assert len(text(0)) == 140


class Rows(Windows):
    def __init__(self, n: int, length: int) -> None:
        self.ids = np.random.default_rng(0).integers(3000, size=(n, length + 1), dtype=np.int32)
        self.n_documents = n

    def __len__(self) -> int:
        return self.n_documents

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        return Window(self.ids[index], np.full(self.ids.shape[1] - 1, index))


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_evaluations_are_identical_and_near_the_cpu_s(dtype: str) -> None:
    model, machine = built("cola-fan-dropout", dtype)

    def scores(on: LM, where: Machine) -> Tally:
        tally = Tally(24, None)
        score_windows(LMScorer(on, where), Rows(24, 128), tally, batch_size=7)
        return tally

    first, second = scores(model, machine), scores(model, machine)
    assert (first.nll == second.nll).all()
    assert first.scores() == second.scores()
    cpu = scores(model.cpu(), Machine(torch.device("cpu"), torch.float32))
    assert first.nll == pytest.approx(cpu.nll, rel=1e-4 if dtype == "float32" else 1e-2)
    assert first.scores().top5.value == pytest.approx(cpu.scores().top5.value, abs=2e-3)


@pytest.mark.parametrize("preset", ["original", "cola-smollm2", "cola-fan-atf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scoring_takes_no_more_than_is_reckoned_with(preset: str, dtype: str) -> None:
    config = config_of(preset, dtype, "model.vocab_size=49152")
    machine = pick_machine(config)
    scorer = LMScorer(build_model(config, machine), machine)
    tokens = torch.randint(3000, (64, 128))
    scorer(Batch(tokens, tokens))
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    scorer(Batch(tokens, tokens))
    taken = torch.cuda.max_memory_allocated() - held
    reckoned = evaluation_bytes(
        config.model, Precision("cuda", "float32" if dtype == "float32" else "bfloat16"), 64 * 128
    )
    assert 0.3 * reckoned < taken <= reckoned


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * 2**30) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_batch_that_does_not_fit_is_halved_until_it_does(little_memory: None) -> None:
    model, machine = built("cola-smollm2", "bfloat16")
    tally = Tally(2048, None)
    size = score_windows(LMScorer(model, machine), Rows(2048, 128), tally, batch_size=2048)
    assert 1 < size < 2048
    assert tally.tokens.tolist() == [128] * 2048
