"""Whether this process is one of several, as a launcher tells it: the variables that torchrun sets. No torch here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from colakit.errors import RunError

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """This process among all of its job."""

    global_rank: int = 0
    local_rank: int = 0
    """Among those of this machine: the number of its GPU."""
    world_size: int = 1
    local_world_size: int = 1

    @property
    def machines(self) -> int:
        """That the job runs on, as many processes on each."""
        return self.world_size // self.local_world_size

    @property
    def is_main(self) -> bool:
        """Whether it is the one that speaks for all."""
        return self.global_rank == 0


SOLE = Place()
"""One process, which no launcher has started."""


def place(variables: Mapping[str, str] = os.environ) -> Place:
    """This process's place; alone where no launcher has started it. Raises RunError where variables are missing."""
    if "WORLD_SIZE" not in variables or "RANK" not in variables:
        return SOLE
    found = {name: variables.get(name, "") for name in _NAMES}
    wrong = [name for name, value in found.items() if not value.isdecimal()]
    here = Place(*(int(value) for value in found.values())) if not wrong else SOLE
    if wrong or here.global_rank >= here.world_size or here.local_rank >= here.local_world_size:
        told = ", ".join(f"{name}={found[name]}" for name in wrong or _NAMES)
        raise RunError(
            f"A launcher has set RANK and WORLD_SIZE, but not as torchrun sets them: {told}. Use torchrun, or "
            "`colakit train --nproc N`, or unset them."
        )
    return here
