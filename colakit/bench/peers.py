"""The same step by other libraries: what a user would run instead, at the same shape, data, type and threads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from colakit.build import Machine, build_model
from colakit.config.schema import ModelConfig, RunConfig
from colakit.data.loader import Batch
from colakit.optim.clock import Clock
from colakit.optim.combined import CombinedOptimizer
from colakit.parallel.world import ALONE, World
from colakit.records.run import OptimizerPart
from colakit.train.step import TrainStep


class LlamaStep:
    """A step of ``transformers``' LlamaForCausalLM with AdamW: SDPA, its own loss over whole logits, clipping."""

    def __init__(self, config: RunConfig, machine: Machine) -> None:
        """Of the shape of `config`; what Llama has no word for, such as FAN or the norms of Q and K, is left out."""
        from transformers import LlamaForCausalLM

        torch.manual_seed(config.train.seed)
        self.machine = machine
        model: nn.Module = LlamaForCausalLM(llama_config(config.model))
        self.model = model.to(machine.device).train()
        optim = config.optim
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self._grad_clip = optim.grad_clip
        self.forward_clock, self.backward_clock = Clock(machine.device), Clock(machine.device)
        self._clock = Clock(machine.device)

    is_compiled = False

    def __call__(self, step: int, micro_batches: Sequence[Batch]) -> bool:
        """Make a step; whether its loss was finite. Shapes as for `TrainStep`."""
        loss = torch.zeros((), device=self.machine.device)
        for batch in micro_batches:
            tokens, targets = batch.tokens.to(self.machine.device), batch.targets.to(self.machine.device)
            with self.forward_clock.measure(), self.machine.autocast():
                part = self.model(input_ids=tokens, labels=targets, shift_labels=targets).loss / len(micro_batches)
            with self.backward_clock.measure():
                part.backward()
            loss += part.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._grad_clip)
        with self._clock.measure():
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return bool(torch.isfinite(loss))

    def optimizer_state(self) -> list[torch.Tensor]:
        """What AdamW keeps."""
        return [t for state in self._optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]

    def optimizer_costs(self, last: int) -> tuple[OptimizerPart, ...]:
        """The median of the `last` steps."""
        ms = self._clock.median_ms(last)
        size = sum(p.numel() for p in self.model.parameters())
        return () if ms is None else (OptimizerPart("adamw", size, ms, 0),)


def llama_config(m: ModelConfig) -> Any:  # Any: its class is imported with transformers alone
    """The shape of `m` as `transformers` has it."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=m.vocab_size,
        hidden_size=m.d_model,
        intermediate_size=m.d_ff,
        num_hidden_layers=m.n_layers,
        num_attention_heads=m.n_heads,
        num_key_value_heads=m.n_kv_heads,
        max_position_embeddings=m.seq_len,
        rms_norm_eps=m.norm_eps,
        tie_word_embeddings=m.tie_embeddings,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # of the base class
        use_cache=False,
    )


class OwnStep:
    """The trainer's step, or with torch.optim.Muon in place of colakit's: what `bench` asks of any step."""

    def __init__(self, config: RunConfig, machine: Machine, *, torch_muon: bool = False, world: World = ALONE) -> None:
        self._step = TrainStep.of(config, build_model(config, machine).train(), machine, world)
        self.model = self._step.model
        self.forward_clock, self.backward_clock = self._step.forward_clock, self._step.backward_clock
        if torch_muon:
            self._step.optimizer.parts["muon"] = TorchMuon(self._step.optimizer)

    @property
    def is_compiled(self) -> bool:
        """Whether it runs compiled blocks; no more, where torch.compile has failed."""
        return self._step.model.is_compiled

    def __call__(self, step: int, micro_batches: Sequence[Batch]) -> bool:
        """Make a step; whether an update was made."""
        return self._step(step, micro_batches).skipped is None

    def optimizer_state(self) -> list[torch.Tensor]:
        """What the optimizers keep."""
        parts = self._step.optimizer.parts.values()
        states = (state for part in parts for state in part.state.values())
        return [tensor for state in states for tensor in state.values() if isinstance(tensor, torch.Tensor)]

    def optimizer_costs(self, last: int) -> tuple[OptimizerPart, ...]:
        """The medians of the `last` steps."""
        return self._step.optimizer.costs(last)


class TorchMuon(torch.optim.Muon):
    """torch.optim.Muon over the matrices of colakit's: each is a view of the weight that it is stacked in."""

    def __init__(self, optimizer: CombinedOptimizer) -> None:
        (group,) = optimizer.parts["muon"].param_groups
        self._stacked: list[tuple[nn.Parameter, list[nn.Parameter], tuple[int, ...]]] = [
            (p, [nn.Parameter(part) for part in torch.split(p.detach(), list(rows))], rows)
            for p, rows in zip(group["params"], group["matrix_rows"], strict=True)
        ]
        same = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps")
        options = {key: group[key] for key in same} | {"adjust_lr_fn": group["update_scaling"]}
        super().__init__([part for _, parts, _ in self._stacked for part in parts], **options)

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # without a closure
        """Update every matrix from its part of the stacked gradient."""
        for p, parts, rows in self._stacked:
            assert p.grad is not None
            for part, gradient in zip(parts, torch.split(p.grad, list(rows)), strict=True):
                part.grad = gradient
        super().step()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the stacked weights too."""
        super().zero_grad(set_to_none)
        for p, _, _ in self._stacked:
            p.grad = None
