"""Orbax writes and reads the arrays of a checkpoint: parameters and optimizer state as two items of one folder."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from lmcore.errors import UserError

__all__ = ["restore_state", "save_state"]


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
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_report_unless_late, hook)
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            restored = reader.restore(folder.absolute(), args=ocp.args.Composite(**items))
    except (OSError, ValueError, KeyError, TypeError) as error:  # Orbax has no error of its own
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{folder}: cannot be read ({reason}); take another checkpoint") from error
    sys.unraisablehook = hook
    return {name: restored[name] for name in abstract}


def _report_unless_late(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Pass on all but this: reads that are under way when another fails find Orbax's event loop closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)
