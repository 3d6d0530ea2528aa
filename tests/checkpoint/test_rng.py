"""Random number generators: what is put back draws what was drawn."""

import json
import random

import numpy as np
import pytest
import torch

from colakit.checkpoint import rng


def draw() -> tuple[object, ...]:
    normal = random.gauss(0, 1)  # keeps every other number for later
    return (
        normal,
        random.random(),
        float(np.random.standard_normal()),
        torch.randn(3).tolist(),
        torch.rand(2).tolist(),
    )


def test_generators_go_on_where_they_were_from_json() -> None:
    rng.seed(5)
    draw()
    state = json.loads(json.dumps(rng.capture()))
    expected = [draw() for _ in range(3)]
    rng.seed(6)
    draw()
    rng.restore(state)
    assert [draw() for _ in range(3)] == expected


def test_equal_seeds_draw_alike_and_others_do_not() -> None:
    def of(number: int) -> tuple[object, ...]:
        rng.seed(number)
        return draw()

    assert of(2**62 + 1) == of(2**62 + 1)
    assert all(one != other for one, other in zip(of(1), of(2), strict=True))


def test_a_look_aside_leaves_no_trace() -> None:
    rng.seed(1)
    states = rng.torch_states()
    expected = torch.randn(3)
    after = rng.capture()
    with rng.at(states):
        assert torch.equal(torch.randn(3), expected)
        torch.randn(9)
    assert rng.capture() == after
    with pytest.raises(ValueError, match="inside"), rng.at(states):
        raise ValueError("inside")
    assert rng.capture() == after
