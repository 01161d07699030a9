"""Write checkpoints atomically and in the background, keep the latest and the best, and delete the others.

A checkpoint is written under a name that ends in `.tmp`, opened as a test, and renamed when all of it is on disk. A
killed process or a full disk thus leaves earlier checkpoints untouched, and no incomplete one that could be taken for
complete.
"""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lmcore import files
from lmcore.errors import note
from lmcore.run.checkpoints import (
    DESCRIPTION,
    NAME,
    Base,
    Checkpoint,
    best_checkpoint,
    checkpoint_folders,
    list_checkpoints,
)
from lmcore.run.processes import ALONE, Elsewhere, Processes
from lmcore.run.storage import LastNotSaved, NotWritten, OnError, reason_of

__all__ = ["Checkpoints"]

DISCARDS, ABSENT, PAUSE = 50, 5, 0.1
"""Times that a failed checkpoint is deleted at most, times in a row that it must be absent, and seconds between."""


class Checkpoints:
    """Saves checkpoints in the background, keeps the latest few and the best, and deletes the others.

    Of several processes, each writes its part of the state, the first all else, and where one fails, all do.
    """

    def __init__(
        self,
        run_dir: Path,
        framework: str,
        keep: int,
        on_error: OnError = "stop",
        processes: Processes = ALONE,
        base: Base | None = None,
    ):
        """Create the folder of checkpoints, and delete incomplete ones that a killed process left there.

        Args:
            run_dir: run folder.
            framework: name of the framework that writes the state.
            keep: number of latest checkpoints to keep, in addition to the best.
            on_error: whether a checkpoint that cannot be written raises NotWritten, or is a note.
            processes: those that each hold a part of the state, and call the same methods.
            base: where the weights are that the state adapts; None where it has all of them.
        """
        self.folder = run_dir / "checkpoints"
        self.framework, self.base = framework, base
        self.keep, self.on_error = keep, on_error
        self.processes, self.leads = processes, processes.rank == 0
        if self.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self.folder.glob("step_*.tmp"):
                if NAME.fullmatch(unfinished.stem):
                    shutil.rmtree(unfinished)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: tuple[int, Future[None]] | None = None
        self._failure: NotWritten | None = None
        """That the last checkpoint could not be written; None if it is on disk or being written."""

    def save(
        self, step: int, valid_loss: float | None, write: Callable[[Path], Callable[[], None]], skipped: int = 0
    ) -> None:
        """Save a checkpoint: copy the state now, write it in the background.

        Args:
            step: number of updates done.
            valid_loss: validation loss in nats per token; None if not evaluated.
            write: called with the folder of the state. It copies the state, and returns a function that finishes
                writing and opens the files as a test; that function runs in the background.
            skipped: number of updates among the steps that were skipped.

        Raises:
            NotWritten: this or the previous checkpoint could not be written, and the run is to stop.
        """
        self.wait()
        self._failure = None
        final = self.folder / f"step_{step:08d}"
        unfinished = final.with_suffix(".tmp")
        facts = {"framework": self.framework, "step": step, "valid_loss": valid_loss, "skipped": skipped}
        error: Exception | None = None
        begun = False
        if self.leads and not final.exists():  # else the run resumed here and was interrupted before its next step
            try:
                facts["run"] = _run_sums(self.folder.parent)
                facts |= {} if self.base is None else {"base": asdict(self.base)}
                unfinished.mkdir()
                begun = True
            except OSError as caught:
                error = caught
        if not self._all_agree(step, unfinished, error):
            return
        if not self.processes.largest(begun):
            return
        try:
            finish = write(unfinished / "state")
        except (OSError, ValueError) as caught:  # Orbax reports a full disk as ValueError
            error = caught
        if self._all_agree(step, unfinished, error):
            commit = partial(self._commit, unfinished, finish, facts) if self.leads else finish
            self._pending = step, self._thread.submit(commit)

    def _all_agree(self, step: int, unfinished: Path, error: Exception | None) -> bool:
        """Return whether no process has an error; if one has, give the checkpoint up in all."""
        if not self.processes.largest(error is not None):
            return True
        if self.leads:
            _discard(unfinished)
        self._fail(step, error)
        return False

    def poll(self) -> None:
        """Report a failure of the last checkpoint, if it is known by now; else return at once.

        Raises:
            NotWritten: it could not be written, and the run is to stop.
        """
        if self._pending is not None and not self.processes.largest(not self._pending[1].done()):
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            NotWritten: it could not be written, and the run is to stop.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            step, future = pending
            error = future.exception()
            if error is not None and not isinstance(error, (OSError, ValueError)):
                raise error
            if self.processes.largest(error is not None):
                self._fail(step, error)

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk, at the end of the run.

        Raises:
            NotWritten: it could not be written.
        """
        self.wait()
        if self._failure is not None and self.leads:
            message = f"{self._failure}; the run ends without it: free some space and resume"
            raise LastNotSaved(message, self._failure.reason)
        if self._failure is not None:
            raise Elsewhere(self._failure.exit_code)

    def close(self) -> None:
        """Wait for the pending write, ignoring its errors, and stop the background thread."""
        self._thread.shutdown()

    def _commit(self, unfinished: Path, finish: Callable[[], None], facts: dict[str, Any]) -> None:
        try:
            finish()
            description = files.seal(facts | {"files": files.checksums(unfinished)})
            (unfinished / DESCRIPTION).write_text(json.dumps(description) + "\n", encoding="utf-8")
            files.flush_folder(unfinished)
            unfinished.rename(unfinished.with_suffix(""))
        except BaseException:
            _discard(unfinished)  # its space is needed, and it is no checkpoint
            raise
        files.sync(self.folder)
        self.retain()

    def retain(self) -> list[Checkpoint]:
        """Delete all checkpoints but the latest few and the best; return those that are kept.

        Each save does so; after a kill between the two, the end of the run does.
        """
        saved = list_checkpoints(self.folder.parent)
        keep = {best_checkpoint(saved).folder, *(c.folder for c in saved[-self.keep :])}
        for checkpoint in saved:
            if checkpoint.folder not in keep:
                doomed = checkpoint.folder.with_suffix(".tmp")
                try:
                    checkpoint.folder.rename(doomed)  # so that a kill during deletion leaves no incomplete checkpoint
                    shutil.rmtree(doomed)
                except OSError as error:  # the new checkpoint is on disk, which matters more
                    note(f"checkpoint: {checkpoint.folder} could not be deleted ({reason_of(error)})")
        return [checkpoint for checkpoint in saved if checkpoint.folder in keep]

    def _fail(self, step: int, error: Exception | None) -> None:
        """Raise that a checkpoint could not be written, or print a note; without an error, another process failed."""
        earlier = checkpoint_folders(self.folder.parent)
        last = f"the last one saved is {earlier[-1]}" if earlier else "none was saved before"
        reason = "another process failed" if error is None else reason_of(error)
        self._failure = NotWritten(f"checkpoint: that of step {step} could not be written ({reason}); {last}", reason)
        if self.on_error == "stop" and error is None and not self.leads:
            raise Elsewhere(self._failure.exit_code)
        if self.on_error == "stop":
            raise NotWritten(f"{self._failure}; free some space and resume", reason) from error
        if error is not None or self.leads:
            note(f"{self._failure}; training goes on, and the next one is tried again")


def _discard(unfinished: Path) -> None:
    """Delete a checkpoint that failed, and again what other threads of its writer still put there afterwards."""
    absent = 0
    for _ in range(DISCARDS):
        shutil.rmtree(unfinished, ignore_errors=True)
        absent = 0 if unfinished.exists() else absent + 1
        if absent == ABSENT:
            return
        time.sleep(PAUSE)


def _run_sums(run_dir: Path) -> dict[str, Any]:
    """Return checksums of the run's files that don't change during the run, or to which it only appends."""
    sums: dict[str, Any] = {}
    tokenizer, metrics = run_dir / "tokenizer.json", run_dir / "metrics.jsonl"
    if tokenizer.exists():
        sums["tokenizer"] = files.file_digest(tokenizer)
    if metrics.exists():
        sums["metrics_bytes"] = metrics.stat().st_size
        sums["metrics"] = files.file_digest(metrics, sums["metrics_bytes"])
    return sums
