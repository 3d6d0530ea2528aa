"""Parameter counts of the full presets, by hand from PAPER.md §5."""

import pytest
import torch
from torch import Tensor

from colakit.model.lm import LM
from tests.model.tiny import PRESETS, full_config

D, KV, FF, R, R_FF, L = 768, 384, 2048, 192, 512, 12
PHI4, SMOLLM2 = 102_000, 49_152


def low_rank(rank: int, d_in: int, d_out: int) -> int:
    """A without bias, B with one."""
    return rank * (d_in + d_out) + d_out


def fan_part(d_out: int) -> int:
    """Two A's, B_p, B_np and their biases."""
    p = int(d_out * 0.15)
    rest = d_out - 2 * p
    return 2 * R * D + R * (p + rest) + p + rest


NORMS = L * (D + 3 * 64) + D + D
"""Per block one norm and three of a head's width; the first block's attention norm; the final norm."""
DENSE_QKV, DENSE_O, DENSE_MLP = D * D + 2 * D * KV, D * D, D * 2 * FF + FF * D
COLA_QKV = low_rank(R, D, D) + 2 * low_rank(R, D, KV)
COLA_O = low_rank(R, D, D)
COLA_MLP = low_rank(R, D, 2 * FF) + low_rank(R_FF, FF, D)
FAN_QKV = fan_part(D) + 2 * fan_part(KV)
ATF_LAYER = 115 * D + (D - 230) * D + (D - 230)


def cola_head(vocab: int) -> int:
    return low_rank(R, D, vocab)


COMPONENTS = {  # embedding, qkv with FAN layer, o, mlp, head
    "original": (PHI4 * D, DENSE_QKV, DENSE_O, DENSE_MLP, PHI4 * D),
    "cola": (PHI4 * D, COLA_QKV, COLA_O, COLA_MLP, cola_head(PHI4)),
    "cola-smollm2": (SMOLLM2 * D, COLA_QKV, COLA_O, COLA_MLP, cola_head(SMOLLM2)),
    "cola-fan": (SMOLLM2 * D, FAN_QKV, COLA_O, COLA_MLP, cola_head(SMOLLM2)),
    "cola-fan-atf": (SMOLLM2 * D, COLA_QKV + ATF_LAYER, COLA_O, COLA_MLP, cola_head(SMOLLM2)),
    "refined-tied": (SMOLLM2 * D, FAN_QKV, COLA_O, COLA_MLP, 0),
}
SAME = {
    "smollm2-stages": "cola-fan",
    "cola-smollm2-muon": "cola-smollm2",
    "cola-m": "cola-smollm2",
    "cola-fan-muon": "cola-fan",
    "cola-fan-dropout": "cola-fan",
    "cola-fan-dropout-muon": "cola-fan",
    "refined": "cola-fan",
}
TOTALS_IN_MILLIONS = {  # PAPER.md §5, "before norms and gates"
    "original": 234.5,
    "cola": 139.1,
    "cola-smollm2": 88.4,
    "cola-fan": 93.1,
    "cola-fan-atf": 94.4,
    "refined-tied": 83.5,
}


def published(preset: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return LM(full_config(preset)).state_dict()


def count(state: dict[str, Tensor], *fragments: str) -> int:
    return sum(t.numel() for name, t in state.items() if any(f".{f}." in f".{name}." for f in fragments))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_component_has_the_parameters_of_the_hand_formula(preset: str) -> None:
    embedding, qkv, o, mlp, head = COMPONENTS[SAME.get(preset, preset)]
    state = published(preset)
    assert count(state, "tok_embed") == embedding
    assert count(state, "q_proj", "k_proj", "v_proj", "features") == L * qkv
    assert count(state, "o_proj") == L * o
    assert count(state, "gate_up_proj", "down_proj") == L * mlp
    assert count(state, "lm_head") == head
    norms = ("attention_norm", "mlp_norm", "q_norm", "k_norm", "v_norm", "norm")
    assert count(state, *norms) == NORMS
    assert sum(t.numel() for t in state.values()) == embedding + L * (qkv + o + mlp) + head + NORMS


@pytest.mark.parametrize(("preset", "millions"), TOTALS_IN_MILLIONS.items())
def test_totals_are_those_of_paper_md(preset: str, millions: float) -> None:
    before_norms = sum(t.numel() for t in published(preset).values()) - NORMS
    assert round(before_norms / 1e6, 1) == millions


def test_differences_are_those_of_paper_md() -> None:
    """FAN adds 4.78M, ATF 6.02M (the printed 92.2M − 86.2M), and original with norms has 234,541,824."""
    total = {n: sum(t.numel() for t in published(n).values()) for n in COMPONENTS}
    assert total["original"] == 234_541_824
    assert round((total["cola-fan"] - total["cola-smollm2"]) / 1e6, 2) == 4.78
    assert round((total["cola-fan-atf"] - total["cola-smollm2"]) / 1e6, 2) == 6.02


def test_the_listing_adds_one_norm_and_one_gate_per_block() -> None:
    counts = {}
    for norm in ("hybrid", "listing"):
        with torch.device("meta"):
            counts[norm] = sum(p.numel() for p in LM(full_config("cola-smollm2", f"norm={norm}")).parameters())
    assert counts["listing"] - counts["hybrid"] == 2 * L * D - D  # less hybrid's first attention norm
