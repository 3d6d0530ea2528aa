"""The peers are what they are called: the same shape, the same update, the same loss."""

import pytest
import torch
from torch import nn

from colakit.analysis.params import total_params
from colakit.bench.peers import LlamaStep, OwnStep, TorchMuon
from colakit.bench.random_data import RandomBlocks
from colakit.build import build_model, build_optimizer
from colakit.data.loader import make_batch
from tests.bench.tiny import CPU, contestant, tiny_config


@pytest.mark.parametrize("tied", ["true", "false"])
def test_llama_has_the_shape_of_the_dense_preset(tied: str) -> None:
    """It has no norms of Q, K and V, and two norms in every block; a tied head is no parameter of its own."""
    config = tiny_config(f"model.tie_embeddings={tied}", "model.norm=pre", "model.qkv_norm=none", preset="original")
    peer = LlamaStep(config, CPU)
    assert sum(p.numel() for p in peer.model.parameters()) == total_params(config.model)


def test_llama_trains_on_the_same_targets() -> None:
    config = tiny_config("train.batch_size=4", "optim.lr=0.01", "optim.grad_clip=9.0", preset="original")
    peer = LlamaStep(config, CPU)
    blocks = RandomBlocks(contestant("original").config)
    batch = make_batch([blocks[i] for i in range(4)])
    logits = peer.model(input_ids=batch.tokens).logits
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    found = peer.model(input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets).loss
    torch.testing.assert_close(found, expected)
    assert all(peer(i, [batch]) for i in range(30))
    after = peer.model(input_ids=batch.tokens, labels=batch.targets, shift_labels=batch.targets).loss
    assert float(after.detach()) < 0.9 * float(expected.detach())


def test_torch_muon_updates_the_weights_that_colakit_stacks() -> None:
    """As torch.optim.Muon does the matrices by themselves, and about as colakit's own Muon does."""
    config = tiny_config("optim.lr=0.01", preset="cola-fan-muon")
    models = [build_model(config, CPU) for _ in range(2)]
    optimizers = [build_optimizer(model, config.optim) for model in models]
    own, peer = optimizers[0].parts["muon"], TorchMuon(optimizers[1])
    (group,) = own.param_groups
    weights = [
        p for p in models[1].parameters() if any(p is q for q in optimizers[1].parts["muon"].param_groups[0]["params"])
    ]
    alone = [[nn.Parameter(m.clone()) for m in torch.split(p.detach(), list(rows))]
             for p, rows in zip(weights, group["matrix_rows"], strict=True)]  # fmt: skip
    reference = torch.optim.Muon(
        [m for ms in alone for m in ms],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        nesterov=group["nesterov"],
        ns_coefficients=group["ns_coefficients"],
        ns_steps=group["ns_steps"],
        adjust_lr_fn=group["update_scaling"],
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for p, q, ms in zip(weights, group["params"], alone, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
            for m, g in zip(ms, torch.split(p.grad, [len(m) for m in ms]), strict=True):
                m.grad = g
        peer.step()
        own.step()
        reference.step()  # type: ignore[no-untyped-call]
    for p, q, ms in zip(weights, group["params"], alone, strict=True):
        assert torch.equal(p.detach(), torch.cat([m.detach() for m in ms]))
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0.0, atol=2e-3)  # bfloat16 there
    peer.zero_grad()
    assert all(p.grad is None for p in weights)


def test_only_colakits_own_steps_say_whether_an_update_was_made() -> None:
    blocks = RandomBlocks(contestant().config)
    batch = make_batch([blocks[0], blocks[1]])
    for step in (OwnStep(tiny_config(), CPU), LlamaStep(tiny_config(preset="original"), CPU)):
        assert step(0, [batch])
        with torch.no_grad():
            next(iter(step.model.parameters())).fill_(float("nan"))
        assert not step(1, [batch])
