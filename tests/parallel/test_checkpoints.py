"""What several processes save, another number reads, and another strategy: every weight and all state, to the bit."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from colakit.build import build_model
from colakit.checkpoint.folders import MODEL_FOLDER, OPTIMIZER_FOLDER, Checkpoints, verify
from colakit.checkpoint.model_file import MODEL_FILE, OPTIMIZER_FILE, copy_model, load_model, load_optimizer
from colakit.checkpoint.sharded import load_parts, model_parts, optimizer_parts, read_whole, save_parts
from colakit.config.schema import RunConfig
from colakit.errors import CheckpointError
from colakit.parallel.world import ALONE, World
from colakit.train.saver import Saver
from colakit.train.shared_saver import SharedSaver
from tests.parallel.pool import Pool
from tests.parallel.runs import CPU, go, optimizer_state, slow, step_of, tiny_config, weights

PRESET = "refined-tied"  # whose published names are rows of what is stored, and of which Muon has some
STEP = 2


@dataclass(frozen=True)
class Held:
    """Weights and optimizer state, whole."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]


def config_of(strategy: str, *sets: str) -> RunConfig:
    return tiny_config(PRESET, f"parallel.strategy={strategy}", *sets)


def save(world: World, strategy: str, folder: Path) -> Held:
    """Train, and save as a run does."""
    config = config_of(strategy)
    step = step_of(config, world)
    go(step, config, range(STEP))
    options = {"keep_last": 3, "keep_every": None}
    at = Checkpoints(folder)
    saver = Saver(at, **options) if world.size == 1 else SharedSaver(at, **options, world=world)
    saver.save(STEP, step.model, step.optimizer, {"state.json": {"step": STEP}}, None)
    saver.close()
    return Held(weights(step.model, world), optimizer_state(step.optimizer))


def load(world: World, strategy: str, checkpoint: Path) -> Held:
    """What a model that began otherwise holds behind loading it."""
    step = step_of(config_of(strategy, "train.seed=9"), world)
    load_model(step.model, checkpoint, world)
    load_optimizer(step.optimizer, checkpoint)
    return Held(weights(step.model, world), optimizer_state(step.optimizer))


class Saved:
    """Checkpoints that stay, each made once."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self._pool, self._folder = pool, folder
        self._made: dict[tuple[str, int], Held] = {}

    def of(self, strategy: str, size: int) -> tuple[Path, Held]:
        root = self._folder / f"{strategy}-{size}"
        if (strategy, size) not in self._made:
            self._made[strategy, size] = self._pool.run(size, save, strategy, root)[0]
        newest = Checkpoints(root).newest()
        assert newest is not None
        return newest, self._made[strategy, size]


@pytest.fixture(scope="module")
def saved(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(pool, tmp_path_factory.mktemp("checkpoints"))


def check_equal(found: Held, expected: Held) -> None:
    for mine, theirs in ((found.weights, expected.weights), (found.state, expected.state)):
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(mine[name], tensor), name


NUMBERS = [(2, 1), (1, 2), (3, 2), (2, 4)]
SAME = [("fsdp2", "fsdp2"), ("zero1", "zero1")]
OTHERS = [("fsdp2", "zero1"), ("zero1", "fsdp2"), ("ddp", "fsdp2"), ("fsdp2", "ddp")]


@pytest.mark.parametrize(
    ("before", "after", "n", "m"),
    [
        *(same + numbers for same in SAME for numbers in NUMBERS),
        *((*others, 3, 2) for others in OTHERS),
        *(slow(*others, *numbers) for others in OTHERS for numbers in NUMBERS if numbers != (3, 2)),
    ],
)
def test_what_n_save_m_load(saved: Saved, pool: Pool, before: str, after: str, n: int, m: int) -> None:
    checkpoint, expected = saved.of(before, n)
    for found in pool.run(m, load, after, checkpoint):
        check_equal(found, expected)


def test_what_differs_is_seen(saved: Saved, pool: Pool) -> None:
    """Else the test above would prove nothing: before it is loaded, all is otherwise."""
    _, expected = saved.of("fsdp2", 2)
    step = step_of(config_of("ddp", "train.seed=9"), ALONE)
    found = weights(step.model, ALONE)
    assert not optimizer_state(step.optimizer)
    assert not any(torch.equal(found[name], t) for name, t in expected.weights.items() if t.ndim == 2)
    assert all(bool(t.any()) for t in expected.state.values())


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp2"])
def test_a_checkpoint_holds_tensors_and_json_alone(saved: Saved, strategy: str) -> None:
    """No pickle, and what is divided is in one file of each process."""
    checkpoint, _ = saved.of(strategy, 3)
    verify(checkpoint)
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    for name, path in files.items():
        if name.endswith(".json"):
            json.loads(path.read_text("utf-8"))
        else:
            assert path.suffix == ".safetensors", name
            with safe_open(path, "pt") as opened:
                assert opened.keys()
    folders = {"ddp": set(), "zero1": {OPTIMIZER_FOLDER}, "fsdp2": {MODEL_FOLDER, OPTIMIZER_FOLDER}}[strategy]
    assert {name.split("/")[0] for name in files if "/" in name} == folders
    for folder in folders:
        assert len(list((checkpoint / folder).iterdir())) == 3
    assert ((MODEL_FILE in files), (OPTIMIZER_FILE in files)) == (strategy != "fsdp2", strategy == "ddp")


def test_a_divided_checkpoint_gives_a_plain_model_file(saved: Saved, tmp_path: Path) -> None:
    checkpoint, held = saved.of("fsdp2", 3)
    copy_model(checkpoint, tmp_path / MODEL_FILE)
    model = build_model(config_of("ddp", "train.seed=9"), CPU)
    load_model(model, tmp_path)
    for name, tensor in weights(model, ALONE).items():
        assert torch.equal(tensor, held.weights[name]), name
    with safe_open(tmp_path / MODEL_FILE, "pt") as opened:
        assert set(opened.keys()) == set(model.state_dict())


def save_before_a_step(world: World, folder: Path) -> int:
    """→ entries of the optimizer, of which there are none yet."""
    step = step_of(config_of("fsdp2"), world)
    saver = SharedSaver(Checkpoints(folder), keep_last=3, keep_every=None, world=world)
    saver.save(0, step.model, step.optimizer, {}, None)
    saver.close()
    return len(list(step.optimizer.entries()))


def load_before_a_step(world: World, checkpoint: Path) -> int:
    """→ the same, behind loading it in place of some."""
    config = config_of("fsdp2", "train.seed=9")
    step = step_of(config, world)
    go(step, config, range(1))
    load_optimizer(step.optimizer, checkpoint)
    return len(list(step.optimizer.entries()))


def test_before_the_first_step_there_is_no_state(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(2, save_before_a_step, tmp_path) == [0, 0]
    newest = Checkpoints(tmp_path).newest()
    assert newest is not None
    assert pool.run(2, load_before_a_step, newest) == [0, 0]


def test_one_process_writes_and_reads_parts_too(tmp_path: Path) -> None:
    """All of each."""
    config = config_of("ddp")
    step = step_of(config, ALONE)
    go(step, config, range(STEP))
    save_parts(model_parts(step.model, ALONE), tmp_path / "model", ALONE)
    save_parts(optimizer_parts(step.optimizer), tmp_path / "optimizer", ALONE)
    for name, tensor in read_whole(tmp_path / "model").items():
        assert torch.equal(tensor, step.model.state_dict()[name]), name
    other = step_of(config_of("ddp", "train.seed=9"), ALONE)
    load_parts(model_parts(other.model, ALONE), tmp_path / "model")
    other.optimizer.reset(with_state=True)
    load_parts(optimizer_parts(other.optimizer), tmp_path / "optimizer")
    check_equal(
        Held(weights(other.model, ALONE), optimizer_state(other.optimizer)),
        Held(weights(step.model, ALONE), optimizer_state(step.optimizer)),
    )


@pytest.fixture
def damaged(saved: Saved, tmp_path: Path) -> Path:
    """A checkpoint of two processes, to be damaged."""
    return shutil.copytree(saved.of("fsdp2", 2)[0], tmp_path / "step-00000002")


def refusals(checkpoint: Path, *sets: str) -> list[str]:
    """What one process says of loading the model, and of loading the optimizer."""
    step = step_of(config_of("ddp", *sets), ALONE)
    told = []
    for load_it in (lambda: load_model(step.model, checkpoint), lambda: load_optimizer(step.optimizer, checkpoint)):
        with pytest.raises(CheckpointError) as raised:
            load_it()
        told.append(str(raised.value))
    return told


FOLDERS = (MODEL_FOLDER, OPTIMIZER_FOLDER)


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_shard_is_told(damaged: Path, which: int) -> None:
    """By its name where the manifest is read, and where it is not, by a tensor that it had some of."""
    for folder in reversed(FOLDERS):  # the manifest is in alphabetical order
        path = sorted((damaged / folder).iterdir())[which]
        path.unlink()
        with pytest.raises(CheckpointError, match=f"{path} is missing"):
            verify(damaged)
    for folder, told in zip(FOLDERS, refusals(damaged), strict=True):
        assert told.startswith(str(damaged / folder))
        assert "tok_embed.weight" in told or "blocks." in told


@pytest.mark.parametrize("which", [0, 1])
def test_a_shard_that_is_cut_short_is_told(damaged: Path, which: int) -> None:
    for folder in reversed(FOLDERS):
        path = sorted((damaged / folder).iterdir())[which]
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=f"{path} is damaged"):
            verify(damaged)
    for folder, told in zip(FOLDERS, refusals(damaged), strict=True):
        assert f"{damaged / folder} cannot be read" in told


def test_other_shapes_are_named(damaged: Path) -> None:
    for folder, told in zip(FOLDERS, refusals(damaged, "model.d_ff=52"), strict=True):
        assert told.startswith(f"{damaged / folder}: does not fit the configuration beside it. ")
        assert "blocks.0.mlp.gate_up" in told
        assert "of shape [104, 12], is of shape [88, 12]." in told


def test_what_is_not_there_is_named(damaged: Path) -> None:
    for told in refusals(damaged, "model.n_layers=4"):
        assert "blocks.3." in told
        assert told.endswith(" is not there.")


def refusal_by_many(world: World, checkpoint: Path) -> str:
    step = step_of(config_of("fsdp2", "model.vocab_size=68"), world)
    with pytest.raises(CheckpointError) as raised:
        load_model(step.model, checkpoint, world)
    return str(raised.value)


def test_every_process_refuses_what_does_not_fit(pool: Pool, saved: Saved) -> None:
    for n in (1, 2):
        for told in pool.run(2, refusal_by_many, saved.of("fsdp2", n)[0]):
            assert "does not fit" in told
            assert "tok_embed.weight" in told
