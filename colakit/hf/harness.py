"""lm-evaluation-harness on a model: its tasks by name, or by a YAML file of one's own."""

import re
import sys
import tempfile
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from colakit.errors import ConfigError, DataError, Problem
from colakit.evaluate.foreign import ForeignModel
from colakit.hf.export import hf_model, write_tokenizer
from colakit.records.tasks import TaskScore, TasksRecord
from colakit.train.saved import SavedModel

_GROUP = re.compile(r"^group:\s*[\"']?([^\s\"'#]+)", re.MULTILINE)
_INSTALL = "Install it: pip install 'colakit[eval]'."


def check_harness(tasks: str) -> None:
    """Raise ConfigError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError([Problem("--tasks", tasks, "lm-evaluation-harness is not installed", _INSTALL)])


def run_tasks(
    opened: SavedModel | ForeignModel, tasks: str, *, limit: int | None, batch_size: int | None
) -> TasksRecord:
    """The scores of `tasks`, names or YAML files joined by commas; `limit` examples of each.

    Computed in float32, as the harness does by itself on an exported folder. Raises ConfigError for a task that there
    is not, DataError for one whose data cannot be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    names = [name for name in map(str.strip, tasks.split(",")) if name]
    if not names:
        raise ConfigError([Problem("--tasks", tasks, "no task is named", "Give a task's name, or the file of one.")])
    # A group names the tasks beside it.
    folders = tuple(str(Path(name).absolute().parent) for name in names if _group(name))
    manager = _manager(folders, with_its_own=not all(map(_is_file, names)))
    wanted = [each for name in names for each in _find(manager, name)]
    if isinstance(opened, SavedModel):
        model: Any = hf_model(opened, standalone=False)
        model.to(opened.machine.device).eval()
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(opened, Path(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        model, tokenizer = opened.model, AutoTokenizer.from_pretrained(opened.place)
    with redirect_stdout(sys.stderr):  # it prints how it chooses a batch
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size or "auto"),
            tasks=wanted,
            limit=limit,
            task_manager=manager,
            log_samples=False,
        )
    assert found is not None  # the harness gives nothing to all processes but the first
    return TasksRecord(
        model=str(opened.place),
        step=opened.steps if isinstance(opened, SavedModel) else None,
        harness=version("lm_eval"),
        limit=limit,
        scores=tuple(_scores(found)),
    )


@cache
def _manager(folders: tuple[str, ...], *, with_its_own: bool) -> Any:  # Any: the harness's own type
    """What knows tasks by name: of `folders`, and the harness's own, thousands of files to look through."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_its_own, include_path=list(folders) or None)


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")


def _group(name: str) -> str | None:
    """What a file's group of tasks is called; None where it is none."""
    path = Path(name)
    found = _GROUP.search(path.read_text("utf-8", "replace")) if _is_file(name) and path.is_file() else None
    return found[1] if found is not None else None


def _called(name: str, group: str) -> str:
    """What the harness finds the group of file `name` under; it is the only file there of that name."""
    path = Path(name).absolute()
    others = [each for each in path.parent.rglob("*.y*ml") if each != path and _group(str(each)) == group]
    if others:
        rule = f"{others[0]} is a group called {group} too, and the harness knows groups by name"
        raise ConfigError([Problem("--tasks", name, rule, "Rename one of them.")])
    return group


def _find(manager: Any, name: str) -> list[str]:  # Any: the harness's own type
    """What the harness calls the tasks that `name` stands for; their data is there."""
    if _is_file(name):
        if not Path(name).is_file():
            raise ConfigError([Problem("--tasks", name, "there is no such file", "Give the file of a task.")])
        group = _group(name)
        found = [_called(name, group) if group else str(Path(name).absolute())]
    elif not (found := list(manager.match_tasks([name]))):
        fix = "Give a task's name (`lm-eval ls tasks` lists them), or the .yaml file of one of your own."
        raise ConfigError([Problem("--tasks", name, "the harness has no such task", fix)])
    try:
        manager.load(found)
    except Exception as error:  # whatever the harness, datasets or the hub's client raise
        told = f"--tasks {name} cannot be read ({type(error).__name__}: {' '.join(str(error).split()).rstrip('.')})."
        advice = (
            "Mend the file, or put the data it names in its place."
            if _is_file(name)
            else "Its data comes from the Hugging Face hub; without a network, give a .yaml file with data of its own."
        )
        raise DataError(f"{told} {advice}") from error
    return found


def _scores(found: dict[str, Any]) -> list[TaskScore]:  # Any: the harness's own report
    scores = []
    for task, metrics in {**found["results"], **found.get("groups", {})}.items():
        for key, value in metrics.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{kind}")
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric if kind == "none" else f"{metric} ({kind})",
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    examples=found["n-samples"].get(task, {}).get("effective"),
                    shots=int(found["n-shot"].get(task, 0)),
                )
            )
    return scores
