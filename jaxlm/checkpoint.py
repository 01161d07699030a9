"""Orbax writes and reads the arrays of a checkpoint: parameters and optimizer state as two items of one folder."""

import logging
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lmcore.errors import UserError

__all__ = ["restore_state", "save_state"]


def _report_unless_late(hook: Callable[[Any], object], unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)  # a coroutine has some
    if str(unraisable.exc_value) != "Event loop is closed" and (code is None or "orbax" not in code.co_filename):
        hook(unraisable)


# Orbax raises what goes wrong, which is enough. It also logs each error with a traceback, and what is under way when an
# array fails is heard of later: from asyncio, or where it finds the event loop closed.
logging.getLogger("absl").addFilter(lambda record: not record.exc_info)
logging.getLogger("asyncio").addFilter(lambda record: not re.search("orbax|TensorStore|OCDBT", record.getMessage()))
warnings.filterwarnings("ignore", r"coroutine 'Store\._get_array_metadatas' was never awaited")
sys.unraisablehook = partial(_report_unless_late, sys.unraisablehook)


def save_state(folder: Path, params: Any, optimizer: Any) -> Callable[[], None]:
    """Copy the arrays off the devices now and write them in the background.

    Returns:
        A function that waits until everything is on disk, and raises what went wrong.
    """
    writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    items = {"params": ocp.args.StandardSave(params), "optimizer": ocp.args.StandardSave(optimizer)}
    writer.save(folder.absolute(), args=ocp.args.Composite(**items))
    return writer.close


def restore_state(folder: Path, **abstract: Any) -> dict[str, Any]:
    """Read the named items, `params` and perhaps `optimizer`, onto the shapes, types and shardings given for them.

    Raises:
        UserError: a file is missing or damaged, or an array has another shape.
    """
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(folder.absolute(), args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax has no class of its own for what cannot be read
        reason = f"{type(error).__name__}: {str(error.__cause__ or error)[:200]}"
        raise UserError(f"{folder}: cannot be read ({reason}); take another checkpoint") from error
    return {name: restored[name] for name in abstract}
