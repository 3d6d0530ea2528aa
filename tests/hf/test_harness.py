"""lm-evaluation-harness on a run, offline: the scores are those of the harness itself on the exported folder."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from colakit.errors import ConfigError, DataError
from colakit.hf.export import export
from colakit.hf.harness import run_tasks
from colakit.opening import open_model

pytest.importorskip("lm_eval")

TASK = """\
task: which_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    examples = [
        {"prompt": f"word{i} and {i % 7} word", "choices": ["1 and", " 22", f"{i}", "word and word"], "answer": i % 4}
        for i in range(23)
    ]
    data = tmp_path / "which.jsonl"
    data.write_text("\n".join(map(json.dumps, examples)), encoding="utf-8")
    path = tmp_path / "which_word.yaml"
    path.write_text(TASK.format(data=data), encoding="utf-8")
    return path


def directly(folder: Path, task: Path) -> dict[str, float]:
    """The harness, as its own users call it."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    model = HFLM(pretrained=str(folder), batch_size=5, device="cpu")
    assert isinstance(model.model, AutoModelForCausalLM._model_mapping[type(model.model.config)])  # type: ignore[attr-defined]
    tasks = [load_yaml(str(task), resolve_func=True)]
    found = simple_evaluate(
        model=model, tasks=tasks, task_manager=TaskManager(include_defaults=False), log_samples=False
    )
    results: dict[str, float] = found["results"]["which_word"]
    return results


def test_the_scores_are_the_harness_s_own(tiny_run: Path, task: Path, tmp_path: Path) -> None:
    saved = open_model(tiny_run)
    record = run_tasks(saved, str(task), limit=None, batch_size=3)
    export(saved, tmp_path / "exported", standalone=False)  # type: ignore[arg-type]
    expected = directly(tmp_path / "exported", task)
    scores = {score.metric: score for score in record.scores}
    assert scores.keys() == {"acc", "acc_norm"}
    for metric, score in scores.items():
        assert score.value == expected[f"{metric},none"]
        assert (score.task, score.examples, score.shots) == ("which_word", 23, 0)
        assert score.stderr == pytest.approx(expected[f"{metric}_stderr,none"])
    assert len({score.value for score in scores.values()} - {0.0, 1.0}) > 0
    assert (record.step, record.limit) == (8, None)
    assert run_tasks(open_model(tmp_path / "exported"), str(task), limit=None, batch_size=3).scores == record.scores


def test_a_limit_reads_only_so_many(tiny_run: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_tasks(open_model(tiny_run), str(task), limit=4, batch_size=None)
    assert capsys.readouterr().out == "", "the standard output is the command's own"
    assert {score.examples for score in record.scores} == {4}


def test_the_model_is_not_changed_by_it(tiny_run: Path, task: Path) -> None:
    saved = open_model(tiny_run)
    tokens = torch.tensor([[3, 4, 5]])
    before = saved.model(tokens)  # type: ignore[operator]
    run_tasks(saved, str(task), limit=2, batch_size=1)
    assert torch.equal(saved.model(tokens), before)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ("no_such_task_anywhere", ConfigError, "the harness has no such task"),
        ("", ConfigError, "no task is named"),
        (" , ", ConfigError, "no task is named"),
        ("missing.yaml", ConfigError, "there is no such file"),
        (
            "arc_easy",
            DataError,
            r"--tasks arc_easy cannot be read \(.*without a network, give a \.yaml file",
        ),
    ],
)
def test_a_task_that_cannot_be_had_is_told(tiny_run: Path, tasks: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_tasks(open_model(tiny_run), tasks, limit=None, batch_size=None)


def test_a_task_file_that_is_none_is_told(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: [unclosed")
    with pytest.raises(DataError, match=r"bad\.yaml cannot be read \(.*Mend the file"):
        run_tasks(open_model(tiny_run), str(tmp_path / "bad.yaml"), limit=None, batch_size=None)


def test_a_group_has_its_own_score(tiny_run: Path, task: Path, tmp_path: Path) -> None:
    group = tmp_path / "words.yaml"
    group.write_text("group: words\ntask:\n  - which_word\naggregate_metric_list:\n  - metric: acc\n")
    scores = run_tasks(open_model(tiny_run), str(group), limit=None, batch_size=4).scores
    found = {(s.task, s.metric): s for s in scores}
    assert found["words", "acc"].value == found["which_word", "acc"].value
    assert found["words", "acc"].examples is None
    assert found["which_word", "acc"].examples == 23
    (tmp_path / "another.yaml").write_text(group.read_text())
    with pytest.raises(ConfigError, match=r"another\.yaml is a group called words too.*Rename one of them"):
        run_tasks(open_model(tiny_run), str(group), limit=None, batch_size=4)
