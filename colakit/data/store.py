"""Tokenised documents on disk: Arrow files that HF `datasets` maps into memory, one document per row.

Each row has the document's tokens, its end-of-text token behind them, and what the held-out split needs to know of it.
Files are written whole: under another name, flushed, then renamed. A store is complete once it has its `_DONE` file.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colakit.errors import DataError

STORE_VERSION = 1
"""Part of the key: raise it when the same documents would be stored otherwise."""

_DONE = "done.json"
_STATE = b"colakit"
_ABANDONED_AFTER_S = 24 * 3600.0


class Facts(NamedTuple):
    """What the split needs to know of N documents."""

    groups: NDArray[np.uint64]
    """[N] hashes of their groups."""
    texts: NDArray[np.uint64]
    """[N] hashes of their words."""
    n_bytes: NDArray[np.int64]
    """[N] UTF-8 bytes of their texts."""


@dataclass(frozen=True)
class PartState:
    """Where reading goes on behind a part, and what was left out up to there."""

    position: tuple[int, int]
    short: int
    n_bad: int
    bad: tuple[str, ...]
    n_bytes: int
    """Of the texts up to there."""


class StoreWriter:
    """Writes a store part by part, and finds the parts that an earlier writer finished."""

    def __init__(self, folder: Path, n_ids: int, *, resume: bool = True) -> None:
        """Without `resume`, parts that are there are removed. Raises OSError where the folder cannot be made."""
        self.folder = folder
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        self._dtype = np.uint16 if n_ids <= 2**16 else np.uint32
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        self.n_parts = 0
        self.state: PartState | None = None
        """Of the last part that is there."""
        while (path := _part_path(folder, self.n_parts)).is_file():
            self.state = _read_state(path)
            self.n_parts += 1

    def write(self, tokens: Sequence[NDArray[np.uint32]], facts: Facts, state: PartState) -> None:
        """Add a part: for each document its ids, end-of-text included. Raises OSError, as where the disk is full."""
        import pyarrow as pa

        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])]).astype(np.int64)
        values = np.concatenate([*tokens, np.empty(0, np.uint32)]).astype(self._dtype)
        columns = {
            "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)),
            "group": pa.array(facts.groups),
            "text": pa.array(facts.texts),
            "n_bytes": pa.array(facts.n_bytes),
        }
        table = pa.table(columns).replace_schema_metadata({_STATE: json.dumps(state.__dict__).encode()})

        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)

        _write_whole(_part_path(self.folder, self.n_parts), write)
        self.n_parts, self.state = self.n_parts + 1, state

    def finish(self, state: PartState) -> None:
        """Declare the store complete. Raises OSError."""
        sizes = [_part_path(self.folder, i).stat().st_size for i in range(self.n_parts)]
        content = {**state.__dict__, "part_bytes": sizes}
        _write_whole(self.folder / _DONE, lambda path: path.write_text(json.dumps(content), encoding="utf-8"))


def is_complete(folder: Path) -> bool:
    """Whether a store has been written to its end."""
    return (folder / _DONE).is_file()


class DocumentStore:
    """The documents of a complete store, in their order, read from disk as they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Map the files. Raises DataError where they are damaged."""
        from datasets import Dataset

        try:
            done = json.loads((folder / _DONE).read_text("utf-8"))
            self.short, self.n_bad, self.bad = int(done["short"]), int(done["n_bad"]), tuple(done["bad"])
            paths = [_part_path(folder, i) for i in range(len(done["part_bytes"]))]
            for path, size in zip(paths, done["part_bytes"], strict=True):
                if path.stat().st_size != size:
                    raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
            tables = [Dataset.from_file(str(path)).data for path in paths]
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors derive from the first two
            raise DataError(f"{folder} is damaged ({error}). Remove it; it will be made anew.") from error
        chunks = [chunk for table in tables for chunk in table.column("tokens").chunks]
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
        self.lengths: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *lengths])
        """[N] tokens of each document, its end-of-text token included; 0 where the tokenizer made nothing of it."""
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        """[N + 1] where each begins in the tokens of all."""
        self._values = [_values(chunk) for chunk in chunks]
        self._bounds = np.concatenate([[0], np.cumsum([len(values) for values in self._values])])
        self.facts = Facts(
            *(_column(tables, name, dtype) for name, dtype in (("group", "u8"), ("text", "u8"), ("n_bytes", "i8")))
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, start: int, stop: int) -> NDArray[np.int32]:
        """Tokens `start` … `stop` − 1 of all documents joined."""
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        found = []
        while start < stop:
            base, end = int(self._bounds[first]), min(stop, int(self._bounds[first + 1]))
            found.append(self._values[first][start - base : end - base])
            start, first = end, first + 1
        return np.concatenate([np.empty(0, np.int32), *found], dtype=np.int32, casting="unsafe")


def _values(chunk: Any) -> NDArray[np.unsignedinteger[Any]]:  # Any: pyarrow has no types
    """The tokens of a chunk, as a view of the file."""
    offsets = chunk.offsets
    return np.asarray(chunk.values[offsets[0].as_py() : offsets[-1].as_py()].to_numpy())


def _column(tables: list[Any], name: str, dtype: str) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(table.column(name).to_numpy() for table in tables)])


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.arrow"


def _read_state(path: Path) -> PartState:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            state = json.loads(reader.schema.metadata[_STATE])
        return PartState(
            tuple(state["position"]), state["short"], state["n_bad"], tuple(state["bad"]), state["n_bytes"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}). Remove {path.parent}; it will be made anew.") from error


def _write_whole(path: Path, write: Any) -> None:  # Any: what it returns does not matter
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind."""
    for path in folder.glob(".*"):
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
            path.unlink(missing_ok=True)
