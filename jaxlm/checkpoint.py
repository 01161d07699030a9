"""Arrays of a checkpoint, by Orbax: parameters and optimizer state as two items of one folder."""

import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lmcore.errors import UserError

__all__ = ["restore_state", "save_state"]

WILDCARDS = frozenset("*?[\\")


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


def save_state(folder: Path, params: Any, optimizer: Any) -> Callable[[], None]:
    """Copy the arrays off the devices now, to be written in the background.

    Returns:
        A function that waits until everything is on disk and can be opened, and raises what went wrong.
    """
    _silence_repeated_errors()
    items = {"params": params, "optimizer": optimizer}
    expected = {name: _described(tree) for name, tree in items.items()}
    with ExitStack() as stack:
        path = stack.enter_context(_without_wildcards(folder))
        writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        writer.save(path, args=ocp.args.Composite(**args))
        resources = stack.pop_all()

    def finish() -> None:
        with resources:
            writer.close()
            _check_opens(path, expected)

    return finish


def restore_state(folder: Path, **abstract: Any) -> dict[str, Any]:
    """Read the named items, `params` and perhaps `optimizer`, as arrays of these shapes, dtypes and shardings.

    Raises:
        UserError: a file is missing or damaged, or an array has another shape.
    """
    _silence_repeated_errors()
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    try:
        with _without_wildcards(folder) as path, ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(path, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax has no class of its own for what cannot be read
        reason = f"{type(error).__name__}: {str(error.__cause__ or error)[:200]}"
        raise UserError(f"{folder}: cannot be read ({reason}); take another checkpoint") from error
    return {name: restored[name] for name in abstract}


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


def _described(tree: Any) -> list[str]:
    """Shape and type of every array, in an order that doesn't depend on how a tree is nested."""
    return sorted(f"{leaf.dtype} {list(leaf.shape)}" for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def _check_opens(path: Path, expected: dict[str, list[str]]) -> None:
    """Raise OSError unless Orbax can open what it has written and finds every array: its own report is not enough."""
    handlers = {name: ocp.StandardCheckpointHandler() for name in expected}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as reader:
            items = reader.metadata(path).item_metadata
            found = {name: _described(items[name].tree) for name in expected}
    except Exception as error:  # Orbax has no class of its own for what cannot be read
        raise OSError(f"{path}: was written and cannot be opened ({type(error).__name__}: {error})") from error
    if found != expected:
        raise OSError(f"{path}: was written with other arrays than there are: {found}, expected {expected}")
