"""How long a step of several processes takes: a model over what one alone takes and what `communication` counts.

No step of several GPUs has been held against it.
"""

import math
from dataclasses import dataclass

from colakit.analysis.communication import Flow, Pass, flows
from colakit.analysis.shares import Strategy, matrices, matrix_owners, newton_schulz_of, shares_of
from colakit.config.schema import RunConfig


@dataclass(frozen=True)
class Link:
    """A way from one GPU to another."""

    gb_per_s: float
    """In one direction, 10⁹ bytes."""
    hop_us: float
    """Until a message that is as short as can be has gone from one to the next."""


@dataclass(frozen=True)
class Network:
    """GPUs in nodes."""

    node_size: int
    within: Link
    between: Link
    """Of each GPU: all of a node have one of their own."""
    call_us: float
    """What a collective takes, however few there are and however little it sends."""


H100_NODES = Network(8, Link(450.0, 1.9), Link(50.0, 4.0), 14.0)
"""Eight H100 or H200 a node. NVLink 4 has 900 GB/s, half in each direction; each has an adapter of 400 Gb/s InfiniBand.

Hops and calls are those of NCCL's own model of its rings, protocol LL128 (``src/graph/tuning.cc``).
"""


def pcie_cards(gb_per_s: float) -> Network:
    """A few cards in one computer; hops and calls from where `H100_NODES` has them."""
    link = Link(gb_per_s, 2.5)
    return Network(8, link, link, 14.0)


@dataclass(frozen=True)
class Compute:
    """A step of one process alone, milliseconds."""

    forward_ms: float
    backward_ms: float
    muon_ms: float
    adamw_ms: float
    other_ms: float = 0.0
    """What is none of these, as the wait for the next kernel."""

    @property
    def step_ms(self) -> float:
        """All of it."""
        return math.fsum((self.forward_ms, self.backward_ms, self.muon_ms, self.adamw_ms, self.other_ms))


@dataclass(frozen=True)
class StepTime:
    """A step of several processes, each with a batch as large as the one of `alone_ms`."""

    alone_ms: float
    step_ms: float
    communication_ms: float
    """Of all collectives, hidden or not."""
    waiting_ms: float
    """What of it all wait for."""

    @property
    def efficiency_frac(self) -> float:
        """Tokens per second over those of as many processes alone; above 1 where sharing the update saves more."""
        return self.alone_ms / self.step_ms


def step_time(
    config: RunConfig, strategy: Strategy, n: int, compute: Compute, network: Network, micro_batches: int = 1
) -> StepTime:
    """A step alone, less what of the update is left to others, and more what of the collectives nothing is behind.

    ddp and zero1 sum gradients behind the last micro-batch's backward pass alone, fsdp2 gathers and sums behind all
    passes. What is hidden is taken to slow nothing; Muon's time to go with its operations, AdamW's with its entries.
    """
    took: dict[Pass | None, float] = {"forward": 0.0, "backward": 0.0, None: 0.0}
    for flow in flows(config, strategy, n, micro_batches):
        took[flow.behind] += _flow_ms(flow, n, network)
    window = compute.backward_ms / (1 if strategy == "fsdp2" else micro_batches)
    hidden = min(took["forward"], compute.forward_ms) + min(took["backward"], window)
    communication = math.fsum(took.values())
    muon, adamw = _longestshares_of(config, strategy, n)
    spared = (1.0 - muon) * compute.muon_ms + (1.0 - adamw) * compute.adamw_ms
    waiting = communication - hidden
    return StepTime(compute.step_ms, compute.step_ms - spared + waiting, communication, waiting)


def _flow_ms(flow: Flow, n: int, network: Network) -> float:
    """Bytes over bandwidth, calls, and hops: as NCCL has them, in a ring, and those of an all-reduce in a tree.

    Reduces and broadcasts, each of its own root, follow each other round the ring: their hops count once. Where a ring
    leaves a node it has all adapters of the node; in an all-to-all each GPU has its own.
    """
    nodes = -(-n // network.node_size)
    within, between = network.within, network.between
    ring_us = (n - nodes) * within.hop_us + (nodes - 1) * between.hop_us
    tree_us = 2 * ((-(-n // nodes) - 1) * within.hop_us + math.ceil(math.log2(nodes)) * between.hop_us)
    rounds = min(1, flow.calls) if flow.kind in ("reduce", "broadcast") else flow.calls
    latency_us = flow.calls * network.call_us + rounds * (tree_us if flow.kind == "all-reduce" else ring_us)
    gb_per_s = within.gb_per_s
    if nodes > 1:
        adapters = 1 if flow.kind == "all-to-all" else network.node_size
        gb_per_s = min(gb_per_s, adapters * between.gb_per_s)
    return flow.busiest_bytes / (gb_per_s * 1e6) + latency_us / 1e3


def _longestshares_of(config: RunConfig, strategy: Strategy, n: int) -> tuple[float, float]:
    """What share of Muon's operations, and of AdamW's entries, falls to the process that has most of them."""
    if strategy == "ddp":
        return 1.0, 1.0
    shares = shares_of(config, strategy, n)
    tensors, muons = shares[0].tensors, shares[0].muons
    if strategy == "fsdp2":
        costs = [newton_schulz_of(config, [m.shape]) for m in matrices(config)]
        by_rank = [0] * n
        for cost, owner in zip(costs, matrix_owners(config, n), strict=True):
            by_rank[owner] += cost
    else:
        by_rank = [
            sum(newton_schulz_of(config, tensors[i].matrices) for i in muons & share.rows.keys()) for share in shares
        ]
    adamw = [share.entries(muon=False) for share in shares]
    all_adamw = sum(t.size for i, t in enumerate(tensors) if i not in muons)
    return max(by_rank) / max(1, sum(by_rank)), max(adamw) / all_adamw
