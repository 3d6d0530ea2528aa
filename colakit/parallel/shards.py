"""What of a tensor is in this process, told without the library that divides it, which takes half a second to load."""

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as FSDP2 makes of every parameter."""
    return hasattr(tensor, "to_local")


def here(tensor: Tensor) -> Tensor:
    """Some rows of a DTensor, all of any other."""
    if not is_sharded(tensor):
        return tensor
    own: Tensor = tensor.to_local()  # type: ignore[attr-defined]  # of a DTensor
    return own
