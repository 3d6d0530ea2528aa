"""The scripts under benchmarks/ run; what they print is theirs."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def test_forms_of_newton_schulz() -> None:
    command = [sys.executable, str(SCRIPTS / "newton_schulz_forms.py"), "--smoke", "--repeats", "1"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    for row in printed["shapes"]:
        assert row["matrices"] > 0
        assert all(ms > 0 for ms in row["ms"].values())
        errors = row["relative_error"]
        assert max(errors["textbook float32"], errors["gram float32"]) < 1e-5 < errors["textbook bfloat16"]


def test_speeds_of_a_gpu_are_read_off_reports() -> None:
    """On reports made up; the commands are for a GPU."""
    spec = importlib.util.spec_from_file_location("gpu_speed", SCRIPTS / "gpu_speed.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    speeds = {"original": 2.0, "cola-smollm2": 5.0, "cola-smollm2-muon": 4.0, "cola-m": 4.5}
    results = [
        {"preset": name, "compiled": compiled, "it_per_s": None if compiled else speed, "gpu_util_frac": 0.97}
        for name, speed in speeds.items()
        for compiled in (False, True)
    ]
    largest = {"results": [{"preset": "cola-smollm2", "max_batch": 10}, {"preset": "cola-m", "max_batch": 25}]}
    found = {what: value for what, value, _ in script.lines({"results": results}, largest)}
    assert found["cola-smollm2 over original, eager"] == 2.5
    assert found["Muon over AdamW, eager"] == 0.8
    assert found["cola-m's step over plain, eager"] == pytest.approx(5.0 / 4.5)
    assert found["GPU utilisation, compiled"] == 0.97
    assert found["Muon over AdamW, compiled"] is None
    assert found["largest batch, cola-m over plain"] == 2.5
