"""Tensors of a checkpoint, by DCP: parameters and optimizer state as two folders of safetensors.

`torch.distributed.checkpoint` keeps its own index as a pickle unless it stores safetensors, as here: nothing is
unpickled, so that a checkpoint from a stranger cannot run code.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor

from lmcore.errors import UserError

__all__ = ["restore_state", "save_state"]


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


def _check_same(path: Path, stored: dict[str, Any], wanted: dict[str, Tensor], types: bool) -> None:
    """Raise unless a file holds exactly the wanted tensors: DCP itself would convert or skip some."""

    def described(dtype: torch.dtype, shape: torch.Size) -> str:
        return f"{dtype} {list(shape)}" if types else f"{list(shape)}"

    found = {name: described(t.properties.dtype, t.size) for name, t in stored.items()}
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
