"""Windows that several processes score come to what one scores.

Counts exactly. A sum of losses is one of float32 losses, each rounded by the shape of its batch: 1e-7 of it, and ten
times that is allowed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from colakit.build import build_model, build_replica
from colakit.config.schema import RunConfig
from colakit.evaluate.scores import LMScorer, Tally, score_windows
from colakit.evaluate.windows import Window, Windows
from colakit.parallel.shards import is_sharded
from colakit.parallel.world import World
from colakit.train.sinks import SinkSet
from colakit.train.trainer import Trainer
from tests.parallel.pool import Pool
from tests.parallel.runs import CPU, EOT, STRATEGIES, go, slow, step_of, tiny_config, weights
from tests.train.tiny_runs import make_config, write_corpus

N_DOCUMENTS = 5


class Ragged(Windows):
    """Windows of several lengths, of which some targets are not scored."""

    def __init__(self, config: RunConfig, n: int) -> None:
        self.n_documents = N_DOCUMENTS
        random = np.random.default_rng(3)
        self._windows = [self._make(random, 4 + (5 * i) % 9, config.model.vocab_size) for i in range(n)]

    def _make(self, random: np.random.Generator, length: int, n_ids: int) -> Window:
        ids = random.integers(n_ids, size=length + 1, dtype=np.int32)
        return Window(ids, random.integers(-1, N_DOCUMENTS, size=length))

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # no slices
        return self._windows[index]


def tallied(world: World, config: RunConfig, n_windows: int) -> list[NDArray[np.generic]]:
    """Sums of losses, places, tokens and bytes, by document, that this process knows of at the end."""
    replica = build_replica(build_model(config, CPU), config, CPU, world)
    tally = Tally(N_DOCUMENTS, [b"x" * (1 + i % 4) for i in range(config.model.vocab_size)])
    score_windows(
        LMScorer(replica.model, CPU, replica.objective.factors),
        Ragged(config, n_windows),
        tally,
        batch_size=2,
        isolate_eot=EOT if config.data.isolates_documents else None,
        world=world,
    )
    replica.rest()
    return [tally.nll, tally.top1, tally.top5, tally.tokens, tally.text_bytes]


@pytest.mark.parametrize("sets", [(), ("data.attend_across_documents=false",)])
@pytest.mark.parametrize(("size", "n_windows"), [(3, 7), slow(2, 9), slow(3, 12), (4, 2)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shared_out_the_scores_are_those_of_one_process(
    pool: Pool, strategy: str, size: int, n_windows: int, sets: tuple[str, ...]
) -> None:
    """Also where the windows do not divide, or are fewer than the processes."""
    ((nll, *counts),) = pool.run(1, tallied, tiny_config("cola-fan-muon", *sets), n_windows)
    config = tiny_config("cola-fan-muon", f"parallel.strategy={strategy}", *sets)
    assert int(counts[2].sum()) == sum(int((w.documents >= 0).sum()) for w in Ragged(config, n_windows))
    for found_nll, *found in pool.run(size, tallied, config, n_windows):
        np.testing.assert_allclose(found_nll, nll, rtol=1e-6)
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, counts, strict=True))


def trains_between(world: World, config: RunConfig) -> list[bool]:
    """Whether an evaluation changed a weight: at once, or by what is trained behind it."""
    ends = []
    for looks in (False, True):
        step = step_of(config, world)
        go(step, config, range(2))
        if looks:
            scorer = LMScorer(step.replica.model, CPU, step.replica.objective.factors)
            score_windows(scorer, Ragged(config, 5), Tally(N_DOCUMENTS, None), batch_size=2, world=world)
            step.replica.rest()
        ends.append(weights(step.model, world))
        go(step, config, range(2, 4))
        ends.append(weights(step.model, world))
    return [not torch.equal(t, ends[i + 2][name]) for i in range(2) for name, t in ends[i].items()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_evaluation_leaves_training_as_it_is(pool: Pool, strategy: str) -> None:
    """With dropout, which it does not draw for; and divided, where the weights were."""
    config = tiny_config("cola-fan-dropout-muon", f"parallel.strategy={strategy}", dropout=True)
    for changed in pool.run(2, trains_between, config):
        assert changed
        assert not any(changed)


def is_divided_behind_an_evaluation(world: World, folder: Path) -> bool:
    config = make_config(folder / "poems.jsonl", "train.batch_size=12", "train.device=cpu", "parallel.strategy=fsdp2")
    trainer = Trainer(config, out=folder / "run", sinks=lambda _: SinkSet([]), world=world)
    trainer.held_out.evaluate(0)
    return all(map(is_sharded, trainer.model.parameters()))


def test_an_evaluation_gives_back_what_it_has_gathered(pool: Pool, tmp_path: Path) -> None:
    write_corpus(tmp_path / "poems.jsonl")
    assert pool.run(2, is_divided_behind_an_evaluation, tmp_path) == [True, True]
