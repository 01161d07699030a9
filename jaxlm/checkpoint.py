"""Orbax writes and reads the arrays of a checkpoint: parameters and optimizer state as two items of one folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

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
    """Read the named items, `params` and perhaps `optimizer`, onto the shapes, types and shardings given for them."""
    items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        restored = reader.restore(folder.absolute(), args=ocp.args.Composite(**items))
    return {name: restored[name] for name in abstract}
