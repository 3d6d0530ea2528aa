"""The ledger's CUDA side, which no CPU can run, against sums written out by hand. On CUDA itself: tests/gpu."""

import pytest

from colakit.analysis.memory import memory_ledger
from colakit.config.load import resolve
from colakit.records.analysis import MemoryRecord

# d_model 24 in 4 heads of 6 with 2 key and value heads (so k and v are 12 wide), d_ff 40, 10 · 3 tokens. The rank is a
# quarter of the input: 6, and 10 after the feed-forward.
SETS = (
    "model.d_model=24",
    "model.n_heads=4",
    "model.n_kv_heads=2",
    "model.d_ff=40",
    "model.n_layers=2",
    "model.vocab_size=50",
    "model.seq_len=10",
    "model.remat=none",
    "train.batch_size=3",
    "train.device=cuda",
)
TOKENS = 30


def ledger(preset: str, *sets: str) -> MemoryRecord:
    return memory_ledger(resolve(preset, sets=[*SETS, *sets]).config)


def plain(record: MemoryRecord) -> dict[str, int]:
    return {stage.name: stage.plain_bytes for stage in record.activations}


def test_bfloat16_with_low_rank_layers_and_dropout() -> None:
    record = ledger("cola-fan-dropout", "model.fan_ratio=0.25", "train.dtype=bfloat16")
    # Hybrid: two norms in the first block, one in the second, one at the end; input in float32, 1/RMS; final dropout.
    norms = TOKENS * ((3 + 1) * (24 * 4 + 4) + 24)
    # x; A·x and GELU of it in two branches of rank 6 each for q, k, v; a byte of mask each; 6 + 3 + 3 angles.
    qkv = 2 * TOKENS * (2 * 24 + 3 * 2 * (2 * 2 * 6 + 6) + 2 * (6 + 3 + 3))
    # Before their norms with 1/RMS a head, after them, the output, the log-sums; cos and sin for q, k of both blocks.
    attention = 2 * TOKENS * (2 * 48 + 4 * 8 + 2 * 48 + 2 * 24 + 4 * 4) + 2 * 2 * 2 * 2 * 10 * 3
    assert plain(record) == {
        "embedding": TOKENS * 8,
        "norms": norms,
        "qkv": qkv,
        "attention": attention,
        "o": 2 * TOKENS * (2 * 2 * 6 + 24),
        "gate_up": 2 * TOKENS * (2 * (24 + 2 * 40) + 2 * 2 * 6),
        "down": 2 * TOKENS * (2 * 40 + 2 * 2 * 10),
        "head": 2 * TOKENS * (24 + 6),
    }
    # The input of the last product, its weights and biases, twice in bfloat16, and the chunk's logits in it.
    assert record.loss_workspace == 2 * (TOKENS * 6 + 2 * 50 * 7 + TOKENS * 50)
    assert record.loss_gradients == 2 * TOKENS * 6 + 4 * 50 * 7
    assert record.logits == TOKENS * 50 * 4


@pytest.mark.parametrize(("dtype", "added"), [("bfloat16", 2 * 4 * 20 * 3 * 2), ("float32", 2 * 20 * 3 * 4)])
def test_isolated_documents_turn_by_the_angles_of_every_token(dtype: str, added: int) -> None:
    """Of 30 tokens instead of 10 positions, 3 cosines and sines; in bfloat16 q and k of both blocks have copies."""
    sets = (f"train.dtype={dtype}", "model.n_kv_heads=4")
    shared, isolated = ledger("cola", *sets), ledger("cola", *sets, "data.attend_across_documents=false")
    assert plain(isolated) == plain(shared) | {"attention": plain(shared)["attention"] + added}
    assert isolated.plain_total == shared.plain_total + added
    assert isolated.cola_m_activations is not None
    assert shared.cola_m_activations is not None
    assert isolated.cola_m_activations == shared.cola_m_activations + 2 * TOKENS * 3 * 4


def test_float32_with_shared_key_and_value_heads_keeps_the_weights_of_all_pairs() -> None:
    sets = ("model.qkv_norm=none", "model.norm=pre", "train.dtype=float32")
    shared = plain(ledger("original", *sets))
    # q, k and v for each query head; 4 heads of 10 weights; the tables.
    assert shared["attention"] == 2 * TOKENS * 4 * (3 * 24 + 4 * 10) + 2 * 4 * 10 * 3
    assert shared["o"] == 2 * TOKENS * 4 * 24  # copied
    dropped = plain(ledger("original", *sets, "model.attention_dropout=0.1"))
    assert dropped["attention"] - shared["attention"] == 2 * TOKENS * 4 * 10 * (4 + 1)  # their product, and a mask
    # Fused: q and k, the wide product that v is a part of, the output, the log-sums.
    own = plain(ledger("original", *sets, "model.n_kv_heads=4"))
    assert own["attention"] == 2 * TOKENS * (4 * (2 * 24 + 72 + 24) + 4 * 4) + 2 * 4 * 10 * 3
    assert own["o"] == 0


def loss_of(record: MemoryRecord) -> int:
    return record.weight_copies + record.chunked_logits + record.loss_workspace + record.loss_gradients


@pytest.mark.parametrize("preset", ["cola-smollm2-muon", "refined-tied"])
def test_what_is_held_at_the_worst_moment(preset: str) -> None:
    """All that stays, and the loss with its gradients; with CoLA-M a block computed again may be more.

    Then the gradient of weights that are the embedding's too is still waiting.
    """
    for vocab_size in (10, 900):
        record = ledger(preset, "train.dtype=bfloat16", f"model.vocab_size={vocab_size}")
        stays = record.weights + record.gradients + record.muon_state + record.adamw_state
        loss = loss_of(record)
        assert record.plain_total == stays + record.plain_activations + loss
        assert record.cola_m_activations is not None
        assert record.recomputed_block is not None
        waiting = 4 * vocab_size * 24 if preset == "refined-tied" else 0
        block = record.recomputed_block + waiting + TOKENS * (2 * 40 + (2 * 4 + 2) * 24)
        assert record.cola_m_peak == ("loss" if vocab_size == 900 else "block")
        assert record.cola_m_total == stays + record.cola_m_activations + (loss if vocab_size == 900 else block)


@pytest.mark.parametrize(
    ("preset", "dtype", "workspace", "gradients"),
    [
        ("original", "float32", 4 * TOKENS * 24, 4 * (TOKENS + 50) * 24),
        # Its float32 input is copied; so are the weights, and their gradient by one chunk; half of a chunk's logits.
        ("original", "bfloat16", (4 + 2) * TOKENS * 24 + 2 * (2 * 50 * 24 + 7 * 50), 4 * (TOKENS + 50) * 24),
        ("cola-fan-muon", "float32", 4 * TOKENS * 6, 4 * (TOKENS * 6 + 50 * 7)),
    ],
)
def test_a_total_holds_the_logits_of_one_chunk(
    preset: str, dtype: str, workspace: int, gradients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = ledger(preset, f"train.dtype={dtype}")
    monkeypatch.setattr("colakit.analysis.chunking.MAX_LOGITS", 7 * 50)
    chunked = ledger(preset, f"train.dtype={dtype}")
    assert at_once.chunked_logits == at_once.logits == chunked.logits == TOKENS * 50 * 4
    assert (chunked.chunked_logits, chunked.loss_workspace, chunked.loss_gradients) == (
        7 * 50 * 4,
        workspace,
        gradients,
    )
    assert at_once.plain_activations == chunked.plain_activations
    assert at_once.plain_total - chunked.plain_total == loss_of(at_once) - loss_of(chunked)


def test_only_one_micro_batch_is_held() -> None:
    whole = ledger("cola", "train.batch_size=12")
    assert plain(ledger("cola", "train.batch_size=12", "train.micro_batch_size=3")) == plain(ledger("cola"))
    assert whole.plain_activations > 3 * ledger("cola").plain_activations
