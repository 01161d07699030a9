"""Tensors of a checkpoint, by DCP: parameters and optimizer state as two folders of safetensors.

`torch.distributed.checkpoint` keeps its own index as a pickle unless it stores safetensors, as here: nothing is
unpickled, so that a checkpoint from a stranger cannot run code.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from lmcore import files
from lmcore.errors import UserError
from torchlm.processes import Group

__all__ = ["Stored", "open_item", "restore_state", "save_parts", "save_state"]

SHARDING_KEY, OFFSETS_KEY = "DCP_SHARDING_INFO", "saved_offsets"
"""Metadata of a safetensors file in which DCP looks for where in the whole tensors its parts begin."""

BLOCK_BYTES = 1 << 26
"""A file is mapped again for each block of at most this size, since pages that were read count as memory in use."""


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says of one tensor, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def save_state(folder: Path, params: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Callable[[], None]:
    """Copy the tensors off the device now, to be written in the background.

    Returns:
        A function that writes everything to disk, opens it, and raises what went wrong.
    """
    items = {"params": params, "optimizer": optimizer}
    host = {name: {key: t.detach().to("cpu", copy=True) for key, t in item.items()} for name, item in items.items()}

    def write() -> None:
        for name, item in host.items():
            (folder / name).mkdir(parents=True)
            try:
                with _one_process():
                    dcp.save(item, storage_writer=dcp.HuggingFaceStorageWriter(str(folder / name)), no_dist=True)
                _check_opens(folder / name, item)
            except dcp.CheckpointException as error:  # not an Exception: handlers of those would let it pass
                raise OSError(_reason(error)) from error

    return write


def save_parts(
    folder: Path, params: dict[str, Tensor], optimizer: dict[str, Tensor], processes: Group
) -> Callable[[], None]:
    """Copy this process's parts off the device now, to be written in the background.

    Each process writes files of its own, as DCP does with `save_distributed=True`, and of what several have, the first.
    DCP itself would have the processes talk to each other.

    Args:
        folder: of the state; its parent is there.
        params: the same names in all processes; DTensors where a process has a part.
        optimizer: likewise.
        processes: those that have parts, which all call this.

    Returns:
        A function that writes the parts to disk, and raises what went wrong. In process 0 it waits for the others, and
        opens what all have written.
    """
    items, process = {"params": params, "optimizer": optimizer}, processes.rank
    host = {name: {key: _part(t) for key, t in item.items() if _is_first(t, process)} for name, item in items.items()}

    def write() -> None:
        folder.mkdir(exist_ok=True)
        for name, item in host.items():
            (folder / name).mkdir(exist_ok=True)
            if not item:
                continue
            offsets = {key: {OFFSETS_KEY: list(offsets)} for key, (_, offsets) in item.items()}
            path = folder / name / f"shard-{process + 1:05d}-model-00001-of-00001.safetensors"
            try:
                save_file({key: t for key, (t, _) in item.items()}, path, {SHARDING_KEY: json.dumps(offsets)})
            except SafetensorError as error:
                raise OSError(f"{path}: {error}") from error
            files.sync(path)

    write_together = processes.together(write)

    def finish() -> None:
        write_together()
        for name, item in items.items() if process == 0 else ():
            _check_opens(folder / name, item)

    return finish


def _is_first(tensor: Tensor, process: int) -> bool:
    """Return whether this process is the first of those that have the same part."""
    if not isinstance(tensor, DTensor):
        return process == 0
    place = tensor.device_mesh.get_coordinate()
    return place is not None and all(at == 0 or p.is_shard() for at, p in zip(place, tensor.placements, strict=True))


def _part(tensor: Tensor) -> tuple[Tensor, Sequence[int]]:
    """Return a copy of this process's part, and where in the whole it begins."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True), [0] * tensor.ndim
    [chunk] = tensor.__create_chunk_list__()
    return tensor.to_local().detach().to("cpu", copy=True), chunk.offsets


def restore_state(folder: Path, **items: dict[str, Tensor]) -> None:
    """Read the named items, `params` and perhaps `optimizer`, into these tensors, in place.

    Parameters without an optimizer, from which no training continues, may have another dtype.

    Raises:
        UserError: a file is missing or damaged, or a tensor has another shape or type.
    """
    for name, item in items.items():
        path = folder / name
        reader = dcp.HuggingFaceStorageReader(str(path))
        try:
            stored = reader.read_metadata().state_dict_metadata
            _check_same(path, stored, item, types="optimizer" in items)
            with _one_process():
                dcp.load(item, storage_reader=reader, no_dist=True)
        except dcp.CheckpointException as error:
            raise UserError(f"{path}: cannot be read ({_reason(error)}); take another checkpoint") from error
        except UserError:
            raise
        except Exception as error:  # DCP raises what its index, which a stranger may have written, makes it raise
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise UserError(f"{path}: cannot be read ({reason}); take another checkpoint") from error


def open_item(folder: Path, item: str) -> dict[str, Stored]:
    """Describe the tensors of one item, `params` or `optimizer`, without reading them.

    Raises:
        UserError: the item is missing or damaged.
    """
    path = folder / item
    try:
        metadata = dcp.HuggingFaceStorageReader(str(path)).read_metadata()
    except Exception as error:  # DCP raises what its index, which a stranger may have written, makes it raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path}: cannot be read ({reason}); take another checkpoint") from error
    files = {index: each.relative_path for index, each in (metadata.storage_data or {}).items()}
    return {
        name: Stored(tuple(each.size), partial(_read, path, name, each, files))
        for name, each in metadata.state_dict_metadata.items()
        if isinstance(each, TensorStorageMetadata)
    }


def _read(path: Path, name: str, stored: TensorStorageMetadata, files: dict[MetadataIndex, str]) -> Tensor:
    """Read a tensor from the chunks that one or several processes have written.

    `dcp.load` would do so too, with twice the tensor in memory.
    """
    tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
    filled = 0
    try:
        for chunk in stored.chunks:
            file = files[MetadataIndex(name, chunk.offsets)]
            target = tensor[tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))]
            rows = len(target) if target.ndim else 1
            step = max(1, BLOCK_BYTES * rows // max(1, target.nbytes))
            for begin in range(0, rows, step):
                block = slice(begin, begin + step) if target.ndim else ...
                with safe_open(file, framework="pt") as opened:
                    target[block] = opened.get_slice(name)[block]
            filled += target.numel()
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: {name} cannot be read ({error}); take another checkpoint") from error
    if filled != tensor.numel():
        raise UserError(f"{path}: found {filled:,} values of {name}, expected {tensor.numel():,}; a file is missing")
    return tensor


def _check_same(path: Path, stored: dict[str, Any], wanted: dict[str, Tensor], types: bool) -> None:
    """Raise unless a file holds exactly the wanted tensors: DCP itself would convert or skip some."""

    def described(dtype: torch.dtype, shape: torch.Size) -> str:
        return f"{dtype} {list(shape)}" if types else f"{list(shape)}"

    found = {name: described(t.properties.dtype, t.size) for name, t in stored.items()}
    for name, t in stored.items():
        if sum(math.prod(chunk.sizes) for chunk in t.chunks) != t.size.numel():
            raise UserError(f"{path}: found a part of {name}, expected all of it; a file is missing")
    expected = {name: described(t.dtype, t.shape) for name, t in wanted.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(f"{path}: found {name} as {found.get(name)}, expected {expected.get(name)}")


def _check_opens(path: Path, expected: dict[str, Tensor]) -> None:
    """Raise OSError unless DCP can open what it has written and finds every tensor: its own report is not enough."""
    try:
        stored = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        _check_same(path, stored, expected, types=True)
    except (UserError, OSError, SafetensorError) as error:
        raise OSError(f"{path}: was written and cannot be opened ({error})") from error


@contextmanager
def _one_process() -> Iterator[None]:
    """Silence DCP's warning that there is no process group: here there is none on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _reason(error: dcp.CheckpointException) -> str:
    first, _ = next(iter(error.failures.values()))
    return f"{type(first).__name__}: {first}"
