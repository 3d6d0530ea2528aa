"""What saved files hold, as far as headers and sizes tell: no tensor is read, and torch is not needed.

Whether a checkpoint is what was written, byte for byte, `folders.verify` tells.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from colakit.checkpoint.folders import MANIFEST, MODEL_FILE, MODEL_FOLDER, SCHEMA_VERSION, step_of
from colakit.errors import CheckpointError
from colakit.records.info import CheckpointInfo, TensorInfo


def tensors_of(path: Path) -> list[TensorInfo]:
    """Every tensor in the file `path`, block by block. Raises CheckpointError where it is missing or broken."""
    try:
        with safe_open(path, framework="np") as file:  # whose slices name types that numpy lacks, such as BF16
            parts = {name: file.get_slice(name) for name in sorted(file.keys(), key=_by_number)}
            return [TensorInfo(n, part.get_dtype(), tuple(part.get_shape()), 1) for n, part in parts.items()]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Give a folder whose weights are there, as safetensors.") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). It was cut short or changed: copy it again, or give "
            "another checkpoint."
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint or run: one, or one of each process that wrote; none."""
    if (folder / MODEL_FOLDER).is_dir():
        return sorted((folder / MODEL_FOLDER).glob("*.safetensors"))
    return [folder / MODEL_FILE] if (folder / MODEL_FILE).is_file() else []


def joined(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """`tensors` with those of one name as one, of all their rows: several processes have written a part each."""
    found: dict[str, TensorInfo] = {}
    for t in tensors:
        before = found.get(t.name)
        rows = (before.shape[0] + t.shape[0], *t.shape[1:]) if before is not None else t.shape
        found[t.name] = replace(t, shape=rows)
    return [found[name] for name in sorted(found, key=_by_number)]


def data_bytes(files: Iterable[Path]) -> int:
    """Bytes of the tensors in safetensors files, without their headers. Raises OSError."""
    total = 0
    for path in files:
        with path.open("rb") as file:
            total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return total


def grouped(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """`tensors` with those as one that are alike but for numbers in their names, in the order of the first."""
    counts: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for t in tensors:
        pattern = ".".join("*" if part.isdigit() else part for part in t.name.split("."))
        counts[pattern, t.dtype, t.shape] += t.count
    return [TensorInfo(*alike, count) for alike, count in counts.items()]


def _by_number(name: str) -> list[str]:
    """So that block 2 comes before block 10."""
    return [part.zfill(9) if part.isdigit() else part for part in name.split(".")]


def checkpoint_info(path: Path) -> CheckpointInfo:
    """A checkpoint's size, and whether its files have those of its manifest. Raises OSError where it is gone."""
    files = [file for file in path.rglob("*") if file.is_file()]
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
    return CheckpointInfo(str(path), step_of(path), sum(sizes.values()), _fault(path / MANIFEST, sizes))


def _fault(manifest: Path, sizes: Mapping[str, int]) -> str | None:
    try:
        content = json.loads(manifest.read_text("utf-8"))
        if content["schema"] != SCHEMA_VERSION:
            return f"of schema {content['schema']}, which this colakit does not read"
        written = {name: int(file["bytes"]) for name, file in content["files"].items()}
    except FileNotFoundError:
        return f"{manifest.name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest.name} is damaged"
    for name, size in written.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]:,} bytes, not the {size:,} written"
    return None
