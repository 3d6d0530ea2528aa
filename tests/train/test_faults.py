"""What goes wrong while a run trains: numbers that are not finite, spikes, memory, disk."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from colakit.checkpoint.folders import Checkpoints, verify
from colakit.config.load import resolve
from colakit.data.loader import Batch
from colakit.errors import ConfigError, RunError
from colakit.optim.combined import CombinedOptimizer
from colakit.records.run import StepRecord
from colakit.train.faults import describe_fault
from colakit.train.guard import Guard
from colakit.train.lock import RunLock
from colakit.train.memory import check_budget, memory_budget, out_of_memory_advice
from colakit.train.runs import RunFolder
from colakit.train.sinks import JsonlSink
from colakit.train.step import StepResult, TrainStep
from tests.train.tiny_runs import Killed, On, end, kill_at, make_config, records, run, trainer, write_corpus

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

    def spoiled(self: TrainStep, batches: Sequence[Batch], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        calls[0] += 1
        nll, correct = honest(self, batches, tokens)
        return nll * (math.nan if calls[0] == 2 else 1.0), correct

    monkeypatch.setattr(TrainStep, "accumulate", spoiled)
    run(tmp_path / "run", make_config(corpus))
    assert skipped(tmp_path / "run") == {2: "not finite, first in nowhere when the batch was run once more"}


def test_spikes_are_skipped_where_it_is_asked_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colakit.train.guard.WINDOW", 4)
    honest = TrainStep.accumulate
    calls = [0]

    def spiky(self: TrainStep, batches: Sequence[Batch], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        calls[0] += 1
        nll, correct = honest(self, batches, tokens)
        return nll * (100.0 if calls[0] == 6 else 1.0), correct

    monkeypatch.setattr(TrainStep, "accumulate", spiky)
    run(tmp_path / "plain", make_config(corpus))
    assert skipped(tmp_path / "plain") == {}
    calls[0] = 0
    run(tmp_path / "run", make_config(corpus, "train.skip_spikes=50.0"))
    assert skipped(tmp_path / "run") == {6: "spike"}


def out_of_memory(at: int, monkeypatch: pytest.MonkeyPatch, *, while_updating: bool = False) -> None:
    honest = TrainStep.__call__

    def runs_out(self: TrainStep, step: int, batches: Sequence[Batch]) -> StepResult:
        if step + 1 == at:
            self.is_updating = while_updating
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return honest(self, step, batches)

    monkeypatch.setattr(TrainStep, "__call__", runs_out)


def test_out_of_memory_loses_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", make_config(corpus))
    out_of_memory(6, monkeypatch)
    message = (
        r"Out of memory at step 6, in a micro-batch of 4 sequences\. By the ledger it takes 0\.\d\d GiB, .* "
        r"--set train\.micro_batch_size=2: 0\.\d\d GiB at the same batch size\. .* goes on after step 5\.$"
    )
    with pytest.raises(RunError, match=message):
        run(tmp_path / "run", make_config(corpus, "train.checkpoint_every=99"))
    monkeypatch.undo()
    assert run(tmp_path / "run").last_loss == whole.last_loss
    assert end(tmp_path / "run") == end(tmp_path / "whole")


def test_out_of_memory_behind_some_dropout_loses_no_draw(corpus: Path, tmp_path: Path) -> None:
    """The failed step has drawn for its first blocks: made again, it draws the same."""
    whole = run(tmp_path / "whole", make_config(corpus, "train.skip_spikes=9.0"))
    bad = trainer(tmp_path / "run", make_config(corpus, "train.checkpoint_every=99", "train.skip_spikes=9.0"))
    calls = [0]

    def runs_out(_module: object, _inputs: object) -> None:
        calls[0] += 1
        if calls[0] == 7:  # six steps, and an evaluation's pass is none of training
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = bad.model.norm.register_forward_pre_hook(lambda m, i: runs_out(m, i) if m.training else None)
    with pytest.raises(RunError, match="goes on after step 6"):
        bad.fit()
    hook.remove()
    assert run(tmp_path / "run").last_loss == whole.last_loss
    assert end(tmp_path / "run") == end(tmp_path / "whole")


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


def test_weights_of_half_an_update_are_never_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory(7, monkeypatch, while_updating=True)
    with pytest.raises(RunError, match="goes on after step 4"):
        run(tmp_path / "run", make_config(corpus, "train.checkpoint_every=99"))
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").all()] == ["step-00000004"]


def test_the_advice_has_the_ledger_s_numbers(corpus: Path) -> None:
    text = out_of_memory_advice(resolve("cola-smollm2").config, 0)
    found = re.search(r"takes ([\d.]+) GiB, ([\d.]+) GiB of them .*size=8: ([\d.]+) GiB", text)
    assert found is not None, text
    whole, fixed, smaller = map(float, found.groups())
    assert 0 < fixed < smaller < whole
    last = out_of_memory_advice(make_config(corpus, "train.micro_batch_size=1"), 0)
    assert last.endswith("Try a smaller model, or shorter sequences.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is the GPU there")
def test_the_advice_is_that_of_the_machine_the_run_is_on(corpus: Path, tmp_path: Path) -> None:
    """Where train.device is auto, a ledger by itself would count a GPU's bfloat16."""
    by_itself, here = (
        describe_fault(MemoryError(), RunFolder(tmp_path), resolve("cola-smollm2", sets=sets).config, 3, 0)
        for sets in ([], ["train.device=cpu"])
    )
    assert by_itself == here


BUDGET = """
import sys
from pathlib import Path
from colakit.errors import RunError
from tests.train.tiny_runs import make_config, run, write_corpus
folder = Path(sys.argv[1])
config = make_config(write_corpus(folder / "poems.jsonl"), *sys.argv[2:])
try:
    print(run(folder / "run", config).steps)
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_cpu_s_memory_budget_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUDGET, str(tmp_path), "train.memory_gib=1.5"]
    large = ("train.batch_size=4096", "model.d_model=256", "train.max_steps=3")
    outcome = subprocess.run([*command, *large], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Out of memory at step 1, in a micro-batch of 4096 sequences." in outcome.stdout, outcome.stderr
    assert "train.micro_batch_size=2048" in outcome.stdout
    assert "no folder is left" in outcome.stdout
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert outcome.stdout == "8\n", outcome.stderr


def test_elsewhere_a_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"train\.memory_gib"):
        check_budget(1.0)
    check_budget(None)
    with memory_budget(None):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_the_budget_ends_with_the_run() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_budget(64.0):
        assert before[0] != resource.getrlimit(resource.RLIMIT_DATA)[0] > 60 * 2**30
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


RESERVING = """
import mmap, torch
from colakit.train.memory import held_bytes, memory_budget
reserved = mmap.mmap(-1, 2**31)  # and never touched
with memory_budget(held_bytes() / 2**30 + 0.5):
    held = torch.ones(100 * 2**20)
    try:
        torch.ones(40 * 2**20)
    except RuntimeError:
        print("kept")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_what_was_reserved_and_never_touched_takes_nothing_from_the_budget() -> None:
    """As libraries that read data do, by a GiB and more."""
    outcome = subprocess.run([sys.executable, "-c", RESERVING], capture_output=True, text=True, cwd=ROOT, check=True)
    assert outcome.stdout == "kept\n", outcome.stderr


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from colakit.errors import RunError
from tests.train.tiny_runs import On, make_config, run, write_corpus
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
config = make_config(write_corpus(folder / "poems.jsonl"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fill = lambda record: record.step == 5 and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    run(folder / "run", config, On(fill))
except RunError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    print(error)
"""


@pytest.mark.parametrize("limit", [2_000, 100_000])
def test_a_full_disk_during_a_save_leaves_the_older_checkpoints(tmp_path: Path, limit: int) -> None:
    """The limit cuts the records or the tensors short."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    pattern = rf"{tmp_path}/run.* cannot be read or written: .*Free some space there\. `colakit .* after step 4\."
    assert re.search(pattern, outcome.stdout), (outcome.stdout, outcome.stderr[-2000:])
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in checkpoints.all()] == [f"step-0000000{step}" for step in (1, 2, 3, 4)]
    for path in checkpoints.all():
        verify(path)
    assert not list(checkpoints.folder.glob(".*")), "nothing half-written takes the room"
    assert run(tmp_path / "run").steps == 8
    whole = run(tmp_path / "whole", make_config(tmp_path / "poems.jsonl"))
    assert end(tmp_path / "run") == end(tmp_path / "whole")
    assert whole.steps == 8


def test_an_evaluation_waits_for_an_update_so_that_the_best_has_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """One at a step without a checkpoint became the best, and the one before was removed."""
    spoiled = trainer(tmp_path / "run", make_config(corpus, "train.checkpoint_every=none", "train.eval_every=3"))
    honest = TrainStep.accumulate

    def accumulate(step: TrainStep, batches: Sequence[Batch], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
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

    def accumulate(step: TrainStep, batches: Sequence[Batch], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def test_an_update_that_fails_half_way_is_not_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some weights are of the next step by then."""
    honest, made = CombinedOptimizer.step, iter(range(99))

    def step(self: CombinedOptimizer) -> None:
        if next(made) == 4:
            next(iter(self.parts.values())).step()
            raise MemoryError
        honest(self)

    monkeypatch.setattr(CombinedOptimizer, "step", step)
    sets = ("train.checkpoint_every=none", "train.eval_every=3")
    with pytest.raises(RunError, match=r"Out of memory at step 5, .* goes on after step 3\."):
        run(tmp_path / "run", make_config(corpus, *sets))
    monkeypatch.setattr(CombinedOptimizer, "step", honest)
    run(tmp_path / "run")
    run(tmp_path / "whole", make_config(corpus, *sets))
    assert end(tmp_path / "run") == end(tmp_path / "whole")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_budget_that_is_too_small_is_named(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(_self: TrainStep, _step: int, _batches: object) -> None:
        raise MemoryError

    with pytest.raises(ConfigError, match=r"train\.memory_gib = 0\.01: this process holds \d\.\d\d GiB"):
        run(tmp_path / "run", make_config(corpus, "train.memory_gib=0.01"))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(TrainStep, "__call__", step)
    shown = r"train\.memory_gib allows the whole process 64 GiB; \d+\.\d\d were held before a step\. Try --set"
    with pytest.raises(RunError, match=shown):
        run(tmp_path / "run", make_config(corpus, "train.memory_gib=64.0"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_budget_in_which_nothing_fits_gets_no_advice_on_micro_batches(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, tight = (make_config(corpus, f"train.memory_gib={n}") for n in (1.1, 1.0))
    assert "Try --set train.micro_batch_size=2" in out_of_memory_advice(roomy, 2**30)
    text = out_of_memory_advice(tight, 2**30)
    assert text.endswith(
        "1 GiB; 1.00 were held before a step. That is too little for a single sequence: set 1.1 at least."
    )


def test_a_step_without_its_record_is_never_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when step 5 is recorded, and has room again when the run is rescued."""
    honest = JsonlSink.step

    def refuse(self: JsonlSink, record: StepRecord) -> None:
        if record.step == 5:
            raise OSError(28, "No space left on device")
        honest(self, record)

    monkeypatch.setattr(JsonlSink, "step", refuse)
    with pytest.raises(RunError, match="No space left on device"):
        run(tmp_path / "run", make_config(corpus, "train.checkpoint_every=none", "train.eval_every=3"))
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").all()] == ["step-00000003"]
    monkeypatch.setattr(JsonlSink, "step", honest)
    run(tmp_path / "run")
    run(tmp_path / "whole", make_config(corpus, "train.checkpoint_every=none", "train.eval_every=3"))
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_spikes_in_a_row_are_not_blamed_on_the_learning_rate(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "judge", lambda self, *_: (setattr(self, "in_a_row", self.in_a_row + 1), "spike")[1])
    with pytest.raises(RunError, match=r"3 updates in a row were left out, the last one: spike\..*skip_spikes=…"):
        run(tmp_path / "run", make_config(corpus, "train.max_skipped=3"))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_when_a_run_is_resumed_is_one_error_and_harms_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run(tmp_path / "whole", make_config(corpus))
    with pytest.raises(Killed):
        run(tmp_path / "run", make_config(corpus), kill_at(5))

    def refuse(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(RunError, match=r"cannot be read or written: No space left on device\. Free some space"):
            run(tmp_path / "run")
    assert not RunLock(tmp_path / "run").is_held()
    run(tmp_path / "run")
    assert end(tmp_path / "run") == end(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_guard_and_generators_stand_where_the_step_that_failed_found_them(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is judged, and the look for what was wrong runs out of memory."""
    sets = ("train.checkpoint_every=none", "train.eval_every=99", "train.skip_spikes=9.0")
    spoiled = trainer(tmp_path / "run", make_config(corpus, *sets))
    honest = TrainStep.accumulate

    def accumulate(step: TrainStep, batches: Sequence[Batch], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        nll, correct = honest(step, batches, tokens)
        return nll * (math.nan if spoiled.totals.steps == 4 else 1.0), correct

    def run_out(*_: object) -> str:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "accumulate", accumulate)
        patch.setattr("colakit.train.trainer.first_bad_layer", run_out)
        with pytest.raises(RunError, match="goes on after step 4"):
            spoiled.fit()
    guard = json.loads(end(tmp_path / "run")["state.json"])["guard"]
    assert (guard["in_a_row"], len(guard["losses"])) == (0, 4)
    run(tmp_path / "run")
    run(tmp_path / "whole", make_config(corpus, *sets))
    assert end(tmp_path / "run") == end(tmp_path / "whole")
