"""Numbers that are not finite, and spikes: found, named, left out, and never saved."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from colakit.checkpoint.folders import Checkpoints
from colakit.data.loader import Batch
from colakit.errors import RunError
from colakit.records.run import StepRecord
from colakit.train.guard import Guard
from colakit.train.step import TrainStep
from tests.train.tiny_runs import On, end, make_config, records, run, trainer, write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "poems.jsonl")


def skipped(root: Path) -> dict[int, str]:
    return {r["step"]: r["skip_reason"] for r in records(root) if r["kind"] == "step" and r["skipped"]}


@pytest.mark.parametrize("preset", ["cola-fan-dropout-muon", "cola-m", "original"])
def test_a_gradient_that_is_not_finite_is_found_and_costs_one_update(corpus: Path, tmp_path: Path, preset: str) -> None:
    bad = trainer(tmp_path / "run", make_config(corpus, preset=preset))
    step = [0]
    before: dict[str, torch.Tensor] = {}

    def act(record: StepRecord) -> None:
        step[0] = record.step
        if record.step == 3:
            before.update({name: p.detach().clone() for name, p in bad.model.named_parameters()})
        if record.step == 4:
            for name, p in bad.model.named_parameters():
                assert torch.equal(p, before[name]), "the update is left out"

    bad.sinks._sinks = (*bad.sinks._sinks, On(act))  # type: ignore[attr-defined]
    name, weight = next((n, p) for n, p in bad.model.named_parameters() if "blocks.1" in n and p.ndim == 2)
    weight.register_hook(lambda g: g * (math.nan if step[0] == 3 else 1.0))
    summary = bad.fit()
    assert skipped(tmp_path / "run") == {4: f"not finite, first in the gradient of {name}"}
    assert summary.nan_count == 1
    assert math.isfinite(summary.last_loss)


def test_an_output_that_is_not_finite_is_named_and_nothing_is_drawn_for_it(corpus: Path, tmp_path: Path) -> None:
    """Apart from the skipped update, dropout goes on as if nobody had looked."""
    roots = []
    for name, module in (("one", "blocks.0.mlp"), ("two", "blocks.1.attention")):
        roots.append(tmp_path / name)
        bad = trainer(roots[-1], make_config(corpus))
        calls = [0]

        def spoil(_module: object, _inputs: object, output: torch.Tensor, calls: list[int] = calls) -> torch.Tensor:
            calls[0] += 1
            # Step 3, and the look into it.
            return output * (math.inf if calls[0] in (3, 4) else 1.0)

        bad.model.get_submodule(module).register_forward_hook(spoil)
        bad.fit()
        assert skipped(roots[-1]) == {3: f"not finite, first in the output of {module}"}
    assert end(roots[0]) == end(roots[1])


def test_a_weight_that_is_not_finite_is_named_and_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    bad = trainer(tmp_path / "run", make_config(corpus, "train.checkpoint_every=none", "train.eval_every=2"))

    def act(record: StepRecord) -> None:
        if record.step == 3:
            bad.model.norm.weight.data[5] = math.nan

    bad.sinks._sinks = (*bad.sinks._sinks, On(act))  # type: ignore[attr-defined]
    message = (
        r"Step 4: the weight norm\.weight is not finite, which no update mends\. "
        rf"`colakit train --resume {tmp_path}/run` goes on after step 2\."
    )
    with pytest.raises(RunError, match=message):
        bad.fit()
    assert skipped(tmp_path / "run") == {4: "not finite, first in the weight norm.weight"}


@pytest.mark.parametrize("max_steps", [6, 8])
def test_no_checkpoint_holds_a_weight_that_is_not_finite(corpus: Path, tmp_path: Path, max_steps: int) -> None:
    """One that no token of the batches uses spoils no step."""
    sets = ("train.keep_last=1", f"train.max_steps={max_steps}", "train.checkpoint_every=none", "train.eval_every=4")
    bad = trainer(tmp_path / "run", make_config(corpus, *sets))

    def act(record: StepRecord) -> None:
        if record.step == 5:
            bad.model.tok_embed.weight.data[319] = math.inf

    bad.sinks._sinks = (*bad.sinks._sinks, On(act))  # type: ignore[attr-defined]
    message = rf"Step {max_steps}: the weight tok_embed\.weight is not finite, .* goes on after step 4\."
    with pytest.raises(RunError, match=message):
        bad.fit()
    assert not skipped(tmp_path / "run")
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").all()] == ["step-00000004"]
    assert run(tmp_path / "run").steps == max_steps


def test_many_updates_left_out_in_a_row_end_the_run(corpus: Path, tmp_path: Path) -> None:
    """The weights are finite, and what they come to is not."""
    bad = trainer(tmp_path / "run", make_config(corpus, "train.max_skipped=3"))

    def act(record: StepRecord) -> None:
        if record.step == 3:
            bad.model.norm.weight.data[5] = 3e38

    bad.sinks._sinks = (*bad.sinks._sinks, On(act))  # type: ignore[attr-defined]
    message = r"Step 6: 3 updates in a row were left out, the last one: not finite, first in .* goes on after step 3\."
    with pytest.raises(RunError, match=message):
        bad.fit()
    assert skipped(tmp_path / "run").keys() == {4, 5, 6}
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").all()][-1] == "step-00000003"


def test_a_nan_in_a_batch_of_losses_that_does_not_come_again_is_said_so(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainStep.accumulate
    calls = [0]

    def spoiled(self: TrainStep, batches: Sequence[Batch], tokens: int, **_: bool) -> tuple[torch.Tensor, torch.Tensor]:
        calls[0] += 1
        nll, correct = honest(self, batches, tokens)
        return nll * (math.nan if calls[0] == 2 else 1.0), correct

    monkeypatch.setattr(TrainStep, "accumulate", spoiled)
    run(tmp_path / "run", make_config(corpus))
    assert skipped(tmp_path / "run") == {2: "not finite, but finite when the batch was run once more"}


def test_spikes_are_skipped_where_it_is_asked_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colakit.train.guard.WINDOW", 4)
    honest = TrainStep.accumulate
    calls = [0]

    def spiky(self: TrainStep, batches: Sequence[Batch], tokens: int, **_: bool) -> tuple[torch.Tensor, torch.Tensor]:
        calls[0] += 1
        nll, correct = honest(self, batches, tokens)
        return nll * (100.0 if calls[0] == 6 else 1.0), correct

    monkeypatch.setattr(TrainStep, "accumulate", spiky)
    run(tmp_path / "plain", make_config(corpus))
    assert skipped(tmp_path / "plain") == {}
    calls[0] = 0
    run(tmp_path / "run", make_config(corpus, "train.skip_spikes=50.0"))
    assert skipped(tmp_path / "run") == {6: "spike"}


@pytest.mark.parametrize("preset", ["cola-fan-dropout-muon", "cola-m", "original"])
@pytest.mark.parametrize("where", ["output", "gradient"])
def test_a_module_whose_output_or_gradient_is_not_finite_is_named(
    corpus: Path, tmp_path: Path, preset: str, where: str
) -> None:
    """Also where blocks are computed again in the backward pass. No hook stays, and no gradient."""
    bad = trainer(tmp_path / "run", make_config(corpus, preset=preset))
    step = [0]

    def spoil(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if step[0] == 2 and where == "output":
            return output * math.inf
        if step[0] == 2 and output.requires_grad:
            output.register_hook(lambda g: g * math.nan)
        return output

    bad.model.get_submodule("blocks.1.mlp").register_forward_hook(spoil)
    bad.sinks._sinks = (*bad.sinks._sinks, On(lambda record: step.__setitem__(0, record.step)))  # type: ignore[attr-defined]
    before = hooks_of(bad.model)
    bad.fit()
    (reason,) = skipped(tmp_path / "run").values()
    # A gradient is first seen where it leaves the module for the one below.
    assert re.fullmatch(rf"not finite, first in the {where} of .*blocks\.[01].*", reason), reason
    assert hooks_of(bad.model) == before


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_an_evaluation_waits_for_an_update_so_that_the_best_has_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """One at a step without a checkpoint became the best, and the one before was removed."""
    spoiled = trainer(tmp_path / "run", make_config(corpus, "train.checkpoint_every=none", "train.eval_every=3"))
    honest = TrainStep.accumulate

    def accumulate(
        step: TrainStep, batches: Sequence[Batch], tokens: int, **_: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nll, correct = honest(step, batches, tokens)
        return nll * (math.nan if spoiled.totals.steps == 5 else 1.0), correct

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "accumulate", accumulate)
        spoiled.fit()
    assert skipped(tmp_path / "run").keys() == {6}
    assert [r["step"] for r in records(tmp_path / "run") if r["kind"] == "eval"] == [3, 7, 8]
    names = [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").all()]
    assert names == ["step-00000003", "step-00000007", "step-00000008"]


def test_a_norm_that_is_not_finite_though_every_gradient_is(corpus: Path, tmp_path: Path) -> None:
    bad = trainer(tmp_path / "run", make_config(corpus))
    weight = bad.model.norm.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, 2e38) if bad.totals.steps == 2 else gradient)
    bad.fit()
    reason = "not finite, first in the norm of finite gradients, the largest that of norm.weight"
    assert skipped(tmp_path / "run") == {3: reason}


def test_the_diagnosis_sees_the_dropout_of_the_step_and_leaves_none_behind(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the layer it names may be another, and the next steps would not be those of the step counted."""
    losses: list[float] = []
    after: list[torch.Tensor] = []
    honest = TrainStep.accumulate

    def accumulate(
        step: TrainStep, batches: Sequence[Batch], tokens: int, **_: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nll, correct = honest(step, batches, tokens)
        if bad.totals.steps == 2:
            losses.append(float(nll) / sum(int(batch.tokens.numel()) for batch in batches))
            after.append(torch.get_rng_state())
            nll = nll * (math.nan if len(losses) == 1 else 1.0)
        return nll, correct

    monkeypatch.setattr(TrainStep, "accumulate", accumulate)
    states: list[torch.Tensor] = []
    bad = trainer(tmp_path / "run", make_config(corpus), On(lambda record: states.append(torch.get_rng_state())))
    bad.fit()
    assert len(losses) == 2
    assert losses[0] == losses[1], "with the same dropout"
    assert torch.equal(states[2], after[0]), "and the generator stands where the step left it"


def test_spikes_in_a_row_are_not_blamed_on_the_learning_rate(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "judge", lambda self, *_: (setattr(self, "in_a_row", self.in_a_row + 1), "spike")[1])
    with pytest.raises(RunError, match=r"3 updates in a row were left out, the last one: spike\..*skip_spikes=…"):
        run(tmp_path / "run", make_config(corpus, "train.max_skipped=3"))
