"""The memory ledger on CUDA, in bfloat16 and float32: within 5 % of what the graph keeps. Run with ``-m gpu``."""

import pytest
import torch

from colakit.analysis.memory import memory_ledger
from colakit.build import pick_machine
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from tests.integration.test_memory import SMALL, expected_bytes, saved_bytes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("across", ["true", "false"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("preset", preset_names())
def test_activations_are_what_the_graph_keeps(preset: str, dtype: str, across: str) -> None:
    sets = [*SMALL, "model.seq_len=512", "train.device=cuda", f"train.dtype={dtype}", "model.attention=sdpa"]
    sets.append(f"data.attend_across_documents={across}")
    config = resolve(preset, sets=sets).config
    expected = expected_bytes(memory_ledger(config))
    assert expected == pytest.approx(saved_bytes(config, pick_machine(config)), rel=0.05)
