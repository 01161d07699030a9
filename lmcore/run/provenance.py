"""Where a run comes from: `run.json` has its resolved config and text, and command, versions and machine of each start.

A run that was resumed has several starts; with each, what came before it stays.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmcore.config import Config, flatten
from lmcore.describe import environment, project
from lmcore.errors import UserError
from lmcore.files import replace_file
from lmcore.parsing import read_json

__all__ = ["MAX_STARTS", "command_line", "record"]

MAX_STARTS = 100
"""Number of latest starts that are kept, beside the first."""


def record(folder: Path, step: int, facts: Mapping[str, Any], config: Config, sums: Mapping[str, str]) -> None:
    """Write `run.json`, with one more start.

    Args:
        folder: folder of the run.
        step: number of updates that are done already; 0 forgets earlier starts.
        facts: framework, device and number of parameters.
        config: the resolved config.
        sums: file of the prepared text -> its SHA-256.
    """
    path = folder / "run.json"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = {"step": step, "time": now, "command": command_line(), "twinlm": project(), **environment()}
    earlier = _starts(path) if step > 0 else []
    starts = [*earlier[:1], *earlier[1:][-(MAX_STARTS - 1) :], start] if earlier else [start]
    record = {**facts, "seed": config.train.seed, "text": dict(sums), "config": dict(flatten(config)), "starts": starts}
    replace_file(path, json.dumps(record, indent=1) + "\n")


def command_line() -> str:
    """Return the command that started this process, as it can be pasted into a shell."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None:
        return shlex.join(sys.argv)
    return shlex.join(["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]])


def _starts(path: Path) -> list[Any]:
    """Return the starts that were recorded so far; none where the file is missing or damaged."""
    try:
        starts = read_json(path)["starts"]
    except (UserError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) else []
