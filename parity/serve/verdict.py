"""The ladder's verdict on a run: `python -m parity.check` in a process of its own, at low priority."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lmcore.errors import printable

__all__ = ["Check", "State"]

State = Literal["off", "checking", "passed", "failed", "error"]
"""Of a check; `error` means that it has found nothing, since it could not be run."""

NICENESS = 5
"""How far the check gives way to the twins that generate."""


class Check:
    """A check that runs in the background, and its outcome."""

    def __init__(self, arguments: Sequence[str], folder: Path, report: Path | None = None, scope: str = ""):
        """Prepare it; `start` starts it.

        Args:
            arguments: of `python -m parity.check`, but for its files; empty for no check.
            folder: for its files.
            report: file for the page of the report; None puts it in the folder.
            scope: the rungs that are climbed, in words.
        """
        self.scope, self.report = scope, report or folder / "report.html"
        self._arguments, self._json, self._log = list(arguments), folder / "check.json", folder / "check.log"
        self._begin = time.time()
        self._process: subprocess.Popen | None = None
        self._outcome: dict[str, Any] | None = None

    def start(self) -> None:
        """Start the process, if there is to be a check."""
        if not self._arguments:
            return
        self._begin = time.time()
        files = ["--report", str(self.report), "--json", str(self._json)]
        with self._log.open("wb") as log:
            # A group of its own: the check has processes too, and Ctrl-C of the server is not for it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "parity.check", *self._arguments, *files],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        with contextlib.suppress(ProcessLookupError):  # it may have ended already
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)

    def outcome(self) -> dict[str, Any]:
        """Return the state, the verdict in words, the number of comparisons and whether there is a report."""
        if self._outcome is None:
            found = self._look()
            if found["state"] == "checking":
                return found
            self._outcome = found
        return self._outcome

    def _look(self) -> dict[str, Any]:
        seconds = round(time.time() - self._begin, 1)
        found: dict[str, Any] = {"scope": self.scope, "seconds": seconds, "comparisons": 0, "report": False}
        if not self._arguments:
            return found | {"state": "off", "verdict": "The ladder was not climbed: --check none."}
        code = None if self._process is None else self._process.poll()
        if code is None:
            return found | {"state": "checking", "verdict": "Checking…"}
        if code not in (0, 1) or not self._json.exists():
            words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = printable(words[-1].removeprefix("error: ")) if words else f"it ended with code {code}"
            return found | {"state": "error", "verdict": f"The check could not be run: {reason}"}
        found["seconds"] = round(self._json.stat().st_mtime - self._begin, 1)  # nobody may have looked since
        report = json.loads(self._json.read_text(encoding="utf-8"))
        compared = sum(result["verdict"] in ("pass", "FAIL") for result in report["results"])
        state: State = "passed" if report["ok"] else "failed"
        return found | {
            "state": state,
            "verdict": report["verdict"],
            "comparisons": compared,
            "report": self.report.exists(),
        }

    def end(self) -> None:
        """Stop the check with all its processes, if it is still running."""
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
