"""CoLA-M (§5.5): keep only the rank-r activations of a block for the backward pass, and recompute the rest from them.

In its simple form: selective activation checkpointing whose policy saves what the A's produce. The A's are told from
all other products of a block by having no bias: `F.linear` without one is ``aten.mm``, with one ``aten.addmm``.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from colakit.model.block import Context, Wired


def _keep_low_rank(
    _ctx: object, op: object, *_args: Any, **_kwargs: Any
) -> CheckpointPolicy:  # Any: an op's own arguments
    if op is torch.ops.aten.mm.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def cola_m(block: Wired, x: Tensor, context: Context = None) -> Tensor:
    """Run `block` on x [B, T, D] so that its backward pass finds x and the outputs of its A's, and nothing else.

    With ATF the cosine and sine arguments of the FAN layer, a product without bias too, are kept as well; and
    `context`, which all blocks share.
    """
    contexts = partial(create_selective_checkpoint_contexts, _keep_low_rank)
    out: Tensor = checkpoint(block, x, context, use_reentrant=False, context_fn=contexts)
    return out


def plain(block: Wired, x: Tensor, context: Context = None) -> Tensor:
    """Run `block` on x [B, T, D] and keep every activation."""
    return block(x, context)
