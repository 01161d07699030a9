"""Checkpoints that are whole or not there at all, and still what was written when they are read.

    RUN/checkpoints/step_00000300/checkpoint.json   what it is: framework, step, validation loss, checksums
    RUN/checkpoints/step_00000300/state/            the framework's own files

A checkpoint is written under a name that ends in `.tmp` and renamed when all of it is on disk and has been opened, so a
kill leaves the earlier ones untouched and nothing half written that is later believed. Whoever reads one compares it
with its checksums first. Only names that are written here are ever listed, renamed or deleted.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmcore import files
from lmcore.errors import UserError, note
from lmcore.files import Damaged
from lmcore.parsing import MAX_JSON_BYTES, parse_json, read_text

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "best_checkpoint",
    "checkpoint_folders",
    "find_checkpoint",
    "list_checkpoints",
    "newest_checkpoint",
    "read_checkpoint",
    "set_aside_newer",
]

NAME = re.compile(r"step_(\d{8,})")
"""A checkpoint's folder; the same with `.tmp` while it is written or deleted."""
DESCRIPTION = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk."""

    folder: Path
    framework: str
    step: int
    valid_loss: float | None
    """None where the run was interrupted before it could be evaluated."""
    sums: dict[str, str] | None = field(default=None, compare=False)
    """File of this folder -> its SHA-256; None in one of an older version."""
    run_sums: dict[str, Any] = field(default_factory=dict, compare=False)
    """SHA-256 of the run's `tokenizer.json`, and of the first `metrics_bytes` of its `metrics.jsonl`."""

    @property
    def run_dir(self) -> Path:
        """The run that it belongs to."""
        return self.folder.parent.parent

    @property
    def state(self) -> Path:
        """Folder of the framework's own files."""
        return self.folder / "state"

    def check_framework(self, framework: str) -> None:
        """Raise UserError unless this framework wrote the checkpoint."""
        if self.framework != framework:
            raise UserError(
                f"{self.run_dir} is a {self.framework} run, expected {framework}; "
                "convert it first with python -m parity.convert"
            )

    def verify(self) -> bool:
        """Compare all files with their checksums.

        Returns:
            False for a checkpoint of an older version, which has none.

        Raises:
            Damaged: one is missing or has changed.
        """
        files.check_files(self.folder, self.sums or {})
        return self.sums is not None

    def verify_metrics(self) -> bool:
        """Compare the run's metrics up to this step with what they were when it was saved.

        Returns:
            False where that is not known.

        Raises:
            Damaged: they differ, for all that the model is the same.
        """
        path, length = self.run_dir / "metrics.jsonl", self.run_sums.get("metrics_bytes")
        if length is None or not path.exists():
            return False
        if _digest(path, length) != self.run_sums["metrics"]:
            raise Damaged(f"{path}: was damaged or edited before step {self.step}; only its table and curve show that")
        return True


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Return the whole checkpoints of a run, by step; one whose description cannot be read is left out, and said so."""
    read = [_read(folder) for folder in checkpoint_folders(run_dir)]
    for error in read:
        if isinstance(error, Damaged):
            note(f"{error}; passed over")
    return [checkpoint for checkpoint in read if isinstance(checkpoint, Checkpoint)]


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, whole or damaged, by step; other names are the user's."""
    names = [path for path in (run_dir / "checkpoints").glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(names, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what a checkpoint says of itself.

    Raises:
        Damaged: it cannot be read, or is not what was written.
    """
    path = folder / DESCRIPTION
    try:
        found = parse_json(read_text(path, MAX_JSON_BYTES))
        files.check_seal(path, found, mark="files")
        facts = str(found["framework"]), int(found["step"]), found["valid_loss"]
        return Checkpoint(folder, *facts, found.get("files"), found.get("run", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _read(folder: Path) -> Checkpoint | Damaged:
    try:
        return read_checkpoint(folder)
    except Damaged as error:
        return error


def best_checkpoint(checkpoints: Iterable[Checkpoint]) -> Checkpoint:
    """The one with the lowest validation loss, the later of equals; one without, or with NaN, is worse than any."""
    return min(checkpoints, key=_rank)


def _rank(checkpoint: Checkpoint) -> tuple[float, int]:
    loss = checkpoint.valid_loss
    return math.inf if loss is None or math.isnan(loss) else loss, -checkpoint.step


def find_checkpoint(path: Path, which: Literal["best", "latest"] = "best", verify: bool = True) -> Checkpoint:
    """Find the checkpoint that a user's RUN names: one of a run folder, or one by itself.

    Args:
        path: run folder or checkpoint.
        which: of a run folder. A damaged one is passed over for the next, and said so.
        verify: whether to compare it with its checksums.

    Raises:
        UserError: there is none.
        Damaged: the one that is named, or every one of a run, is not what was written.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder, expected a run or one of its checkpoints")
    if (path / DESCRIPTION).exists():
        checkpoint = read_checkpoint(path.resolve())
        try:
            if verify:
                _verify(checkpoint)
        except Damaged as error:
            raise Damaged(f"{error}; take another checkpoint, or use it as it is with --no_verify") from error
        return checkpoint
    run_dir = path.resolve()
    if not checkpoint_folders(run_dir):
        raise UserError(f"{path}: found no checkpoint, expected a run folder with checkpoints/step_*; train one first")
    read = [_read(folder) for folder in checkpoint_folders(run_dir)]
    found, passed = [c for c in read if isinstance(c, Checkpoint)], [c for c in read if isinstance(c, Damaged)]
    for checkpoint in sorted(found, key=_rank) if which == "best" else reversed(found):
        try:
            if verify:
                _verify(checkpoint)
        except Damaged as error:
            passed.append(error)
        else:
            for damage in passed:
                note(f"{damage}; passed over")
            return checkpoint
    raise _all_damaged(run_dir, passed[-1])


def _verify(checkpoint: Checkpoint) -> None:
    if not checkpoint.verify():
        note(f"{checkpoint.folder} is of an older version, without checksums: read as it is")


def _all_damaged(run_dir: Path, one: Damaged) -> Damaged:
    return Damaged(
        f"{one}; no checkpoint of {run_dir} is what was written (see python -m lmcore.verify): restore one, "
        "start a new run, or use what can be read with --no_verify"
    )


def newest_checkpoint(run_dir: Path, verify: bool = True, before: int | None = None) -> Checkpoint | None:
    """Return the latest checkpoint, or the latest before a step, that is what was written; None where there is none.

    Raises:
        Damaged: there are some, and every one is damaged.
    """
    folders = [path for path in checkpoint_folders(run_dir) if before is None or _step(path) < before]
    damaged = None
    for folder in reversed(folders):
        try:
            checkpoint = read_checkpoint(folder)
            if verify:
                _verify(checkpoint)
        except Damaged as error:
            damaged = damaged or error
        else:
            return checkpoint
    if damaged is not None:
        raise _all_damaged(run_dir, damaged)
    return None


def set_aside_newer(checkpoint: Checkpoint, reason: str = "") -> None:
    """Rename the checkpoints after this one, which are damaged, so that none of them is taken for the run's latest.

    Args:
        checkpoint: the one to go on from.
        reason: what is wrong with them; empty to find out.
    """
    for folder in checkpoint_folders(checkpoint.run_dir):
        if _step(folder) > checkpoint.step:
            what = reason or _damage(folder)
            aside = folder.with_suffix(".damaged")
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            folder.rename(aside)
            note(f"{what}; set aside as {aside.name}, going on from step {checkpoint.step}")


def _damage(folder: Path) -> str:
    try:
        read_checkpoint(folder).verify()
    except Damaged as error:
        return str(error)
    return f"{folder}: was damaged"


def _digest(path: Path, length: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(length)).hexdigest()


class Checkpoints:
    """Saves checkpoints in the background, keeps the latest few and the best, and drops the rest."""

    def __init__(self, run_dir: Path, framework: str, keep: int):
        self.folder = run_dir / "checkpoints"
        self.framework = framework
        self.keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob("step_*.tmp"):
            if NAME.fullmatch(unfinished.stem):
                shutil.rmtree(unfinished)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def save(self, step: int, valid_loss: float | None, write: Callable[[Path], Callable[[], None]]) -> None:
        """Save what `write(folder)` copies now and its returned function finishes and opens in the background.

        Raises:
            UserError: this or the previous checkpoint could not be written.
        """
        self.wait()
        final = self.folder / f"step_{step:08d}"
        if final.exists():  # resumed here, and asked to stop before another step
            return
        unfinished = final.with_suffix(".tmp")
        run_sums = _run_sums(self.folder.parent)
        try:
            unfinished.mkdir()
            finish = write(unfinished / "state")
        except (OSError, ValueError) as error:  # Orbax reports a full disk as ValueError
            raise self._not_written(error) from error
        facts = {"framework": self.framework, "step": step, "valid_loss": valid_loss, "run": run_sums}
        self._pending = self._thread.submit(self._commit, unfinished, finish, facts)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk.

        Raises:
            UserError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except (OSError, ValueError) as error:
                raise self._not_written(error) from error

    def close(self) -> None:
        """Wait for what is being written, whatever comes of it, and stop the background thread."""
        self._thread.shutdown()

    def _commit(self, unfinished: Path, finish: Callable[[], None], facts: dict[str, Any]) -> None:
        finish()
        description = files.seal(facts | {"files": files.checksums(unfinished)})
        (unfinished / DESCRIPTION).write_text(json.dumps(description) + "\n", encoding="utf-8")
        files.flush_folder(unfinished)
        unfinished.rename(unfinished.with_suffix(""))
        files.sync(self.folder)
        self._retain()

    def _retain(self) -> None:
        kept = list_checkpoints(self.folder.parent)
        keep = {best_checkpoint(kept).folder, *(c.folder for c in kept[-self.keep :])}
        for checkpoint in kept:
            if checkpoint.folder not in keep:
                doomed = checkpoint.folder.with_suffix(".tmp")
                checkpoint.folder.rename(doomed)  # so that a kill here leaves no half of it
                shutil.rmtree(doomed)

    def _not_written(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200]
        earlier = checkpoint_folders(self.folder.parent)
        kept = f"the last one saved is {earlier[-1]}" if earlier else "none was saved before"
        return UserError(f"checkpoint: could not be written ({reason}); {kept}; free space, resume")


def _run_sums(run_dir: Path) -> dict[str, Any]:
    """Checksums of the files beside the checkpoints that don't change, or only grow, while a run lasts."""
    sums: dict[str, Any] = {}
    tokenizer, metrics = run_dir / "tokenizer.json", run_dir / "metrics.jsonl"
    if tokenizer.exists():
        sums["tokenizer"] = files.file_digest(tokenizer)
    if metrics.exists():
        sums["metrics_bytes"] = metrics.stat().st_size
        sums["metrics"] = _digest(metrics, sums["metrics_bytes"])
    return sums
