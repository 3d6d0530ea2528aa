"""What must hold for every mixture: exact proportions, no block lost or repeated, and nothing that resuming changes."""

import random
from collections import Counter
from fractions import Fraction
from math import ceil, floor

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from colakit.data.ahead import ahead
from colakit.data.loader import Batch, BlockId, TrainLoader
from colakit.data.mixture import WINDOW, Schedule

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
# Decimals, as a user writes them, so that the exact share of a window is known: 0.29, 0.0004, 3.0, …
DECIMALS = st.builds(lambda n, k: Fraction(n, 10**k), st.integers(1, 99), st.integers(0, 5))
STAGES = st.lists(st.dictionaries(st.sampled_from(NAMES), DECIMALS, min_size=1), min_size=1, max_size=4)
LENGTHS = st.lists(st.integers(0, 2300), min_size=3, max_size=3)
SEEDS = st.integers(0, 2**63 - 1)


def schedule_of(stages: list[dict[str, Fraction]], lengths: list[int], seed: int) -> tuple[Schedule, list[int]]:
    """A schedule whose stages but the last have these lengths, and its ends."""
    ends = np.cumsum(lengths[: len(stages) - 1]).tolist()
    weights = [{name: float(weight) for name, weight in stage.items()} for stage in stages]
    return Schedule(NAMES, weights, ends, seed), ends


def shares_of(stage: dict[str, Fraction]) -> dict[str, Fraction]:
    return {name: stage.get(name, Fraction(0)) / sum(stage.values()) for name in NAMES}


@settings(max_examples=30, deadline=None)
@given(STAGES, LENGTHS, SEEDS)
def test_every_window_of_every_stage_is_exact_to_one_block(
    stages: list[dict[str, Fraction]], lengths: list[int], seed: int
) -> None:
    """Counted block by block; beside it, that no source's own numbers have a gap, and that `counts` agrees."""
    schedule, ends = schedule_of(stages, lengths, seed)
    seen = dict.fromkeys(NAMES, 0)
    begins, stops = [0, *ends], [*ends, (ends or [0])[-1] + 2 * WINDOW + 77]
    for stage, begin, stop in zip(stages, begins, stops, strict=True):
        shares = shares_of(stage)
        for first in range(begin, stop, WINDOW):
            window: Counter[str] = Counter()
            for block in range(first, min(first + WINDOW, stop)):
                source, number = schedule.at(block)
                name = NAMES[source]
                assert number == seen[name], "a source goes on where it was"
                seen[name] += 1
                window[name] += 1
                if block % 97 == 0 or block + 1 == stop:
                    assert schedule.counts(block + 1).tolist() == list(seen.values())
            n = window.total()
            for name, share in shares.items():
                if n == WINDOW:
                    assert floor(WINDOW * share) <= window[name] <= ceil(WINDOW * share), (name, float(share))
                assert abs(window[name] - n * share) <= 2 + len(NAMES) * share, "so is each stretch, nearly"


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), DECIMALS, min_size=1), st.integers(1, 20_000), SEEDS)
def test_over_many_windows_the_fractions_of_a_block_come_out(
    stage: dict[str, Fraction], n_windows: int, seed: int
) -> None:
    """To a few blocks of all; rounding every window alike would miss by up to half a block in each."""
    schedule, _ = schedule_of([stage], [], seed)
    counts = dict(zip(NAMES, schedule.counts(n_windows * WINDOW).tolist(), strict=True))
    assert sum(counts.values()) == n_windows * WINDOW
    for name, share in shares_of(stage).items():
        assert abs(counts[name] - n_windows * WINDOW * share) < 5, (name, float(share))


@settings(max_examples=20, deadline=None)
@given(STAGES, LENGTHS, SEEDS, st.randoms(use_true_random=False))
def test_a_block_is_a_function_of_its_number(
    stages: list[dict[str, Fraction]], lengths: list[int], seed: int, rng: random.Random
) -> None:
    schedule, ends = schedule_of(stages, lengths, seed)
    stop = (ends or [0])[-1] + 1500
    forwards = [schedule.at(block) for block in range(stop)]
    other, _ = schedule_of(stages, lengths, seed)
    for block in rng.sample(range(stop), 30):
        assert other.at(block) == forwards[block]
        fresh, _ = schedule_of(stages, lengths, seed)
        assert fresh.at(block) == forwards[block]


class Numbered:
    """Blocks of T + 1 = 3 tokens that tell which they are."""

    def __init__(self, source: int, n_blocks: int) -> None:
        self._source, self._n_blocks = source, n_blocks
        self.n_targets = 2 * n_blocks

    def __len__(self) -> int:
        return self._n_blocks

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        assert 0 <= index < self._n_blocks
        return np.array([self._source, index, 9], dtype=np.int32)


SIZES = st.lists(st.integers(1, 60), min_size=len(NAMES), max_size=len(NAMES))
PROCESSES, PER_PROCESS, MICRO = st.integers(1, 5), st.integers(1, 4), st.integers(1, 9)
SHORT = st.lists(st.integers(0, 70), min_size=3, max_size=3)


def loader_of(
    sizes: list[int], schedule: Schedule, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> TrainLoader:
    sources = {name: Numbered(i, n) for i, (name, n) in enumerate(zip(NAMES, sizes, strict=True))}
    return TrainLoader(sources, schedule, batch_size, seed, global_rank=rank, world_size=world_size)


def told(batches: list[Batch]) -> list[BlockId]:
    """What the tokens say they are."""
    return [BlockId(NAMES[source], number) for b in batches for source, number in b.tokens.tolist()]


@settings(max_examples=40, deadline=None)
@given(SIZES, STAGES, SHORT, PROCESSES, PER_PROCESS, MICRO, SEEDS)
def test_no_block_is_lost_or_repeated_by_any_number_of_processes(
    sizes: list[int],
    stages: list[dict[str, Fraction]],
    lengths: list[int],
    n_processes: int,
    per_process: int,
    micro: int,
    seed: int,
) -> None:
    schedule, ends = schedule_of(stages, lengths, seed)
    batch_size = n_processes * per_process
    alone = loader_of(sizes, schedule, batch_size, seed)
    ranks = [loader_of(sizes, schedule, batch_size, seed, rank, n_processes) for rank in range(n_processes)]
    n_steps = -(-((ends or [0])[-1] + 150) // batch_size)
    drawn: dict[str, list[int]] = {name: [] for name in NAMES}
    for step in range(n_steps):
        blocks = alone.blocks_of(step)
        assert len(blocks) == batch_size
        assert told(alone.micro_batches(step, micro)) == blocks
        assert [block for rank in ranks for block in rank.blocks_of(step)] == blocks
        assert [block for rank in ranks for block in told(rank.micro_batches(step, micro))] == blocks
        for block in blocks:
            drawn[block.source].append(block.number)
    for name, size in zip(NAMES, sizes, strict=True):
        epochs = [drawn[name][i : i + size] for i in range(0, len(drawn[name]), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs), "nor in one that is not over"
        assert alone.epochs(n_steps)[name] == len(drawn[name]) / size


@settings(max_examples=25, deadline=None)
@given(SIZES, STAGES, SHORT, st.integers(1, 9), MICRO, st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_run_that_starts_at_any_step_sees_what_one_without_a_stop_would(
    sizes: list[int],
    stages: list[dict[str, Fraction]],
    lengths: list[int],
    batch_size: int,
    micro: int,
    depth: int,
    rng: random.Random,
) -> None:
    """In the middle of epochs and stages, and with the batches made ahead."""
    seed = rng.randrange(100)
    n_steps = 40
    whole = list(loader_of(sizes, schedule_of(stages, lengths, seed)[0], batch_size, seed).steps(0, n_steps, micro))
    for first in (0, rng.randrange(n_steps), n_steps - 1):
        again = loader_of(sizes, schedule_of(stages, lengths, seed)[0], batch_size, seed)
        for one, other in zip(ahead(again.steps(first, n_steps, micro), depth), whole[first:], strict=True):
            assert [len(batch.tokens) for batch in one] == [len(batch.tokens) for batch in other]
            assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(one, other, strict=True))
            assert all(torch.equal(a.targets, b.targets) for a, b in zip(one, other, strict=True))
