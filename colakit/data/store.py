"""Tokenised documents on disk: Arrow files that HF `datasets` maps into memory, one document per row.

Each row has the document's tokens, its end-of-text token behind them, and what the held-out split needs to know of it.
Files are written whole: under another name, flushed, then renamed. A store is complete once it has its `_DONE` file.
What was damaged since is noticed: a part that is gone on behind by a hash of its content, a complete store by those of
its files, which are remembered while the files stay as they are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colakit.data.cache import sweep, write_whole
from colakit.data.digests import file_digest
from colakit.errors import DataError

STORE_VERSION = 3
"""Part of the key: raise it when the same documents would be stored otherwise."""

_DONE = "done.json"
_STATE = b"colakit"


class Facts(NamedTuple):
    """What the split needs to know of N documents."""

    groups: NDArray[np.uint64]
    """[N] hashes of their groups."""
    texts: NDArray[np.uint64]
    """[N] hashes of their texts."""
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

    def __init__(self, folder: Path, n_ids: int) -> None:
        """Raises OSError where the folder cannot be made, DataError where a part in it is damaged."""
        self.folder = folder
        self._dtype = np.uint16 if n_ids <= 2**16 else np.uint32
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, ".*")
        self.n_parts = 0
        self.state: PartState | None = None
        """Of the last part that is there."""
        while (path := _part_path(folder, self.n_parts)).is_file():
            self.state = _read_state(path)
            self.n_parts += 1

    def write(self, tokens: Sequence[NDArray[np.uint32]], facts: Facts, state: PartState) -> None:
        """Add a part: for each document its ids, end-of-text included. Raises OSError, as where the disk is full."""
        import pyarrow as pa

        lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        values = np.concatenate([*tokens, np.empty(0, np.uint32)], dtype=self._dtype, casting="unsafe")
        columns = {
            "tokens": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values)),
            "group": pa.array(facts.groups),
            "text": pa.array(facts.texts),
            "n_bytes": pa.array(facts.n_bytes),
        }
        metadata = {**asdict(state), "digest": _digest(lengths, [values], facts, state)}
        table = pa.table(columns).replace_schema_metadata({_STATE: json.dumps(metadata).encode()})

        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)

        write_whole(_part_path(self.folder, self.n_parts), write)
        self.n_parts, self.state = self.n_parts + 1, state

    def finish(self, state: PartState) -> None:
        """Declare the store complete. Raises OSError."""
        digests = [file_digest(_part_path(self.folder, i), self.folder) for i in range(self.n_parts)]
        content = {**asdict(state), "parts": digests}
        write_whole(self.folder / _DONE, lambda path: path.write_text(json.dumps(content), encoding="utf-8"))


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
            paths = [_part_path(folder, i) for i in range(len(done["parts"]))]
            for path, digest in zip(paths, done["parts"], strict=True):
                if file_digest(path, folder) != digest:
                    raise ValueError(f"{path.name} is not what was written")
            tables = [Dataset.from_file(str(path)).data for path in paths]
        except (DataError, OSError, ValueError, KeyError, TypeError) as error:  # pyarrow raises OSError and ValueError
            raise DataError(f"{folder} is damaged ({error}). Remove it; it will be made anew.") from error
        self.digest = hashlib.blake2b("".join(done["parts"]).encode(), digest_size=16).hexdigest()
        """Of all that is stored."""
        lengths, self._values, self.facts = _arrays(tables)
        self.lengths: NDArray[np.int64] = lengths
        """[N] tokens of each document, its end-of-text token included; 0 where the tokenizer made nothing of it."""
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        """[N + 1] where each begins in the tokens of all."""
        self._bounds = np.concatenate([[0], np.cumsum([len(values) for values in self._values])])

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


def _arrays(tables: list[Any]) -> tuple[NDArray[np.int64], list[NDArray[np.unsignedinteger[Any]]], Facts]:
    """Lengths [N] and tokens of the documents, the latter as views of the files, and their facts."""
    # Any: pyarrow has no types
    chunks = [chunk for table in tables for chunk in table.column("tokens").chunks]
    offsets = [chunk.offsets.to_numpy() for chunk in chunks]
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(each) for each in offsets)])
    values = [chunk.values.to_numpy()[each[0] : each[-1]] for chunk, each in zip(chunks, offsets, strict=True)]

    def column(name: str, dtype: str) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(table.column(name).to_numpy() for table in tables)])

    return lengths, values, Facts(column("group", "u8"), column("text", "u8"), column("n_bytes", "i8"))


def _digest(lengths: NDArray[np.int64], values: Sequence[NDArray[Any]], facts: Facts, state: PartState) -> str:
    content = hashlib.blake2b(repr(state).encode(), digest_size=16)
    for array in (lengths, *values, *facts):
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.arrow"


def _read_state(path: Path) -> PartState:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            found = json.loads(reader.schema.metadata[_STATE])
            position, bad = tuple(found["position"]), tuple(found["bad"])
            state = PartState(position, found["short"], found["n_bad"], bad, found["n_bytes"])
            # A stream cut between two of its messages reads like one that ends there.
            if _digest(*_arrays([reader.read_all()]), state) != found["digest"]:
                raise ValueError("it is not what was written")
        return state
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged ({error}). Remove {path.parent}; it will be made anew.") from error
