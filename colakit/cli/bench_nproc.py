"""``bench --nproc``: who is measured where several processes share a batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colakit.config.load import override
from colakit.config.rules import check_divides
from colakit.config.schema import RunConfig
from colakit.records.bench import BY_ADAMW

if TYPE_CHECKING:  # it comes with torch
    from colakit.bench.contestant import Contestant


def sharing_contestants(configs: Sequence[RunConfig], nproc: int, *, compiled: bool) -> list["Contestant"]:
    """For each of `configs`: `nproc` processes that share its batch, and one alone with as much as each of them has.

    Where it trains by Muon, the same by AdamW. Raises ConfigError for a batch that does not divide, and
    for more processes than GPUs.
    """
    from colakit.bench.contestant import Contestant
    from colakit.host import usable_cpus
    from colakit.parallel.world import check_built

    for config in configs:
        check_built(config.parallel.strategy, config.train.device)
    from colakit.parallel.launch import check_gpus

    threads = max(1, usable_cpus() // nproc)
    everyone = []
    for config in configs:
        check_divides(config, nproc)
        check_gpus(nproc, config.train.device)
        own = config.train.micro_batch_size_of(nproc)
        by_muon = config.optim.optimizer == "muon"
        for each in (config, *([_by_adamw(config)] if by_muon else ())):
            shared = override(each, [f"train.micro_batch_size={own}"])
            alone = override(shared, [f"train.batch_size={config.train.batch_size // nproc}"])
            for way in (False, True) if compiled else (False,):
                everyone.append(Contestant(alone, compiled=way, threads=threads))
                everyone.append(Contestant(shared, compiled=way, nproc=nproc, threads=threads))
    return everyone


def _by_adamw(config: RunConfig) -> RunConfig:
    return override(config, ["optim.optimizer=adamw"]).model_copy(update={"preset": config.preset + BY_ADAMW})
