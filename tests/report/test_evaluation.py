"""What `eval` and `export` show."""

import dataclasses

from colakit.records.evaluation import Estimate, EvaluationRecord, Scores
from colakit.records.export import ExportRecord
from colakit.records.tasks import TaskScore, TasksRecord
from colakit.report.evaluation import evaluation_note, evaluation_table, export_table, tasks_table

SCORES = Scores(
    loss=Estimate(3.45678, 3.40001, 3.51234),
    perplexity=Estimate(31.713, 29.96, 33.525),
    bits_per_byte=Estimate(1.23456, 1.2, 1.27),
    top1=Estimate(0.45678, 0.4, 0.5),
    top5=Estimate(0.6789, 0.65, 0.7),
    tokens=262_144,
    text_bytes=999_999,
    documents=321,
)
RECORD = EvaluationRecord(
    model="runs/a",
    preset="cola",
    step=2345,
    tokenizer="bpe",
    data="the text",
    is_held_out=True,
    seq_len=1024,
    stride=None,
    device="CPU, float32",
    batch_size=32,
    scores=SCORES,
    sources={},
    eval_s=1.5,
    tokens_per_s=12_345.6,
)


def test_each_figure_stands_beside_its_interval(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(evaluation_table(RECORD)) == [
        "runs/a, step 2,345, on what is held out of the text",
        "95 % over documents",
        "loss, nats/token  3.4568  3.4000 … 3.5123",
        "perplexity  31.71  29.96 … 33.52",
        "bits per byte  1.2346  1.2000 … 1.2700",
        "top-1 accuracy  0.4568  0.4000 … 0.5000",
        "top-5 accuracy  0.6789  0.6500 … 0.7000",
        "tokens  262,144",
        "bytes  999,999",
        "documents  321",
    ]


def test_sources_stand_beside_all_of_them_and_what_is_unknown_is_said(shown) -> None:  # type: ignore[no-untyped-def]
    alone = Scores(
        Estimate(2.0, None, None),
        Estimate(7.389, None, None),
        None,
        Estimate(0.5, None, None),
        Estimate(0.75, None, None),
        tokens=9,
        text_bytes=None,
        documents=1,
    )
    record = dataclasses.replace(RECORD, sources={"code": alone}, is_held_out=False, step=None)
    lines = shown(evaluation_table(record))
    assert lines[:3] == [
        "runs/a, on the text",
        "all  95 % over documents  code  95 % over documents",
        "loss, nats/token  3.4568  3.4000 … 3.5123  2.0000  n/a",
    ]
    assert lines[4] == "bits per byte  1.2346  1.2000 … 1.2700  n/a"
    assert lines[-2:] == ["bytes  999,999  n/a", "documents  321  1"]


def test_the_note_tells_how_it_was_measured() -> None:
    assert evaluation_note(RECORD) == (
        "In windows of 1,024 tokens, packed as in training, 32 at once on CPU, float32: 12,346 tokens/s."
    )
    assert "each document by itself, by strides of 512," in evaluation_note(dataclasses.replace(RECORD, stride=512))


def test_an_export_and_tasks_have_their_figures(shown) -> None:  # type: ignore[no-untyped-def]
    record = ExportRecord("out", "runs/a", "cola", None, 1_234_567, is_standalone=True, files=("a.py", "b.json"))
    assert shown(export_table(record)) == [
        "exported",
        "folder  out",
        "preset  cola",
        "step  n/a",
        "parameters  1,234,567 (1.23M)",
        "files  2, colakit's code among them",
    ]
    scores = (TaskScore("arc", "acc", 0.25, 0.01234, 1200, 0), TaskScore("own", "f1 (first)", 0.5, None, None, 3))
    assert shown(tasks_table(TasksRecord("runs/a", 5, "0.4.13", None, scores))) == [
        "runs/a, step 5, by lm-evaluation-harness 0.4.13",
        "task  metric  value  ± stderr  examples  shots",
        "arc  acc  0.2500  0.0123  1,200  0",
        "own  f1 (first)  0.5000  n/a  3",
    ]
