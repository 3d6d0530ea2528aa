"""The tables of `bench --max-batch`, and the settings that it says to use."""

import dataclasses

from colakit.host import describe_machine
from colakit.records.bench import MaxBatchRecord, MaxBatchReport, PaperFigure, ProbeRecord
from colakit.report.max_batch import max_batch_notes, max_batch_table, probe_table

FOUND = MaxBatchRecord(
    preset="cola-m",
    optimizer="adamw",
    seq_len=1024,
    device="CPU, float32",
    dtype="float32",
    attention="sdpa",
    compiled=False,
    claim=PaperFigure("largest_batch", 64.0, "sequences", "§5.5", "CoLA-M"),
    limit_gib=6.0,
    margin_frac=0.05,
    batch_size=16,
    by_ledger=12,
    predicted=9,
    max_batch=10,
    is_bounded=True,
    steps=10,
    peak_gib=5.4321,
    micro_batch_size=8,
    probes=(
        ProbeRecord(3, 2, True, 2.345, 4.56, None),
        ProbeRecord(11, 2, False, None, 7.8, "out of memory"),
        ProbeRecord(11, 2, False, 5.9, 7.8, None),
    ),
)
CUT = dataclasses.replace(
    FOUND, preset="cola", claim=None, is_bounded=False, max_batch=20, micro_batch_size=16, probes=()
)
NOTHING = dataclasses.replace(
    CUT, preset="refined", max_batch=None, micro_batch_size=None, reason="not run", steps=None
)


def report(*results: MaxBatchRecord) -> MaxBatchReport:
    return MaxBatchReport(describe_machine(), 300.0, 12.0, results)


def test_tables(shown) -> None:  # type: ignore[no-untyped-def]
    nothing = dataclasses.replace(NOTHING, peak_gib=None, compiled=True)
    assert shown(max_batch_table(report(FOUND, CUT, nothing))) == [
        "largest batch: CPU, float32, attention sdpa",
        "tokens  limit, GiB  by the ledger  predicted  found  predicted / found  paper  peak, GiB  steps",
        "cola-m  1024  6.00  12  9  10  0.90  64  5.43  10",
        "cola  1024  6.00  12  9  ≥ 20  n/a  5.43  10",
        "refined, compiled  1024  6.00  12  9  n/a  n/a  n/a  n/a",
    ]
    assert shown(probe_table(report(FOUND))) == [
        "tries, each in a process of its own",
        "sequences  steps  peak, GiB  s",
        "cola-m  3  2  2.35  4.6  fits",
        "cola-m  11  2  n/a  7.8  out of memory",
        "cola-m  11  2  5.90  7.8  held more than 5.70 GiB",
    ]


def test_notes() -> None:
    assert list(max_batch_notes(report(FOUND, CUT, NOTHING))) == [
        "cola-m, 16 sequences a step in 2 micro-batches: --set train.batch_size=16 --set train.micro_batch_size=8",
        "cola-m, as many as fit at once: --set train.batch_size=10 --set train.micro_batch_size=10",
        "cola, 16 sequences a step at once: --set train.batch_size=16 --set train.micro_batch_size=16",
        "cola, as many as were seen to fit at once: --set train.batch_size=20 --set train.micro_batch_size=20",
        "refined: not run.",
        "All tries keep 5 % of the limit free. The paper's figures are of 24 GB.",
    ]
