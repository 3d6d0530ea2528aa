"""Checkpoints to which every process writes what it holds, by torch.distributed.checkpoint: safetensors, no pickle.

What N processes wrote, M read: each names the rows it wants. Loaded where it is needed: it takes its time.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from colakit.analysis.sharding import chunk
from colakit.errors import CheckpointError
from colakit.model.lm import LM
from colakit.model.naming import public_rows
from colakit.optim.combined import CombinedOptimizer
from colakit.parallel.shards import here, is_sharded
from colakit.parallel.world import World


@dataclass(frozen=True)
class Part:
    """Rows of a tensor of `shape`, from `start` on: `tensor`, which is written, or read into."""

    shape: torch.Size
    start: int
    tensor: Tensor

    def size(self) -> torch.Size:
        """Of the whole."""
        return self.shape

    # What torch.distributed.checkpoint asks of whatever is saved in parts; DTensor, which has none but even ones, too.

    def __create_write_items__(self, name: str, _object: object) -> list[WriteItem]:
        data = TensorWriteData(self._chunk, TensorProperties.create_from_tensor(self.tensor), self.shape)
        return [WriteItem(MetadataIndex(name, self._chunk.offsets), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk]

    @property
    def _chunk(self) -> ChunkStorageMetadata:
        offsets = torch.Size([self.start, *(0 for _ in self.shape[1:])])
        return ChunkStorageMetadata(offsets, self.tensor.shape)


Parts = Mapping[str, Part]


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        part: Part = self.state_dict[index.fqn]
        return part.tensor


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Without the default's look for tensors without memory, which takes a part for something else."""
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator
        self.flatten_state_dict = False

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        part: Part = self.state_dict[index.fqn]
        return part.tensor


def model_parts(model: LM, world: World) -> Parts:
    """What is here of each weight under its public name: all of it, or where FSDP2 divides the model, its rows."""
    parameters = dict(model.named_parameters())
    parts = {}
    for name, (stored, rows) in public_rows(model).items():
        parameter = parameters[stored]
        start, stop, _ = rows.indices(len(parameter))
        shape = torch.Size([stop - start, *parameter.shape[1:]])
        if is_sharded(parameter):
            low, high = chunk(len(parameter), world.size, world.rank)
            first, last = max(start, low), min(stop, high)
            if first < last:
                parts[name] = Part(shape, first - start, here(parameter.detach())[first - low : last - low])
        else:
            parts[name] = Part(shape, 0, parameter.detach()[start:stop])
    return parts


def optimizer_parts(optimizer: CombinedOptimizer) -> Parts:
    """What is here of the optimizer's state. A single number is written as a row of one."""
    return {
        name: Part(torch.Size([1]), 0, tensor.view(1))
        if tensor.ndim == 0
        else Part(piece.parameter.shape, piece.start, tensor)
        for name, piece, tensor in optimizer.entries()
        if tensor.numel()
    }


def save_parts(parts: Parts, folder: Path, world: World) -> None:
    """Write the parts that all processes hold to `folder`, a file each. Every process calls this. Raises OSError."""
    # Copies: safetensors refuses tensors that share memory, as the rows of one parameter do.
    copies = {name: Part(p.shape, p.start, p.tensor.to("cpu", copy=True)) for name, p in parts.items()}
    with _without_its_words():
        # Which makes the folder too: what fails in one process alone has to fail inside, where all are told of it.
        try:
            save(
                dict(copies),
                storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
                planner=_SavePlanner(),
                process_group=world.control,
                no_dist=world.size == 1,
            )
        except CheckpointException as failed:  # no Exception to torch
            raise _first(failed) from failed


def load_parts(parts: Parts, folder: Path) -> None:
    """Fill `parts` from `folder`, each process for itself.

    Raises CheckpointError where something is missing, broken or of another shape.
    """
    found = _contents(folder)
    for name, part in parts.items():
        if name not in found or found[name].size != part.shape:
            there = f"of shape {list(found[name].size)}" if name in found else "not there"
            raise CheckpointError(
                f"{folder}: does not fit the configuration beside it. {name}, of shape {list(part.shape)}, is {there}."
            )
        # The reader takes what there is: rows that are in no file would stay what they are.
        if sum(chunk.sizes[0] for chunk in found[name].chunks) != part.shape[0]:
            raise CheckpointError(f"{folder}: rows of {name} are missing. Copy every file of it.")
    with _without_its_words():
        try:
            load(
                dict(parts), storage_reader=HuggingFaceStorageReader(str(folder)), planner=_LoadPlanner(), no_dist=True
            )
        except CheckpointException as failed:
            error = _first(failed)
            raise CheckpointError(f"{folder} cannot be read ({error}).") from error


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `folder`, whole, on the CPU. Raises CheckpointError."""
    tensors = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in _contents(folder).items()}
    load_parts({name: Part(t.shape, 0, t) for name, t in tensors.items()}, folder)
    return tensors


def _contents(folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}).") from error
    return {name: m for name, m in found.items() if isinstance(m, TensorStorageMetadata)}


@contextmanager
def _without_its_words() -> Iterator[None]:
    """torch warns of what is asked for on purpose: one process by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _first(failed: CheckpointException) -> Exception:
    """What went wrong, in the first process where something did; what is not the disk's fault is ours."""
    error = failed.failures[min(failed.failures)][0]
    return error if isinstance(error, Exception) else RuntimeError(str(error))
