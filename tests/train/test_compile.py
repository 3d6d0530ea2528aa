"""train.compile: the same steps from compiled blocks, few pieces of code, and none where it fails, which is said.

Each test in a process of its own: what torch.compile imports changes how operations are dispatched. All but one use a
backend that traces and makes no code, since only that takes time.
"""

import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from colakit.build import Machine, build_model
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.errors import ConfigError
from colakit.train.diagnosis import first_bad_layer
from colakit.train.step import StepResult, TrainStep
from colakit.train.verify import verify_resume
from tests.train.tiny_runs import make_config, run, write_corpus

EAGER = Machine(torch.device("cpu"), torch.float32)
COMPILED = Machine(torch.device("cpu"), torch.float32, compiles=True)
TINY = ("d_model=24", "n_heads=3", "n_kv_heads=3", "d_ff=40", "vocab_size=61", "seq_len=10", "attention=sdpa")


def in_a_process(check: Callable[..., None], *arguments: Any) -> None:
    """Raises what `check` raises there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(check, *arguments).result()


def tiny_config(preset: str, *sets: str) -> RunConfig:
    return resolve(preset, smoke_run=True, sets=[*(f"model.{s}" for s in TINY), *sets]).config


def three_steps(
    config: RunConfig, machine: Machine, starts: torch.Tensor | None = None
) -> tuple[TrainStep, list[StepResult]]:
    """Of two micro-batches each; `starts` of documents are rolled on, so that their lengths differ each time."""
    torch.manual_seed(7)
    step = TrainStep.of(config, build_model(config, machine).train(), machine)
    draw = torch.Generator().manual_seed(0)
    results = []
    for i in range(3):
        tokens = torch.randint(61, (2, 3, 11), generator=draw)
        begin = None if starts is None else starts.roll(i, dims=1)
        batches = [Batch(tokens=t[:, :-1].clone(), targets=t[:, 1:].clone(), document_starts=begin) for t in tokens]
        results.append(step(i, batches))
    return step, results


@contextmanager
def backend(name: Any) -> Iterator[None]:  # Any: a name, or a function of torch's own types
    """Inside, torch.compile takes this one."""
    honest = torch.compile
    torch.compile = partial(honest, backend=name)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = honest


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def check_steps(preset: str) -> None:
    without = (f"model.{name}_dropout=0.0" for name in ("fan", "post_attention", "final"))
    config = tiny_config(preset, "model.n_layers=3", "model.fan_dropout_growth=0.0", *without)
    with backend("aot_eager"):
        step, compiled = three_steps(config, COMPILED)
    assert step.model.is_compiled
    assert graphs() >= 1
    _, eager = three_steps(config, EAGER)
    for one, other in zip(compiled, eager, strict=True):
        # Decomposed operations round otherwise than fused ones.
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


SLOW = ["original", "cola-smollm2", "cola-fan-muon", "cola-fan-atf", "refined-tied"]


@pytest.mark.parametrize("preset", ["cola-m", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_compiled_steps_are_those_of_eager_ones(preset: str) -> None:
    in_a_process(check_steps, preset)


def check_dropout() -> None:
    config = tiny_config("cola-fan-dropout", "model.n_layers=12", "model.fan_dropout_growth=0.1")
    with backend("aot_eager"):
        step, results = three_steps(config, COMPILED)
        # The first block, and all others: each drops another share.
        assert graphs() == 2
        assert not torch._dynamo.utils.counters["unimplemented"]
        torch.manual_seed(7)
        again = three_steps(config, COMPILED)[1]
    assert [r.loss for r in again] == [r.loss for r in results]
    modules = [block.attention.qkv.dropout for block in step.model.blocks]  # type: ignore[union-attr]
    compiled = torch.compile(lambda module, x: module(x), backend="aot_eager")
    for dropout, share in zip(modules, (0.12 * (1 + 0.1 * i) for i in range(12)), strict=True):
        x = torch.ones(400, 400, requires_grad=True)
        y = compiled(dropout, x)
        assert float((y == 0).float().mean()) == pytest.approx(share, abs=0.005)  # five deviations
        assert float(y.max()) == pytest.approx(1 / (1 - share))
        y.sum().backward()
        assert torch.equal(x.grad, y)
        assert torch.equal(compiled(dropout.eval(), x), x)


def test_blocks_that_drop_different_shares_are_one_piece_of_code() -> None:
    in_a_process(check_dropout)


def check_documents() -> None:
    config = tiny_config("cola-fan", "model.n_layers=3", "data.attend_across_documents=false")
    starts = torch.zeros(3, 10, dtype=torch.bool)
    starts[0, [3, 8]] = starts[2, [2, 4, 5]] = True
    with backend("aot_eager"):
        _, compiled = three_steps(config, COMPILED, starts)
        made = graphs()
        three_steps(config, COMPILED, starts.roll(1, dims=0))
        assert graphs() == made
    _, eager = three_steps(config, EAGER, starts)
    assert [r.loss for r in compiled] == pytest.approx([r.loss for r in eager], rel=1e-5)
    _, whole = three_steps(config, EAGER)
    assert abs(whole[0].loss - eager[0].loss) > 1e-4


@pytest.mark.slow
def test_documents_of_other_lengths_need_no_other_code() -> None:
    in_a_process(check_documents)


def check_evaluation_is_eager() -> None:
    config = tiny_config("cola-fan", "model.n_layers=2")
    with backend("aot_eager"):
        step, _ = three_steps(config, COMPILED)
        made = graphs()
        step.model.eval()
        tokens = torch.randint(61, (2, 7))
        logits = step.model(tokens)
        assert graphs() == made
        step.model.run_eagerly()
        assert torch.equal(step.model(tokens), logits)


def test_evaluation_is_that_of_a_model_that_is_not_compiled() -> None:
    in_a_process(check_evaluation_is_eager)


def refuse(*_: object) -> None:
    raise RuntimeError("no such compiler\nand more")


def check_failure(when: str) -> None:
    config = tiny_config("cola-fan-dropout", "model.n_layers=2")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("colakit").addHandler(handler)
    if when == "forward":
        failing: Any = refuse
    else:
        from torch._dynamo.backends.common import aot_autograd
        from torch._inductor.exc import InductorError

        def refuse_as_inductor_does(*_: object) -> None:
            raise InductorError(RuntimeError("no such compiler\nand more"), None)

        failing = aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=refuse_as_inductor_does)
    with backend(failing):
        step, results = three_steps(config, COMPILED)
    assert not step.model.is_compiled
    (message,) = told
    assert message.startswith("torch.compile fails, so the blocks are not compiled; see `colakit doctor`. It says: ")
    assert message.endswith("It says: no such compiler")
    # To the bit: with what dropout would have drawn.
    assert results == three_steps(config, EAGER)[1]


@pytest.mark.parametrize("when", [pytest.param("forward", marks=pytest.mark.slow), "backward"])
def test_where_it_fails_training_goes_on_without_and_says_so(when: str) -> None:
    in_a_process(check_failure, when)


def check_diagnosis() -> None:
    config = tiny_config("cola-fan", "model.n_layers=2")
    batch = Batch(tokens=torch.ones(2, 10, dtype=torch.int64), targets=torch.ones(2, 10, dtype=torch.int64))
    with backend("aot_eager"):
        step, _ = three_steps(config, COMPILED)
        made = graphs()
        with torch.no_grad():
            for name in ("a", "b.0"):
                step.model.get_parameter(f"blocks.1.mlp.down.{name}").fill_(1e30)
        assert first_bad_layer(step, [batch]) == "the output of blocks.1.mlp.down"
        assert graphs() == made
        assert step.model.is_compiled


@pytest.mark.slow
def test_a_diagnosis_looks_into_blocks_that_are_compiled() -> None:
    in_a_process(check_diagnosis)


def check_state(folder: Path) -> None:
    config = make_config(write_corpus(folder / "poems.jsonl"), "train.compile=true", preset="cola")
    with backend("aot_eager"):
        run(folder / "run", config)
    run(folder / "eager", config.model_copy(update={"train": config.train.model_copy(update={"compile": False})}))
    for name, compiled in (("run", True), ("eager", False)):
        state = json.loads((folder / name / "checkpoints" / "step-00000001" / "state.json").read_text())
        assert state["machine"]["compiled"] is compiled


@pytest.mark.slow
def test_a_checkpoint_tells_whether_the_blocks_were_compiled(tmp_path: Path) -> None:
    """So that a rest which is not is told apart."""
    in_a_process(check_state, tmp_path)


def test_what_would_be_compiled_is_asked_of_the_device() -> None:
    assert resolve("cola-m", sets=["train.compile=true"]).config.train.compile is True
    apart = ["data.attend_across_documents=false"]
    assert resolve("cola-m", sets=apart).config.can_compile is False
    with pytest.raises(ConfigError, match="CoLA-M is not compiled where documents"):
        resolve("cola-m", sets=[*apart, "train.compile=true"])
    with pytest.raises(ConfigError, match=r"train\.compile"):
        resolve("cola-m", sets=["train.compile=on"])


@pytest.mark.slow
def test_a_compiled_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """By torch's own backend, dropout included."""
    config = make_config(write_corpus(tmp_path / "poems.jsonl"), "train.compile=true", "train.max_steps=4")
    assert verify_resume(config).is_exact
