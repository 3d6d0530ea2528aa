"""A model as several processes train it: how a micro-batch is run, and when its gradients are whole.

Gradients are sums over all processes, never means: each loss is divided by the tokens of the whole step.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colakit.loss import LossSums, loss_sums
from colakit.model.documents import Documents
from colakit.model.lm import LM
from colakit.parallel.world import World


class Objective(nn.Module):
    """The model with its loss: what a wrapper wraps."""

    def __init__(self, model: LM) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, documents: Documents | None) -> LossSums:
        """tokens, targets [B, T] → the sums of `loss_sums`."""
        # Not by `factors`, which FSDP2 makes a pass of its own.
        return loss_sums(*self.model.logit_factors(self.model.hidden(tokens, documents)), targets)

    def factors(self, tokens: Tensor, documents: Documents | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """tokens [B, T] → what `LM.logit_factors` gives."""
        return self.model.logit_factors(self.model.hidden(tokens, documents))


class Replica:
    """Base and simplest case: one process, alone. Subclasses wrap the same objective."""

    def __init__(self, model: LM) -> None:
        self.model = model
        self.objective = Objective(model)
        self.run: Callable[..., LossSums] = self.objective
        """Of a micro-batch, as `Objective`."""

    def micro_step(self, *, is_last: bool) -> AbstractContextManager[object]:
        """The context of a micro-batch's forward and backward pass."""
        return nullcontext()

    def finish(self) -> None:
        """Behind the last micro-batch: wait until the gradients are whole, as far as they are needed here."""

    def rest(self) -> None:
        """Behind passes without gradients: give back what they gathered."""


class DDPReplica(Replica):
    """Everyone has everything. Gradients are summed in buckets while the backward pass goes on, once a step."""

    def __init__(self, model: LM, world: World) -> None:
        from torch.nn.parallel import DistributedDataParallel

        super().__init__(model)
        # Buffers are tables, the same for all; torch calls this option otherwise from 2.13 on.
        is_new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        no_buffers: dict[str, Any] = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
        self._ddp = DistributedDataParallel(
            self.objective, process_group=world.group, gradient_as_bucket_view=True, **no_buffers
        )

        def summed(
            group: dist.ProcessGroup,
            bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch does not tell of it
        ) -> torch.futures.Future[Tensor]:
            """In place of DDP's own hook, which divides by the number of processes."""
            work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
            assert work is not None
            whole: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
            return whole

        self._ddp.register_comm_hook(world.group, summed)
        self.run = self._ddp

    def micro_step(self, *, is_last: bool) -> AbstractContextManager[object]:
        return nullcontext() if is_last else self._ddp.no_sync()


class Owned(NamedTuple):
    """Rows of a parameter that one process updates."""

    parameter: nn.Parameter
    start: int
    stop: int
    owner: int


class _Sent(NamedTuple):
    """A bucket on its way to its owner, and where the sums go if that is this process."""

    work: "dist.Work"
    gradients: list[Tensor]
    flat: Tensor


_BUCKET_BYTES = 25 * 2**20
"""DDP's."""


class OwnerReplica(Replica):
    """ZeRO-1: everyone has all weights; each gradient is summed where it is used, and nowhere else.

    In buckets, while the backward pass of the last micro-batch goes on: as gradients come, those of each owner are laid
    end to end and reduced to it. What is somebody else's is dropped at once.
    """

    def __init__(self, model: LM, world: World) -> None:
        super().__init__(model)
        self._world = world
        self._is_last = False
        self._waiting: list[nn.Parameter] = []
        self._sent: list[_Sent] = []
        self._owned: dict[nn.Parameter, list[Owned]] = {}
        for parameter in model.parameters():
            # Made from one seed, but maybe by other kernels.
            dist.broadcast(parameter.detach(), group_src=0, group=world.group)
            parameter.register_post_accumulate_grad_hook(self._came)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def own(self, owned: Iterable[Owned]) -> None:
        """Say who updates what; together it is all of each parameter."""
        for each in owned:
            self._owned.setdefault(each.parameter, []).append(each)

    @contextmanager
    def micro_step(self, *, is_last: bool) -> Iterator[None]:
        self._is_last = is_last
        yield

    def finish(self) -> None:
        self._flush()
        for work, gradients, flat in self._sent:
            work.wait()
            if gradients:
                summed = torch.split(flat, [g.numel() for g in gradients])
                torch._foreach_copy_(gradients, [s.view_as(g) for s, g in zip(summed, gradients, strict=True)])
        self._sent.clear()

    def _came(self, parameter: Tensor) -> None:
        if not self._is_last:
            return
        assert isinstance(parameter, nn.Parameter)
        self._waiting.append(parameter)
        if sum(p.nbytes for p in self._waiting) >= _BUCKET_BYTES:
            self._flush()

    def _flush(self) -> None:
        by_owner: dict[int, list[Tensor]] = {}
        for parameter in self._waiting:
            for each in self._owned[parameter]:
                assert parameter.grad is not None
                by_owner.setdefault(each.owner, []).append(parameter.grad[each.start : each.stop])
        me = self._world.rank
        self._sent = [sent for sent in self._sent if sent.gradients or not sent.work.is_completed()]
        for owner in sorted(by_owner):
            flat = torch.cat([g.reshape(-1) for g in by_owner[owner]])
            work = dist.reduce(flat, group_dst=owner, group=self._world.group, async_op=True)
            assert work is not None
            self._sent.append(_Sent(work, by_owner[owner] if owner == me else [], flat))
        for parameter in self._waiting:
            if all(each.owner != me for each in self._owned[parameter]):
                parameter.grad = None
        self._waiting.clear()


class ShardedReplica(Replica):
    """FSDP2: everyone has some rows of each parameter, gathered block by block where they are used.

    Gradients are summed and divided in every micro-batch, so that none is ever whole.
    """

    def __init__(self, model: LM, world: World, device: torch.device) -> None:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        super().__init__(model)
        assert world.group is not None
        mesh = DeviceMesh.from_group(world.group, device.type)
        for module in (*model.blocks, self.objective):
            fully_shard(module, mesh=mesh)
        for module in self.objective.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        register_fsdp_forward_method(self.objective, "factors")

    def rest(self) -> None:
        self.objective.reshard()  # type: ignore[operator]  # of an FSDPModule
