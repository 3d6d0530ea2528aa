"""How many windows are scored at once: as many as memory has room for, and no more than are of use."""

import pytest
import torch

from colakit.analysis.hardware import Precision
from colakit.analysis.memory import evaluation_bytes
from colakit.build import Machine
from colakit.config.load import resolve
from colakit.evaluate import evaluation
from colakit.evaluate.evaluation import fitting_batch
from colakit.units import GIB

CPU = Machine(torch.device("cpu"), torch.float32)
MODEL = resolve("cola-smollm2").config.model
ON_CPU = Precision("cpu", "float32")


@pytest.mark.parametrize(("seq_len", "most"), [(1024, 4), (512, 8), (4096, 1), (9000, 1)])
def test_with_room_for_all_it_is_what_is_of_use(seq_len: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "free_memory", lambda: 500 * GIB)
    assert fitting_batch(MODEL, CPU, seq_len) == most


def test_with_less_room_it_is_what_fits_in_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for windows in (1, 2, 4):
        needed = evaluation_bytes(MODEL, ON_CPU, windows * 1024)
        monkeypatch.setattr(evaluation, "free_memory", lambda needed=needed: 2 * needed)
        assert fitting_batch(MODEL, CPU, 1024) == windows
        monkeypatch.setattr(evaluation, "free_memory", lambda needed=needed: 2 * needed - 4)
        assert fitting_batch(MODEL, CPU, 1024) == max(1, windows // 2)


def test_what_scoring_takes_is_two_streams_and_the_wider_of_a_stage_and_the_logits() -> None:
    """By hand, for a model whose logits, and one whose feed-forward is what is widest."""
    tokens, d = 100, MODEL.d_model
    assert evaluation_bytes(MODEL, ON_CPU, tokens) == 4 * tokens * (2 * d + 2 * MODEL.vocab_size)
    narrow = MODEL.model_copy(update={"vocab_size": 100})
    by_stage = evaluation_bytes(narrow, ON_CPU, tokens) - 4 * tokens * 2 * d
    assert by_stage > 4 * tokens * 2 * narrow.d_ff, "gate and up, at least"
    assert evaluation_bytes(narrow, ON_CPU, 2 * tokens) == 2 * evaluation_bytes(narrow, ON_CPU, tokens)
