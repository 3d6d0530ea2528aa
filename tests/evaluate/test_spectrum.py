"""Spectra of activations against the singular values of the activations themselves, gathered the slow obvious way.

Tolerance: values below √(D·ε) of the largest, 1e-7 at these widths, come out as 0; all others are closer than that.
"""

from collections.abc import Sequence
from itertools import islice

import pytest
import torch
from torch import Tensor

from colakit.build import Machine
from colakit.data.loader import Batch
from colakit.errors import CheckpointError, DataError
from colakit.evaluate.spectrum import effective_rank, measure_spectrum, singular_values
from colakit.loss import IGNORE
from colakit.model.documents import Documents
from colakit.model.lm import LM
from colakit.records.spectrum import PlaceSpectrum, SpectrumRecord
from tests.model.tiny import PRESETS, SIZES, tiny_config, tiny_model

CPU = Machine(torch.device("cpu"), torch.float32)
ROWS, TIME = 7, 13
READERS = {"attention_input": "attention.qkv", "mlp_input": "mlp.gate_up", "mlp_hidden": "mlp.down"}
RANKS = {"attention_input": 12, "mlp_input": 12, "mlp_hidden": 11}
WIDTHS = {"attention_input": 48, "mlp_input": 48, "mlp_hidden": 44}


def make_batch(*, documents: bool = False) -> Batch:
    """7 rows of 13 tokens; of the last two rows 3 and 8 positions are real, the rest padding."""
    tokens = torch.randint(SIZES["vocab_size"], (ROWS, TIME), generator=torch.Generator().manual_seed(5))
    targets = tokens.roll(-1, 1)
    for row, length in ((5, 3), (6, 8)):
        tokens[row, length:] = 0
        targets[row, length:] = IGNORE
    starts = (torch.arange(TIME) % 5 == 0).expand(ROWS, TIME)
    return Batch(tokens, targets, starts if documents else None)


N_REAL = 5 * TIME + 3 + 8


def split(batch: Batch, *sizes: int) -> list[Batch]:
    parts = zip(batch.tokens.split(sizes), batch.targets.split(sizes), strict=True)  # type: ignore[no-untyped-call]
    return [Batch(tokens, targets) for tokens, targets in parts]


def measure(model: LM, batches: Sequence[Batch], **more: float) -> SpectrumRecord:
    return measure_spectrum(model, batches, CPU, preset="tiny", step=3, **more)  # type: ignore[arg-type]


def gathered(model: LM, batch: Batch) -> dict[tuple[int, str], Tensor]:
    """What each projection read at the real positions [N, D]: all kept."""
    seen: dict[tuple[int, str], Tensor] = {}
    handles = [
        block.get_submodule(path).register_forward_pre_hook(
            lambda _, inputs, key=(i, place): seen.update({key: inputs[0][batch.targets != IGNORE]})
        )
        for i, block in enumerate(model.blocks)
        for place, path in READERS.items()
    ]
    model.eval()
    with torch.no_grad():
        model(batch.tokens, None if batch.document_starts is None else Documents.of(batch.document_starts))
    for handle in handles:
        handle.remove()
    return seen


def by_place(record: SpectrumRecord) -> dict[tuple[int, str], PlaceSpectrum]:
    return {(p.block, p.place): p for p in record.places}


def oracle_rank(values: Sequence[float], energy: float) -> int:
    squares = sorted((v * v for v in values), reverse=True)
    return next(k for k in range(1, len(squares) + 1) if sum(squares[:k]) >= energy * sum(squares))


def assert_matches(record: SpectrumRecord, activations: dict[tuple[int, str], Tensor], energy: float = 0.95) -> None:
    places = by_place(record)
    assert list(places) == list(activations)
    for key, x in activations.items():
        expected = torch.linalg.svdvals(x.double())
        values = torch.tensor(places[key].singular_values, dtype=torch.float64)
        assert (values.shape[0], places[key].width) == (x.shape[1],) * 2 == (WIDTHS[key[1]],) * 2
        torch.testing.assert_close(values, expected / expected[0], rtol=0, atol=2e-7)
        assert places[key].effective_rank == oracle_rank(expected.tolist(), energy)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_the_spectra_of_its_activations(preset: str) -> None:
    config = tiny_config(preset)
    model, batch = tiny_model(config), make_batch()
    record = measure(model, [batch])
    assert_matches(record, gathered(model, batch))
    assert (record.preset, record.step, record.tokens, record.energy_frac) == ("tiny", 3, N_REAL, 0.95)
    dense = config.linear == "dense"
    assert {p.place: p.layer_rank for p in record.places} == (dict.fromkeys(RANKS) if dense else RANKS)


@pytest.mark.parametrize("norm", ["pre", "post", "hybrid", "listing"])
@pytest.mark.parametrize("fan", ["none", "qkv", "input"])
def test_wherever_norms_and_fan_sit(norm: str, fan: str) -> None:
    preset = "cola-smollm2" if fan == "none" else "cola-fan"
    model, batch = tiny_model(tiny_config(preset, f"norm={norm}", f"fan={fan}")), make_batch()
    assert_matches(measure(model, [batch]), gathered(model, batch))


def test_with_hybrid_norm_a_block_puts_out_what_the_attention_of_the_next_reads() -> None:
    model, batch = tiny_model(tiny_config()), make_batch()
    put_out: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: put_out.append(output[batch.targets != IGNORE]))
    read = gathered(model, batch)
    for i in (1, 2):
        assert torch.equal(read[i, "attention_input"], put_out[i - 1])


def test_documents_that_a_batch_keeps_apart_are_run_apart() -> None:
    model, batch = tiny_model(tiny_config()), make_batch(documents=True)
    record = measure(model, [batch])
    assert_matches(record, gathered(model, batch))
    assert record != measure(model, [make_batch()])


def test_the_rank_of_the_layer_is_the_one_that_was_set() -> None:
    places = measure(tiny_model(tiny_config("cola-fan", "rank=5")), [make_batch()]).places
    assert {p.layer_rank for p in places} == {5}


def test_what_stands_in_padding_does_not_matter() -> None:
    model, batch = tiny_model(tiny_config()), make_batch()
    other = Batch(torch.where(batch.targets == IGNORE, 66, batch.tokens), batch.targets)
    assert not torch.equal(other.tokens, batch.tokens)
    assert measure(model, [other]) == measure(model, [batch])


def test_batches_of_any_size_give_the_same() -> None:
    model, batch = tiny_model(tiny_config("cola-fan")), make_batch()
    for sizes in ((7,), (1, 6), (2, 2, 2, 1), (4, 3)):
        assert_matches(measure(model, split(batch, *sizes)), gathered(model, batch))


def test_no_more_than_the_first_max_tokens_are_measured_nor_read() -> None:
    model, batch = tiny_model(tiny_config()), make_batch()
    n = 4 * TIME + 7
    batches = iter([*split(batch, 3, 2, 2), batch])
    record = measure_spectrum(model, batches, CPU, preset="tiny", step=3, max_tokens=n)  # within the second
    assert record.tokens == n
    assert_matches(record, {key: x[:n] for key, x in gathered(model, batch).items()})
    assert len(list(islice(batches, 9))) == 2


def test_two_measurements_are_identical_and_leave_the_model_as_it_was() -> None:
    model = tiny_model(tiny_config("cola-fan-dropout"))
    model.train()
    first, second = (measure(model, [make_batch()]) for _ in range(2))
    assert first == second
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_cola_m_changes_nothing() -> None:
    plain, cola_m = (tiny_model(tiny_config("cola-smollm2", f"remat={remat}")) for remat in ("none", "cola_m"))
    assert measure(cola_m, [make_batch()]) == measure(plain, [make_batch()])


def test_sums_are_in_float64_whatever_the_products_are() -> None:
    """Sums in float32 would be off by more than the tolerance."""
    model, batch = tiny_model(tiny_config()).float(), make_batch()
    machine = Machine(torch.device("cpu"), torch.bfloat16)
    with machine.autocast():
        expected = gathered(model, batch)
    assert {x.dtype for x in expected.values()} == {torch.float32, torch.bfloat16}
    assert_matches(measure_spectrum(model, [batch], machine, preset="tiny", step=0), expected)


def test_fewer_tokens_than_the_widest_place_has_dimensions_are_refused() -> None:
    model, batch = tiny_model(tiny_config()), make_batch()
    assert measure(model, [batch], max_tokens=48).tokens == 48
    with pytest.raises(DataError, match=r"47 tokens were measured, in activations of 48 dimensions.*--data"):
        measure(model, [batch], max_tokens=47)
    with pytest.raises(DataError, match="39 tokens"):
        measure(model, split(batch, 3, 4)[:1])


def test_a_diverged_model_is_told() -> None:
    model = tiny_model(tiny_config())
    with torch.no_grad():
        model.blocks[1].mlp.gate_up.a.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(CheckpointError, match="block 1 are not finite"):
        measure(model, [make_batch()])


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.01, float("nan")])
def test_an_energy_that_is_no_share_is_refused(energy: float) -> None:
    with pytest.raises(ValueError, match="energy must be in"):
        measure(tiny_model(tiny_config()), [make_batch()], energy=energy)


@pytest.mark.parametrize("energy", [1e-9, 0.5, 0.999])
def test_the_energy_is_the_one_asked_for(energy: float) -> None:
    model, batch = tiny_model(tiny_config()), make_batch()
    record = measure(model, [batch], energy=energy)
    assert record.energy_frac == energy
    assert_matches(record, gathered(model, batch), energy)


def with_values(*values: float) -> Tensor:
    """A matrix [53, 31] with these singular values; the others are 0."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, len(values), generator=generator, dtype=torch.float64) for n in (53, 31))
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    x: Tensor = left * torch.tensor(values, dtype=torch.float64) @ right.T
    return x


@pytest.mark.parametrize("rank", [1, 6, 10, 31])
def test_a_matrix_of_low_rank_has_exactly_that_rank(rank: int) -> None:
    """All its directions equally strong: 95 % of the energy need 95 % of them, and all of it needs all."""
    x = with_values(*[3.0] * rank)
    values = singular_values(x.T @ x)
    torch.testing.assert_close(values[:rank], torch.full((rank,), 3.0, dtype=torch.float64))
    assert torch.equal(values[rank:], torch.zeros(31 - rank, dtype=torch.float64))
    assert effective_rank(values, 1.0) == rank
    assert effective_rank(values, 0.95) == -(-95 * rank // 100)


def test_energy_is_the_sum_of_squares() -> None:
    """10, 3, 1, 1: of the squares, 100, 9, 1, 1, two have 98 %; of the values themselves two would have 87 %."""
    x = with_values(10.0, 3.0, 1.0, 1.0)
    values = singular_values(x.T @ x)
    assert [effective_rank(values, energy) for energy in (0.9, 0.95, 0.99, 1.0)] == [1, 2, 3, 4]


def test_activations_are_not_centred() -> None:
    """A mean of 5 in each of 31 dimensions is a direction, and the strongest by far."""
    x = torch.randn(53, 31, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 5.0
    values = singular_values(x.T @ x)
    torch.testing.assert_close(values, torch.linalg.svdvals(x))
    assert effective_rank(values, 0.95) == 1
    centred = x - x.mean(0)
    assert effective_rank(singular_values(centred.T @ centred), 0.95) > 10


def test_no_activation_at_all_has_rank_0() -> None:
    model = tiny_model(tiny_config())
    with torch.no_grad():
        model.blocks[2].mlp.gate_up.b[0].zero_()  # type: ignore[union-attr, index]
        model.blocks[2].mlp.gate_up.bias[0].zero_()  # type: ignore[union-attr, index]
    place = by_place(measure(model, [make_batch()], energy=1.0))[2, "mlp_hidden"]
    assert (place.effective_rank, set(place.singular_values), place.width) == (0, {0.0}, 44)
