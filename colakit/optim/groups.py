"""Which optimizer gets which parameter of a built model, decided by role alone (`group_of`) and never by name."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from colakit.analysis.inventory import group_of
from colakit.model.linear import ParamRole
from colakit.parallel.shards import here


@dataclass(frozen=True)
class Routing:
    """Names of the parameters of each group. Together they are all parameters, each once."""

    muon: tuple[str, ...]
    adamw_decayed: tuple[str, ...]
    adamw_plain: tuple[str, ...]

    def table(self, roles: Mapping[str, ParamRole]) -> str:
        """One line per parameter: group, role, name. For error messages."""
        rows = [("muon", n) for n in self.muon] + [("adamw", n) for n in self.adamw_decayed + self.adamw_plain]
        return "\n".join(f"  {group:5}  {roles[name].role if name in roles else '?':9}  {name}" for group, name in rows)


def route(model: nn.Module, roles: Mapping[str, ParamRole], *, muon: bool) -> Routing:
    """Assign every parameter of `model` to one group.

    Raises ValueError, with the routing table, where a parameter has no role, a role has no parameter, one tensor would
    be in two groups, or Muon was asked for and would get no matrix, or an embedding or a head: it is known to be
    switched off in silence by name filters that match nothing, and to take tied embeddings for matrices.
    """
    names = dict(model.named_parameters())
    groups = {name: group_of(role.role, muon=muon) for name, role in roles.items()}
    routing = Routing(
        muon=tuple(n for n, group in groups.items() if group == "muon"),
        adamw_decayed=tuple(n for n, group in groups.items() if group == "adamw_decayed"),
        adamw_plain=tuple(n for n, group in groups.items() if group == "adamw_plain"),
    )
    problem = _shared(model, groups)
    if problem is None and names.keys() != roles.keys():
        problem = f"parameters and roles differ: {', '.join(sorted(names.keys() ^ roles.keys()))}"
    if problem is None and muon and not routing.muon:
        problem = "no matrix would reach Muon"
    if problem is not None:
        raise ValueError(f"{problem}\n{routing.table(roles)}")
    return routing


def _shared(model: nn.Module, groups: Mapping[str, str]) -> str | None:
    """Names what two parameters share, where they lie in one memory, whole or in part: each would update the other."""
    ranges = sorted(
        (p.data_ptr(), p.data_ptr() + p.nbytes, name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        for p in [here(parameter)]
        if name in groups and p.data_ptr()  # on the meta device all addresses are 0
    )
    for (_, end, first), (start, _, second) in itertools.pairwise(ranges):
        if start < end:
            return f"one tensor under two names: {first} ({groups[first]}) and {second} ({groups[second]})"
    return None
