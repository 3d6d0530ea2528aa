"""Memory that runs out while a run trains: nothing is lost, what to do is said, and a budget is kept."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from colakit.analysis.memory import memory_ledger
from colakit.checkpoint.folders import Checkpoints
from colakit.config.load import override, resolve
from colakit.data.loader import Batch
from colakit.errors import ConfigError, RunError
from colakit.train.faults import describe_fault
from colakit.train.memory import check_budget, memory_budget, out_of_memory_advice
from colakit.train.runs import RunFolder
from colakit.train.step import StepResult, TrainStep
from colakit.units import gib
from tests.train.tiny_runs import end, make_config, run, trainer, write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "poems.jsonl")


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


def test_of_several_processes_each_has_its_share_of_the_batch_and_of_what_is_divided(corpus: Path) -> None:
    """Batches of 12 among 4: a micro-batch of 2, as 12 would have it, does not divide 3."""
    sets = ("train.batch_size=12", "train.micro_batch_size=3", "train.dtype=float32")
    config = resolve("cola-fan-muon", sets=sets).config
    ledger, single = (memory_ledger(override(config, [f"train.micro_batch_size={n}"])) for n in (3, 1))
    state = ledger.muon_state + ledger.adamw_state
    fixed = ledger.weights + ledger.gradients + state
    for strategy, divided in {"ddp": 0, "zero1": state, "fsdp2": fixed}.items():
        shared = override(config, [f"parallel.strategy={strategy}"])
        text = out_of_memory_advice(shared, 0, nproc=4)
        takes, least = (gib(each.total - 0.75 * divided) for each in (ledger, single))
        assert text.startswith(f"in a micro-batch of 3 sequences. By the ledger it takes {takes:.2f} GiB, ")
        assert f", {gib(fixed - 0.75 * divided):.2f} GiB of them for weights, gradients and optimizer" in text
        assert f"Try --set train.micro_batch_size=1: {least:.2f} GiB" in text
        assert ("optimizer: the share of one of 4 processes" in text) == bool(divided)
        assert "share" not in out_of_memory_advice(shared, 0)
        # Beside what is held, weights among it, there has to be room for the rest of a single sequence.
        held, needs = 2 * ledger.weights, least + gib(ledger.weights)
        for budget, is_enough in ((needs + 0.01, True), (needs - 0.01, False)):
            tight = override(shared, [f"train.memory_gib={budget}"])
            assert ("too little for a single sequence" not in out_of_memory_advice(tight, held, nproc=4)) == is_enough
    config = make_config(corpus, "train.batch_size=12")
    by_hand = out_of_memory_advice(override(config, ["train.micro_batch_size=12"]), 0, nproc=4)
    assert by_hand.startswith("in a micro-batch of 3 sequences."), "what is their own"


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_budget_that_is_too_small_is_named(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(_self: TrainStep, _step: int, _batches: object) -> None:
        raise MemoryError

    with pytest.raises(ConfigError, match=r"train\.memory_gib = 0\.01: this process holds \d+\.\d\d GiB"):
        run(tmp_path / "run", make_config(corpus, "train.memory_gib=0.01"))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(TrainStep, "__call__", step)
    shown = r"train\.memory_gib allows the whole process 64 GiB; (?!0\.00)\d+\.\d\d were held before a step\. Try --set"
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a process")
def test_a_budget_loosens_no_limit_that_was_there() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (32 * 2**30, before[1]))
        with memory_budget(64.0):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 32 * 2**30
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
