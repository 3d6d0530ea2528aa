"""Contestants that are measured in no time."""

from typing import Any

import torch

from colakit.bench.contestant import Contestant
from colakit.bench.course import Figures, Memory
from colakit.build import Machine
from colakit.config.load import resolve
from colakit.config.schema import RunConfig

CPU = Machine(torch.device("cpu"), torch.float32)
TINY = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", "vocab_size=61", "seq_len=10")


def tiny_config(*sets: str, preset: str = "cola-fan-dropout-muon") -> RunConfig:
    return resolve(preset, smoke_run=True, sets=[*(f"model.{s}" for s in TINY), *sets]).config


def contestant(preset: str = "cola-fan-dropout-muon", *sets: str, **options: Any) -> Contestant:
    return Contestant(tiny_config(*sets, preset=preset), **options)


MEMORY = Memory(
    peak=2.0, reserved=None, device=3.0, weights=0.25, gradients=0.25, optimizer=0.5, activations=0.75, retries=None
)


def figures(*times: float, **changes: Any) -> Figures:
    values = {
        "times": times or (1.0,),
        "data_times": (0.001,) * len(times or (1.0,)),
        "skipped": 0,
        "forward_ms": 300.0,
        "backward_ms": 600.0,
        "optimizer": (),
        "first_step_s": 9.0,
        "memory": MEMORY,
        "parameters": 1234,
        "cpu_util_frac": 0.9,
        "gpu": None,
    }
    return Figures(**{**values, **changes})
