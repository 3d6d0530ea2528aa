"""The scripts under benchmarks/ run; what they print is theirs."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def test_forms_of_newton_schulz() -> None:
    command = [sys.executable, str(SCRIPTS / "newton_schulz_forms.py"), "--smoke", "--repeats", "1"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    for row in printed["shapes"]:
        assert row["matrices"] > 0
        assert all(ms > 0 for ms in row["ms"].values())
        errors = row["relative_error"]
        assert max(errors["textbook float32"], errors["gram float32"]) < 1e-5 < errors["textbook bfloat16"]
