"""The random number generators that a run may draw from, as JSON values: Python's, NumPy's, torch's, CUDA's."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:  # Any: JSON values
    """The state of every generator."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _to_hex(torch.get_rng_state()),
        "cuda": [_to_hex(state) for state in torch_states()[1:]],
    }


def seed(number: int, *more: int) -> None:
    """Have every generator begin from `number`, and from `more`, by which processes or moments differ."""
    if more:
        number = int(np.random.SeedSequence((number, *more)).generate_state(1, np.uint64)[0] >> 1)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)  # of CUDA too


def restore(state: dict[str, Any]) -> None:  # Any: JSON values
    """Put every generator back, that of CUDA where there is one.

    Raises KeyError, TypeError or ValueError for what `capture` did not make.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_hex(state["torch"]))
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(_from_hex(state["cuda"][0]))


def torch_states() -> list[torch.Tensor]:
    """The state of torch's generators alone, that of the CPU first: cheap enough for every step.

    Of CUDA's the current device's, which is the one that trains: to ask others would take memory on each.
    """
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


@contextmanager
def at(states: list[torch.Tensor]) -> Iterator[None]:
    """Have torch draw from `torch_states` inside, and go on behind as if nothing had been drawn."""
    now = torch_states()
    put_back(states)
    try:
        yield
    finally:
        put_back(now)


def put_back(states: list[torch.Tensor]) -> None:
    """Have torch go on from `torch_states`."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


def _to_hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
