"""Arrays of a checkpoint, by Orbax: parameters and optimizer state as two items of one folder."""

import json
import logging
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial, wraps
from itertools import repeat
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint.type_handlers import ArrayHandler, NumpyHandler, create_type_handler_registry

from lmcore.errors import UserError

__all__ = ["Stored", "Unread", "open_item", "restore_state", "save_state", "save_unread"]

WILDCARDS = frozenset("*?[\\")
CHUNK_BYTES = 1 << 27
"""Larger arrays are compressed in chunks of at most this size: reading one whole would take twice its memory."""


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says of one array, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Unread:
    """An array that is read only when it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of values, which Orbax asks for, as for the next."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize


class _OneAtATime(NumpyHandler):
    """Lets Orbax write each array before it reads the next; its own handler has all of them in memory at once."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def _background_serialize(self, values: Any, infos: Any, args: Any = None) -> None:
        for value, info, arg in zip(values, infos, args, strict=True):
            await super()._background_serialize([value.read()], [info], [arg])


def _report_unless_late(hook: Callable[[Any], object], unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)  # a coroutine has some
    if str(unraisable.exc_value) != "Event loop is closed" and (code is None or "orbax" not in code.co_filename):
        hook(unraisable)


@cache
def _silence_repeated_errors() -> None:
    """Keep Orbax from printing the errors that it raises, from the first save or restore on.

    Orbax also logs each of them with a traceback; and when one array fails, asyncio reports the tasks of the other
    arrays, or a closed event loop, long after the save is over.
    """
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    logging.getLogger("asyncio").addFilter(lambda record: not re.search("orbax|TensorStore|OCDBT", record.getMessage()))
    warnings.filterwarnings("ignore", r"coroutine 'Store\._get_array_metadatas' was never awaited")
    sys.unraisablehook = partial(_report_unless_late, sys.unraisablehook)


@cache
def _stop_leaks() -> None:
    """Keep Orbax from what TensorStore 0.1.86 never frees: keys and values of JSON that it copies into dictionaries.

    Orbax asks for its metrics before and after each save, for a log that nobody reads (30 KB a save), and for the JSON
    of a folder that it has just described in JSON, once for each array (0.3 KB). The first function is private to
    Orbax; a version without it is left as it is.
    """
    with suppress(ImportError):
        from orbax.checkpoint._src.serialization import tensorstore_utils

        if hasattr(tensorstore_utils, "get_tensorstore_raw_bytes"):
            tensorstore_utils.get_tensorstore_raw_bytes = lambda direction=None: 0
    to_json = ts.KvStore.Spec.to_json

    @wraps(to_json)
    def without_leak(spec: ts.KvStore.Spec, include_defaults: bool = False) -> Any:
        plain = {"driver": "file", "path": spec.path}
        if not include_defaults and ts.KvStore.Spec(plain) == spec:
            return plain
        return to_json(spec, include_defaults)

    setattr(ts.KvStore.Spec, "to_json", without_leak)  # noqa: B010


def save_state(folder: Path, params: Any, optimizer: Any, together: bool = False) -> Callable[[], None]:
    """Copy the arrays off the devices now, to be written in the background.

    Args:
        folder: to be made.
        params: name -> array.
        optimizer: tree of arrays.
        together: whether all processes call this, each to write its shards of the arrays.

    Returns:
        A function that waits until everything is on disk and can be opened, and raises what went wrong.
    """
    _silence_repeated_errors()
    _stop_leaks()
    items = {"params": params, "optimizer": optimizer}
    expected = {name: _described(tree) for name, tree in items.items()}
    with ExitStack() as stack:
        path = stack.enter_context(_without_wildcards(folder))
        own = {} if together else {"primary_host": jax.process_index(), "active_processes": {jax.process_index()}}
        options = ocp.options.MultiprocessingOptions(**own)
        composite = ocp.CompositeOptions(multiprocessing_options=options)
        handler = ocp.CompositeCheckpointHandler(composite_options=composite)
        writer = ocp.AsyncCheckpointer(handler, multiprocessing_options=options)
        args = {name: ocp.args.StandardSave(tree, jax.tree.map(_in_chunks, tree)) for name, tree in items.items()}
        writer.save(path, args=ocp.args.Composite(**args))
        resources = stack.pop_all()

    def finish() -> None:
        with resources:
            writer.close()
            if not together or jax.process_index() == 0:
                _check_opens(path, expected)

    return finish


def save_unread(folder: Path, params: dict[str, Unread], optimizer: Any) -> None:
    """Write a checkpoint as `save_state` does, of which a few arrays at a time are in memory.

    Args:
        folder: to be made.
        params: name -> array.
        optimizer: tree of `Unread` and NumPy arrays.
    """
    _silence_repeated_errors()
    _stop_leaks()
    items = {"params": params, "optimizer": optimizer}
    registry = create_type_handler_registry(
        (Unread, _OneAtATime()), (np.ndarray, NumpyHandler()), (jax.Array, ArrayHandler())
    )
    handlers = {name: ocp.PyTreeCheckpointHandler(type_handler_registry=registry) for name in items}
    args = {name: ocp.args.PyTreeSave(tree, jax.tree.map(_in_chunks, tree)) for name, tree in items.items()}
    with _without_wildcards(folder) as path:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as writer:
            writer.save(path, args=ocp.args.Composite(**args))
        _check_opens(path, {name: _described(tree) for name, tree in items.items()})


def restore_state(folder: Path, **abstract: Any) -> dict[str, Any]:
    """Read the named items, `params` and perhaps `optimizer`, as arrays of these shapes, dtypes and shardings.

    Raises:
        UserError: a file is missing or damaged, or an array has another shape.
    """
    _silence_repeated_errors()
    _stop_leaks()
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    try:
        with _without_wildcards(folder) as path, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(path, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax has no class of its own for what cannot be read
        reason = f"{type(error).__name__}: {str(error.__cause__ or error)[:200]}"
        raise UserError(f"{folder}: cannot be read ({reason}); take another checkpoint") from error
    return {name: restored[name] for name in abstract}


def open_item(folder: Path, item: str) -> dict[str, Stored]:
    """Describe the arrays of one item, `params` or `optimizer`, without reading them.

    Raises:
        UserError: the item is missing or damaged.
    """
    path = folder.absolute() / item
    try:
        opened = {name: _open(name, path) for name in _array_names(path)}
    except Exception as error:  # TensorStore has no class of its own for what cannot be read
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path}: cannot be read ({reason}); take another checkpoint") from error
    return {name: Stored(tuple(array.shape), partial(_read, path, name, array)) for name, array in opened.items()}


def _read(path: Path, name: str, array: ts.TensorStore) -> np.ndarray:
    try:
        return array.read().result()
    except Exception as error:  # TensorStore has no class of its own for what cannot be read
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path}: {name} cannot be read ({reason}); take another checkpoint") from error


@contextmanager
def _without_wildcards(folder: Path) -> Iterator[Path]:
    """Yield a path to the folder without wildcards: Orbax looks for its own files with `glob` on the whole path.

    Where it finds none it only logs that, and what it has written cannot be read back.
    """
    path = folder.absolute()
    if not WILDCARDS & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="twinlm-") as other:
        if WILDCARDS & set(other + path.name):
            raise UserError(f"{path}: found one of *?[ or a backslash in it and in TMPDIR; rename one of them")
        link = Path(other, "link")
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / path.name


def _in_chunks(array: Any) -> ocp.SaveArgs:
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)


def _described(tree: Any) -> list[str]:
    """Shape and type of every array, in an order that doesn't depend on how a tree is nested."""
    return sorted(f"{leaf.dtype} {list(leaf.shape)}" for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def _check_opens(path: Path, expected: dict[str, list[str]]) -> None:
    """Raise OSError unless what Orbax has written can be opened and has every array: its own report is not enough."""
    try:
        found = {name: sorted(map(_opened, _array_names(path / name), repeat(path / name))) for name in expected}
    except Exception as error:  # TensorStore has no class of its own for what cannot be read
        raise OSError(f"{path}: was written and cannot be opened ({type(error).__name__}: {error})") from error
    if found != expected:
        raise OSError(f"{path}: was written with other arrays than there are: {found}, expected {expected}")


def _array_names(item: Path) -> list[str]:
    """Return the names of the arrays in an item's store, if Orbax will find the tree that they belong to.

    Orbax's own `metadata` isn't used: it copies the JSON of every array into Python, which TensorStore 0.1.86
    never frees, 6 KB for each array of each checkpoint.
    """
    assert json.loads((item / "_METADATA").read_text(encoding="utf-8"))["tree_metadata"]
    (item / "manifest.ocdbt").stat()  # without it, TensorStore would find an empty store
    keys = ts.KvStore.open(_store(item)).result().list().result()
    return [key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")]


def _opened(name: str, item: Path) -> str:
    array = _open(name, item)
    return f"{array.dtype.name} {list(array.shape)}"


def _open(name: str, item: Path) -> ts.TensorStore:
    return ts.open({"driver": "zarr", "kvstore": _store(item) | {"path": f"{name}/"}}, open=True).result()


def _store(item: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item}/"}}
