"""A tiny run, trained once for all."""

from pathlib import Path

import pytest

from tests.train.tiny_runs import make_config, run, write_corpus


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    root = folder / "run"
    run(root, make_config(write_corpus(folder / "poems.jsonl"), preset="cola-fan-dropout-muon"))
    return root
