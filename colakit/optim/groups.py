"""Which optimizer gets which parameter of a built model, decided by role alone (`group_of`) and never by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from colakit.analysis.inventory import group_of
from colakit.model.linear import ParamRole


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

    Raises ValueError, with the routing table, where a parameter has no role, a role has no parameter, or Muon was asked
    for and would get no matrix: it is known to be switched off in silence by name filters that match nothing.
    """
    names = dict(model.named_parameters())
    groups = {name: group_of(role.role, muon=muon) for name, role in roles.items()}
    routing = Routing(
        muon=tuple(n for n, group in groups.items() if group == "muon"),
        adamw_decayed=tuple(n for n, group in groups.items() if group == "adamw_decayed"),
        adamw_plain=tuple(n for n, group in groups.items() if group == "adamw_plain"),
    )
    if names.keys() != roles.keys():
        without = ", ".join(sorted(names.keys() ^ roles.keys()))
        raise ValueError(f"parameters and roles differ: {without}\n{routing.table(roles)}")
    if muon and not routing.muon:
        raise ValueError(f"no matrix would reach Muon\n{routing.table(roles)}")
    return routing
