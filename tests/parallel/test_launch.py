"""What ``--nproc`` starts processes with."""

import os

import pytest

from colakit.parallel import launch as module


@pytest.mark.parametrize(
    ("wanted", "expected"), [(None, "4"), ("2", "2"), ("4", "4"), ("16", "4"), ("all", "4"), ("0", "4")]
)
def test_threads_are_no_more_than_each_has_cpus(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, expected: str
) -> None:
    """Of 16 threads on 4 CPUs each waits for the others, and a step takes ten times as long."""
    told: list[str] = []

    def started(*arguments: str) -> None:
        assert arguments == ("-P", "-m", "colakit", "train"), "without modules of the folder it is called from"
        told.append(os.environ["OMP_NUM_THREADS"])
        assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"

    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    monkeypatch.setattr(module, "elastic_launch", lambda *_: started)
    monkeypatch.setenv("OMP_NUM_THREADS", wanted or "")
    if wanted is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert module.launch(2, ["train"], threads=4) == 0
    assert told == [expected]
