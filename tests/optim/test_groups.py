"""Roles to groups. A known trap: a filter by names the model does not have, so that tied embeddings get Muon."""

import pytest
import torch
from torch import nn

from colakit.model.linear import ParamRole, Role
from colakit.model.lm import LM
from colakit.optim.groups import route
from tests.model.tiny import MUON_PRESETS, PRESETS, tiny_config


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2)


ROLES = {
    "first.weight": ParamRole("matrix", (3,)),
    "first.bias": ParamRole("bias"),
    "second.weight": ParamRole("head", (2,)),
    "second.bias": ParamRole("bias"),
}


def test_the_muon_presets_are_the_paper_s() -> None:
    assert set(MUON_PRESETS) == {
        "cola-smollm2-muon",
        "cola-fan-muon",
        "cola-fan-dropout-muon",
        "refined",
        "refined-tied",
        "smollm2-stages",
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_embeddings_and_heads_never_go_to_muon(preset: str) -> None:
    """By identity of the tensors, tied ones included, and not by their names."""
    model = LM(tiny_config(preset))
    parameters = dict(model.named_parameters())
    routing = route(model, model.param_roles(), muon=True)
    muon = {id(parameters[n]) for n in routing.muon}
    assert id(model.tok_embed.weight) not in muon
    assert "tok_embed.weight" in routing.adamw_decayed
    if model.output is not None:
        assert not muon & {id(p) for p in model.output.parameters()}
    inner = {id(p) for b in model.blocks for p in b.parameters() if p.ndim == 2}
    assert muon == inner


@pytest.mark.parametrize("preset", PRESETS)
def test_norms_biases_and_gates_are_not_decayed(preset: str) -> None:
    for sets in ((), ("norm=listing",)):
        model = LM(tiny_config(preset, *sets))
        parameters = dict(model.named_parameters())
        for muon in (False, True):
            routing = route(model, model.param_roles(), muon=muon)
            assert {n for n, p in parameters.items() if p.ndim == 1} == set(routing.adamw_plain)


def test_roles_become_groups() -> None:
    routing = route(Toy(), ROLES, muon=True)
    assert routing.muon == ("first.weight",)
    assert routing.adamw_decayed == ("second.weight",)
    assert routing.adamw_plain == ("first.bias", "second.bias")
    assert route(Toy(), ROLES, muon=False).adamw_decayed == ("first.weight", "second.weight")


def test_muon_without_a_matrix_is_refused_with_the_table() -> None:
    roles = ROLES | {"first.weight": ParamRole("embedding")}
    with pytest.raises(ValueError, match="no matrix would reach Muon") as error:
        route(Toy(), roles, muon=True)
    lines = str(error.value).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["adamw", "embedding", "first.weight"],
        ["adamw", "head", "second.weight"],
        ["adamw", "bias", "first.bias"],
        ["adamw", "bias", "second.bias"],
    ]
    assert route(Toy(), roles, muon=False).muon == ()


@pytest.mark.parametrize("muon", [False, True])
def test_a_parameter_without_a_role_is_refused(muon: bool) -> None:
    roles = {n: r for n, r in ROLES.items() if n != "second.bias"}
    with pytest.raises(ValueError, match=r"parameters and roles differ: second\.bias"):
        route(Toy(), roles, muon=muon)


def test_a_role_without_a_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameters and roles differ: lm_head\.weight"):
        route(Toy(), ROLES | {"lm_head.weight": ParamRole("head")}, muon=True)


class Tied(nn.Module):
    """Two names for one tensor, or for a part of its memory."""

    def __init__(self, *, view: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, 4))
        self.w = nn.Parameter(self.table.data[2:5]) if view else self.table
        self.other = nn.Parameter(torch.zeros(3, 4))


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("role", ["embedding", "head"])
def test_an_embedding_or_head_that_would_be_orthogonalised_is_refused(role: Role, view: bool) -> None:
    roles = {"table": ParamRole(role, (6,)), "w": ParamRole("matrix", (3,)), "other": ParamRole("matrix", (3,))}
    with pytest.raises(ValueError, match="one tensor under two names: ") as error:
        route(Tied(view=view), roles, muon=True)
    assert {"table (adamw_decayed)", "w (muon)"} == set(str(error.value).splitlines()[0].split(": ")[1].split(" and "))
    assert ["muon", "matrix", "w"] in [line.split() for line in str(error.value).splitlines()]


def test_parameters_beside_each_other_in_one_buffer_are_not_one() -> None:
    model, buffer = Toy(), torch.zeros(100)
    start = 0
    for p in model.parameters():
        p.data = buffer[start : start + p.numel()].view(p.shape)
        start += p.numel()
    assert route(model, ROLES, muon=True).muon == ("first.weight",)


def test_two_matrices_that_overlap_are_refused_too() -> None:
    model = Tied(view=True)
    model.other = nn.Parameter(model.w.data[1:])
    roles = {"table": ParamRole("norm", (6,)), "w": ParamRole("matrix", (3,)), "other": ParamRole("matrix", (2,))}
    model.table = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"one tensor under two names: w \(muon\) and other \(muon\)"):
        route(model, roles, muon=True)


def test_on_the_meta_device_no_two_tensors_are_taken_for_one() -> None:
    with torch.device("meta"):
        model = Toy()
    assert route(model, ROLES, muon=True).muon == ("first.weight",)
