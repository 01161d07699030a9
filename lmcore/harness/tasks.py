"""lm-eval's tasks by name, and those in a folder of the user's; what is missing is one line."""

import difflib
from collections.abc import Sequence
from typing import Any

from lmcore.errors import UserError

__all__ = ["open_tasks"]


def open_tasks(names: Sequence[str], folder: str | None) -> Any:
    """Return a `TaskManager` that has all names; lm-eval's own tasks, which take seconds to index, only where needed.

    Each task is loaded once, to find out what is missing before a model is loaded.

    Args:
        names: of tasks, groups or tags, or patterns of them.
        folder: with further tasks.

    Raises:
        UserError: a name is unknown, or a task's file or data cannot be read.
    """
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=folder, include_defaults=False) if folder is not None else None
    if tasks is None or _unknown(names, tasks):
        tasks = TaskManager(include_path=folder)
    if unknown := _unknown(names, tasks):
        near = difflib.get_close_matches(unknown, tasks.all_tasks, n=1)
        hint = f"did you mean {near[0]}?" if near else "lm-eval ls tasks lists its own"
        raise UserError(f"--tasks: found {unknown!r}, which no task is called; {hint}")
    try:
        tasks.load(list(names))
    except Exception as error:  # what a task's data raises depends on where it comes from
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        hint = "correct its file, or provide its data"
        raise UserError(f"--tasks: a task cannot be loaded ({reason}); {hint}") from error
    return tasks


def _unknown(names: Sequence[str], tasks: Any) -> str | None:
    """Return the first name that no task has."""
    return next((name for name in names if not tasks.match_tasks([name])), None)
