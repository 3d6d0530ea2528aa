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
        "cuda": [_to_hex(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def seed(number: int) -> None:
    """Have every generator begin from `number`."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)  # of CUDA too


def restore(state: dict[str, Any]) -> None:  # Any: JSON values
    """Put every generator back; those of CUDA devices that are not here are left out.

    Raises KeyError, TypeError or ValueError for what `capture` did not make.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_hex(state["torch"]))
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, cuda in zip(range(n_devices), state["cuda"], strict=False):
        torch.cuda.set_rng_state(_from_hex(cuda), device)


def torch_states() -> list[torch.Tensor]:
    """The state of torch's generators alone, that of the CPU first: cheap enough for every step."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


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
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


def _to_hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
