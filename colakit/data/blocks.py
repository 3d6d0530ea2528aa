"""Blocks of tokens on disk: an Arrow stream that HF `datasets` maps into memory, one fixed-size list per row."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.data.packing import count_tokens
from colakit.errors import DataError

_COLUMN = "tokens"
_ROWS_PER_WRITE = 1024


class Blocks:
    """The blocks of one side, each [T + 1] of int32, read from the file as they are asked for."""

    def __init__(self, path: Path, seq_len: int) -> None:
        """Map the file that `write_blocks` made. Raises DataError where it is damaged."""
        from datasets import Dataset

        self.seq_len = seq_len
        try:
            self._dataset = Dataset.from_file(str(path)).with_format("arrow")
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these
            raise DataError(f"{path} is damaged ({error}). Remove {path.parent}; it will be made anew.") from error

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        values = self._dataset[int(index)][_COLUMN].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values, dtype=np.int32)

    @property
    def n_tokens(self) -> int:
        """Tokens of the stream the blocks were cut from, end-of-text tokens included."""
        return count_tokens(len(self), self[len(self) - 1]) if len(self) else 0


def write_blocks(path: Path, blocks: Iterable[NDArray[np.int32]], seq_len: int) -> None:
    """Write `blocks`, each [seq_len + 1], as the Arrow stream that `Blocks` and `Dataset.from_file` read."""
    import pyarrow as pa

    schema = pa.schema([(_COLUMN, pa.list_(pa.int32(), seq_len + 1))])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for rows in _groups(blocks, _ROWS_PER_WRITE):
            values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(rows)), seq_len + 1)
            writer.write_batch(pa.record_batch([values], schema=schema))


def _groups(blocks: Iterable[NDArray[np.int32]], size: int) -> Iterator[list[NDArray[np.int32]]]:
    rest = iter(blocks)
    while group := list(islice(rest, size)):
        yield group
