"""The ledger against what eager PyTorch holds: unique storages saved for backward, and optimizer state."""

import re

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from colakit.analysis import chunking
from colakit.analysis.memory import STAGES, Stage, memory_ledger
from colakit.bench.storages import LiveStorages
from colakit.build import Machine, build_model, build_optimizer
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import RunConfig
from colakit.loss import loss_sums
from colakit.model.documents import Documents
from colakit.records.analysis import MemoryRecord

SMALL = ("model.n_layers=3", "model.vocab_size=1000", "model.seq_len=48", "train.batch_size=2", "model.remat=none")
CPU = ("train.device=cpu",)
ISOLATED = "data.attend_across_documents=false"


def documents_of(config: RunConfig, lengths: tuple[int, ...]) -> Documents | None:
    """Documents of these lengths in every row, and one that fills it; None where documents see each other."""
    if config.data.attend_across_documents:
        return None
    starts = torch.zeros(config.train.batch_size, config.model.seq_len, dtype=torch.bool)
    starts[:, torch.tensor([0, *lengths]).cumsum(dim=0)] = True
    return Documents.of(starts)


def saved_by_stage(config: RunConfig, machine: Machine, lengths: tuple[int, ...] = ()) -> dict[str, int]:
    """Unique storages that the graph keeps after a forward pass in training mode, parameters excluded.

    Each belongs to the innermost module of `OWNERS` that is running when it is first kept, outside all to the head.
    `lengths` are those of `documents_of`.
    """
    model = build_model(config, machine).train()
    tokens = torch.randint(config.model.vocab_size, (config.train.batch_size, config.model.seq_len))
    tokens, targets = tokens.to(machine.device), tokens.roll(1, dims=1).to(machine.device)
    documents = documents_of(config, lengths)
    documents = documents.to(machine.device) if documents is not None else None
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, tuple[int, str, Tensor]] = {}
    running = ["head"]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in saved:
            saved[storage.data_ptr()] = (storage.nbytes(), running[-1], tensor)  # held, so no address is used twice
        return tensor

    for name, module in model.named_modules():
        stage = OWNERS.get(re.sub(r"^blocks\.\d+\.", "", name))
        if stage is not None:
            module.register_forward_pre_hook(lambda *_, stage=stage: running.append(stage))
            module.register_forward_hook(lambda *_: running.pop() and None)
    with saved_tensors_hooks(pack, lambda tensor: tensor), machine.autocast():
        loss_sums(*model.logit_factors(model.hidden(tokens, documents)), targets)
    stages = dict.fromkeys(STAGES, 0)
    for size, stage, _ in saved.values():
        stages[stage] += size
    return stages


OWNERS: dict[str, Stage] = {
    "tok_embed": "embedding",
    "attention": "attention",
    "attention.features": "qkv",
    "attention.qkv": "qkv",
    "attention.out": "o",
    "attention.output_dropout": "o",
    "mlp": "gate_up",
    "mlp.down": "down",
    "gated_residual": "down",
    "attention_norm": "norms",
    "mlp_norm": "norms",
    "post_mlp_norm": "norms",
    "norm": "norms",
    "final_dropout": "norms",
}


def saved_bytes(config: RunConfig, machine: Machine) -> int:
    """The same, in all."""
    return sum(saved_by_stage(config, machine).values())


def expected_bytes(ledger: MemoryRecord) -> int:
    return ledger.plain_activations + ledger.loss_gradients + ledger.weight_copies


VARIANTS = [
    *(f"model.norm={norm}" for norm in ("hybrid", "pre", "post", "listing")),
    "model.qkv_norm=l2",
    "model.n_kv_heads=12",
    "model.tie_embeddings=true",
    "model.attention_dropout=0.1",
    "model.final_dropout=0.3",
]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_are_what_the_graph_keeps(preset: str, variant: str) -> None:
    """To the byte but for a scalar or two; the aim is 5 % of each kind."""
    config = resolve(preset, sets=[*SMALL, *CPU, variant]).config
    saved = saved_by_stage(config, Machine(torch.device("cpu"), torch.float32))
    ledger = memory_ledger(config)
    expected = {stage.name: stage.plain_bytes for stage in ledger.activations}
    expected["head"] += ledger.loss_gradients
    assert expected == pytest.approx(saved, abs=8)


@pytest.mark.parametrize("n_kv_heads", [6, 12])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("preset", ["original", "cola"])
def test_q_k_and_v_without_norms(preset: str, dropout: float, n_kv_heads: int) -> None:
    sets = (f"model.n_kv_heads={n_kv_heads}", f"model.attention_dropout={dropout}", "model.norm=pre")
    config = resolve(preset, sets=[*SMALL, *CPU, *sets, "model.qkv_norm=none"]).config
    saved = saved_by_stage(config, Machine(torch.device("cpu"), torch.float32))
    attention = next(stage for stage in memory_ledger(config).activations if stage.name == "attention")
    assert attention.plain_bytes == pytest.approx(saved["attention"], abs=8)


@pytest.mark.parametrize("lengths", [(7, 1, 20), (1,) * 47])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["original", "cola-fan"])
def test_isolated_documents_add_a_table_for_every_token_however_many_there_are(
    preset: str, dtype: str, lengths: tuple[int, ...]
) -> None:
    config = resolve(preset, sets=[*SMALL, *CPU, ISOLATED, f"train.dtype={dtype}"]).config
    saved = saved_by_stage(config, Machine(torch.device("cpu"), getattr(torch, dtype)), lengths)
    ledger = memory_ledger(config)
    assert expected_bytes(ledger) == pytest.approx(sum(saved.values()), abs=8)
    shared = memory_ledger(resolve(preset, sets=[*SMALL, *CPU, f"train.dtype={dtype}"]).config)
    # 48 more positions of 32 cosines and sines; in bfloat16 q and k of 3 blocks have copies.
    added = 48 * 32 * (2 * 4 if dtype == "float32" else 3 * 4 * 2)
    assert ledger.plain_activations - shared.plain_activations == added


def test_without_a_fused_kernel_isolated_documents_keep_at_most_what_the_ledger_says() -> None:
    config = resolve("cola-fan", sets=[*SMALL, *CPU, ISOLATED, "model.attention_dropout=0.1"]).config
    expected = expected_bytes(memory_ledger(config))
    machine = Machine(torch.device("cpu"), torch.float32)
    assert saved_bytes(config, machine) == pytest.approx(expected, abs=8)
    assert sum(saved_by_stage(config, machine, lengths=(24,)).values()) < 0.97 * expected


@pytest.mark.parametrize("preset", preset_names())
def test_in_bfloat16_too(preset: str) -> None:
    config = resolve(preset, sets=[*SMALL, *CPU, "train.dtype=bfloat16"]).config
    saved = saved_bytes(config, Machine(torch.device("cpu"), torch.bfloat16))
    assert expected_bytes(memory_ledger(config)) == pytest.approx(saved, abs=8)


def test_a_loss_in_chunks_keeps_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MAX_LOGITS", 20 * 1000)
    for preset in ("original", "cola-fan", "refined-tied"):
        config = resolve(preset, sets=[*SMALL, *CPU]).config
        ledger = memory_ledger(config)
        assert ledger.chunked_logits == 20 * 1000 * 4 < ledger.logits == 96 * 1000 * 4
        saved = saved_bytes(config, Machine(torch.device("cpu"), torch.float32))
        assert expected_bytes(ledger) == pytest.approx(saved, abs=8)


@pytest.mark.parametrize("preset", ["original", "cola-fan-muon", "cola-fan-atf", "refined-tied"])
def test_weights_gradients_and_optimizer_state(preset: str) -> None:
    config = resolve(preset, sets=[*SMALL, *CPU]).config
    model = build_model(config, Machine(torch.device("cpu"), torch.float32))
    optimizer = build_optimizer(model, config.optim)
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    ledger = memory_ledger(config)
    assert ledger.weights == sum(p.nbytes for p in model.parameters())
    assert ledger.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    for name, expected in (("muon", ledger.muon_state), ("adamw", ledger.adamw_state)):
        state = optimizer.parts[name].state.values() if name in optimizer.parts else []
        # AdamW counts its steps in one number for each parameter, too.
        held = sum(t.nbytes for s in state for key, t in s.items() if key != "step")
        assert held == expected
    assert (ledger.muon_state > 0) == (config.optim.optimizer == "muon")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("vocab_size", [500, 8000])
@pytest.mark.parametrize("chunk", [None, 256])
@pytest.mark.parametrize("preset", ["original", "cola-fan-dropout", "cola-m", "cola-fan-atf", "refined-tied"])
def test_the_peak_of_forward_and_backward(
    preset: str, vocab_size: int, chunk: int | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All storages are followed, parameters and their gradients aside: hooks cannot see inside checkpointing."""
    if chunk is not None:
        monkeypatch.setattr(chunking, "MAX_LOGITS", chunk * vocab_size)
    sizes = (f"model.vocab_size={vocab_size}", "model.n_layers=4", "model.seq_len=64", "train.batch_size=12")
    base = [*SMALL, *CPU, *sizes, f"train.dtype={dtype}"]
    config = resolve(preset, sets=base if preset != "cola-m" else [*base, "model.remat=cola_m"]).config
    ledger = memory_ledger(config)
    assert (ledger.chunked_logits < ledger.logits) == (chunk is not None)
    machine = Machine(torch.device("cpu"), getattr(torch, dtype))
    model = build_model(config, machine).train()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    tokens = torch.randint(vocab_size, (12, 64))
    with LiveStorages([*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]) as live:
        with machine.autocast():
            loss = loss_sums(*model.logit_factors(model.hidden(tokens)), tokens).nll
        loss.backward()
    fixed = ledger.weights + ledger.gradients + ledger.muon_state + ledger.adamw_state
    total = ledger.total
    assert total is not None

    assert total - fixed == pytest.approx(live.peak, rel=0.05)


def kept_by_cola_m(config: RunConfig, dtype: torch.dtype) -> int:
    """Bytes alive after a forward pass, the gradients of the loss included.

    Hooks cannot see inside checkpointing: here all storages are followed, parameters and gradients aside.
    """
    machine = Machine(torch.device("cpu"), dtype)
    model = build_model(config, machine).train()
    tokens = torch.randint(config.model.vocab_size, (config.train.batch_size, config.model.seq_len))
    documents = documents_of(config, lengths=(7, 1, 20))
    with LiveStorages([*model.parameters(), *model.buffers()]) as live:
        with machine.autocast():
            loss = loss_sums(*model.logit_factors(model.hidden(tokens, documents)), tokens).nll
        kept = live.now  # while the graph of the loss is alive
        assert loss.requires_grad
    return kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["cola-m", "cola-fan-dropout", "cola-fan-atf"])
def test_cola_m_keeps_what_the_ledger_says(preset: str, dtype: str) -> None:
    sets = [*SMALL, *CPU, "model.remat=cola_m", "train.batch_size=16", "model.n_layers=5", f"train.dtype={dtype}"]
    config = resolve(preset, sets=sets).config
    ledger = memory_ledger(config)
    assert ledger.cola_m_activations is not None
    kept = kept_by_cola_m(config, getattr(torch, dtype))
    assert ledger.cola_m_activations + ledger.loss_gradients == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cola_m_keeps_the_tables_of_isolated_documents_once(dtype: str) -> None:
    sets = [*SMALL, *CPU, "model.remat=cola_m", f"train.dtype={dtype}"]
    shared, isolated = (resolve("cola-m", sets=[*sets, *more]).config for more in ((), (ISOLATED,)))
    added = kept_by_cola_m(isolated, getattr(torch, dtype)) - kept_by_cola_m(shared, getattr(torch, dtype))
    activations = [memory_ledger(config).cola_m_activations for config in (isolated, shared)]
    assert activations[0] is not None
    assert activations[1] is not None
    assert added == activations[0] - activations[1] == 2 * 48 * 32 * 2 * 4
