"""What several processes really send in a step, as `Traffic` counts it, against the closed formulas.

A process counts whole bytes and rounds down in each collective, so that it may count less than the formula, by less
than a byte for each; Muon's exchange, which differs from process to process, is exact.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from colakit.analysis.communication import Kind, flows, sent_bytes
from colakit.analysis.shares import Strategy, state_bytes
from colakit.config.schema import RunConfig
from colakit.parallel.traffic import Traffic
from colakit.parallel.world import World
from tests.parallel.pool import Pool
from tests.parallel.runs import STRATEGIES, go, slow, step_of, tiny_config

PRESETS = ("original", "cola-fan", "refined-tied")
"""Dense; CoLA with stacked A's; tied."""
MICRO_BATCHES = (1, 3)
PER_MICRO_BATCH = 2
SETTLING = 2
"""Steps: at the beginning of the second DDP tells all, once, which buckets it makes anew."""
ROUNDING = 1e-6
"""Bytes: of thirds, in float64."""


class Counted(Traffic):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """`Traffic`, and how many collectives it was."""

    def __init__(self, rank: int, n: int) -> None:
        super().__init__(rank, n)
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, *args: Any, **kwargs: Any) -> Any:  # Any: as `Traffic`'s
        before = self.sent.copy()
        result = super().__torch_dispatch__(func, *args, **kwargs)
        self.calls.update(kind for kind in self.sent if self.sent[kind] > before[kind])
        return result


def config_of(preset: str, optimizer: str, strategy: str, n: int, micro_batches: int, *sets: str) -> RunConfig:
    batch_size = PER_MICRO_BATCH * micro_batches * n
    return tiny_config(
        preset,
        f"optim.optimizer={optimizer}",
        f"parallel.strategy={strategy}",
        f"train.batch_size={batch_size}",
        f"train.micro_batch_size={PER_MICRO_BATCH}",
        "train.device=cpu",
        *sets,
    )


class Counts(NamedTuple):
    """Of one process and step."""

    sent: Mapping[str, int]
    """Bytes by kind of collective."""
    calls: Mapping[str, int]
    state: int
    """Bytes of optimizer state behind it."""


def counts(world: World, configs: Sequence[RunConfig]) -> list[Counts]:
    """Of a step of each, all of one model."""
    step = step_of(configs[0], world)
    settled = SETTLING if configs[0].parallel.strategy == "ddp" else 0
    go(step, configs[0], range(settled))
    found = []
    for i, config in enumerate(configs, settled):
        with Counted(world.rank, world.size) as traffic:
            go(step, config, range(i, i + 1))
        state = sum(entry.tensor.nbytes for entry in step.optimizer.entries() if entry.tensor.ndim)
        found.append(Counts(traffic.sent, traffic.calls, state))
    return found


def counts_of_all(world: World, optimizer: str, strategy: str) -> dict[str, list[Counts]]:
    """By preset."""
    return {
        preset: counts(world, [config_of(preset, optimizer, strategy, world.size, m) for m in MICRO_BATCHES])
        for preset in PRESETS
    }


@pytest.mark.parametrize(
    ("optimizer", "n"), [("muon", 2), ("muon", 3), ("muon", 4), ("adamw", 2), slow("adamw", 3), slow("adamw", 4)]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_step_sends_is_what_the_formulas_say(pool: Pool, n: int, strategy: Strategy, optimizer: str) -> None:
    by_rank = pool.run(n, counts_of_all, optimizer, strategy)
    for preset, (i, m) in itertools.product(PRESETS, enumerate(MICRO_BATCHES)):
        config = config_of(preset, optimizer, strategy, n, m)
        expected = flows(config, strategy, n, m)
        real = [found[preset][i] for found in by_rank]
        for kind in {flow.kind for flow in expected} | {cast(Kind, kind) for r in real for kind in r.sent}:
            where = (preset, m, kind)
            calls = sum(flow.calls for flow in expected if flow.kind == kind)
            assert all(r.calls[kind] == calls for r in real), where
            missing = sent_bytes(config, strategy, n, m, kind) - sum(r.sent[kind] for r in real) / n
            assert 0.0 <= missing + ROUNDING < (calls if kind != "all-to-all" else 2 * ROUNDING), where
        assert tuple(r.state for r in real) == state_bytes(config, strategy, n), preset


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_gradients_go_in_as_many_buckets_as_foreseen(pool: Pool, strategy: Strategy) -> None:
    sizes = {"d_model": 384, "n_layers": 5, "d_ff": 1000, "vocab_size": 14_001}
    sets = [f"model.{name}={size}" for name, size in sizes.items()]
    config = config_of("original", "muon", strategy, 2, 1, *sets)
    expected = flows(config, strategy, 2)
    assert sum(flow.calls for flow in expected if flow.behind == "backward") > 1
    for sent, calls, _ in (found[0] for found in pool.run(2, counts, [config])):
        assert calls == {kind: sum(f.calls for f in expected if f.kind == kind) for kind in sent}


# No test, since it sees everyone's traffic: what goes over the loopback interface of a quiet machine, to the counted.


def sent_over_loopback() -> int:
    """By everyone, bytes, since the machine was started (Linux)."""
    fields = dict(line.split(":") for line in Path("/proc/net/dev").read_text("utf-8").splitlines() if ":" in line)
    return int({name.strip(): value.split()[8] for name, value in fields.items()}["lo"])


def over_loopback(world: World, config: RunConfig, n_steps: int) -> int:
    """What all processes send in so many steps, bytes."""
    step = step_of(config, world)
    go(step, config, range(SETTLING))
    world.gather(None)
    before = sent_over_loopback()
    go(step, config, range(SETTLING, SETTLING + n_steps))
    world.gather(None)
    return sent_over_loopback() - before


def print_loopback(n_steps: int = 20) -> None:
    sets = [f"model.{name}={size}" for name, size in {"d_model": 192, "d_ff": 500, "vocab_size": 4001}.items()]
    pool = Pool()
    for n, strategy in itertools.product((2, 4), STRATEGIES):
        config = config_of("cola-fan", "adamw", strategy, n, 1, *sets, f"train.max_steps={SETTLING + n_steps}")
        counted = n * n_steps * sent_bytes(config, cast(Strategy, strategy), n)
        print(f"{n} {strategy:5} {pool.run(n, over_loopback, config, n_steps)[0] / counted:.2f}")
    pool.close()


if __name__ == "__main__":
    print_loopback()
