"""Files for a hub on this machine, and a process that reads from it as it is told."""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Answer = dict[str, Any]
READER = Path(__file__).with_name("read_hub.py")
ROOT = READER.parents[2]


def parquet(columns: Mapping[str, Any], row_group_size: int | None = None) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=row_group_size, compression="none")
    return file.getvalue()


def jsonl(*lines: str) -> bytes:
    return gzip.compress("\n".join(lines).encode())


def web_texts(start: int, stop: int) -> dict[str, list[str | None]]:
    return {
        "junk": ["j" * 50 for _ in range(start, stop)],
        "text": [f"text {i}" for i in range(start, stop)],
        "id": [f"<{i}>" for i in range(start, stop)],
    }


@dataclass
class Seen:
    answers: dict[str, Answer]
    stderr: str
    asked: int


def run(jobs: Mapping[str, Any], *, url: str, cache: Path, **environment: str) -> Seen:
    """The answers to `jobs` by their names, from one process that takes every warning for an error."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    told = {"jobs": list(jobs.values()), "content_url": f"{url}/content/"}
    result = subprocess.run(
        [sys.executable, "-W", "error", READER],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
        env={
            **own,
            **environment,
            "HF_ENDPOINT": url,
            "HF_HOME": str(cache),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else Amazon is asked, too
            "PYTHONPATH": str(ROOT),
        },
    )
    assert result.returncode == 0, result.stderr
    return Seen(dict(zip(jobs, json.loads(result.stdout), strict=True)), result.stderr, 0)
