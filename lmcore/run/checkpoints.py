"""The checkpoints of a run: find the best or latest one, and verify it against its checksums when it is read.

    RUN/checkpoints/step_00000300/checkpoint.json   description: framework, step, validation loss, checksums
    RUN/checkpoints/step_00000300/state/            files of the framework

Before a checkpoint is read, it is compared with its checksums. Only folders with names of this form are ever listed,
renamed or deleted. `lmcore.run.saving` writes them.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmcore import files
from lmcore.errors import UserError, note, shown
from lmcore.files import Damaged
from lmcore.parsing import MAX_JSON_BYTES, parse_json, read_text

__all__ = [
    "DESCRIPTION",
    "NAME",
    "OWN",
    "Base",
    "Checkpoint",
    "best_checkpoint",
    "checkpoint_folders",
    "find_checkpoint",
    "list_checkpoints",
    "newest_checkpoint",
    "read_checkpoint",
    "set_aside_newer",
]

NAME = re.compile(r"step_(\d{8,})")
"""Matches the name of a checkpoint's folder, which ends in `.tmp` while it is written or deleted."""
DESCRIPTION = "checkpoint.json"
OWN = (
    *("checkpoints", "config.yaml", "tokenizer.json", "meta.json", "metrics.jsonl", "run.json", "loss.png", ".lock"),
    *("tokenizer_config.json", "samples", "huggingface", "tensorboard", "wandb_id.txt"),
)
"""Names in a run folder that are read or written here; none of them may be a link that leads outside."""


@dataclass(frozen=True)
class Base:
    """Where the weights are that the adapters of a checkpoint adapt."""

    path: str
    """Folder of the base's checkpoint."""
    relative: str
    """The same relative to the run's folder."""
    weights: str
    """SHA-256 of the weights' checksums."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk."""

    folder: Path
    framework: str
    step: int
    valid_loss: float | None
    """None if the run was interrupted before it was evaluated."""
    skipped: int = 0
    """Number of updates among its steps that were skipped."""
    sums: dict[str, str] | None = field(default=None, compare=False)
    """File in this folder -> its SHA-256; None if written by an older version."""
    run_sums: dict[str, Any] = field(default_factory=dict, compare=False)
    """SHA-256 of the run's `tokenizer.json`, and of the first `metrics_bytes` of its `metrics.jsonl`."""
    base: Base | None = field(default=None, compare=False)
    """None for a checkpoint that has all weights."""

    @property
    def run_dir(self) -> Path:
        """Folder of the run that the checkpoint belongs to."""
        return self.folder.parent.parent

    @property
    def state(self) -> Path:
        """Folder of the framework's files."""
        return self.folder / "state"

    def check_framework(self, framework: str) -> None:
        """Raise UserError unless the checkpoint was written by this framework."""
        if self.framework != framework:
            raise UserError(
                f"{self.run_dir} is a {self.framework} run, expected {framework}; "
                "convert it first with python -m parity.convert"
            )

    def verify(self) -> bool:
        """Compare all files with their checksums.

        Returns:
            False for a checkpoint of an older version, which has no checksums.

        Raises:
            Damaged: a file is missing or has changed.
        """
        files.check_files(self.folder, self.sums or {})
        return self.sums is not None

    def verify_metrics(self) -> bool:
        """Compare the run's metrics up to this step with their checksum at the time of the checkpoint.

        Returns:
            False if there is no checksum or no file.

        Raises:
            Damaged: they differ; the model is not affected.
        """
        path, length = self.run_dir / "metrics.jsonl", self.run_sums.get("metrics_bytes")
        if length is None or not path.exists():
            return False
        if files.file_digest(path, length) != self.run_sums["metrics"]:
            raise Damaged(
                f"{path}: was damaged or edited before step {self.step}; only its table and curve are affected"
            )
        return True


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run, by step; skip those whose description cannot be read, with a note."""
    results = [_read(folder) for folder in checkpoint_folders(run_dir)]
    for result in results:
        if isinstance(result, Damaged):
            note(f"{result}; skipped")
    return [result for result in results if isinstance(result, Checkpoint)]


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, intact or damaged, by step; other names are ignored."""
    names = [path for path in (run_dir / "checkpoints").glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(names, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the description of a checkpoint.

    Raises:
        Damaged: it cannot be read, or does not match its checksum.
    """
    path = folder / DESCRIPTION
    try:
        description = parse_json(read_text(path, MAX_JSON_BYTES))
        files.check_seal(path, description, mark="files")
        facts = str(description["framework"]), int(description["step"]), description["valid_loss"]
        skipped = int(description.get("skipped", 0))  # missing in older versions
        sums, run_sums = description.get("files"), description.get("run", {})
        if not (_is_sums(sums or {}) and _is_sums(run_sums) and isinstance(facts[2], int | float | None)):
            raise TypeError(f"found {shown(facts[2])}, {shown(sums)} and {shown(run_sums)}")
        base = Base(**description["base"]) if description.get("base") else None
        if base is not None and not _is_sums(vars(base)):
            raise TypeError(f"found {shown(description['base'])}")
        return Checkpoint(folder, *facts, skipped, sums, run_sums, base)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Damaged(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _is_sums(value: Any) -> bool:
    """Return whether a value maps names to checksums, and `metrics_bytes`, where it is, to a number."""
    if not isinstance(value, dict):
        return False
    length = value.get("metrics_bytes", 0)
    rest = [each for name, each in value.items() if name != "metrics_bytes"]
    return type(length) is int and length >= 0 and all(isinstance(each, str) for each in rest)


def _read(folder: Path) -> Checkpoint | Damaged:
    try:
        return read_checkpoint(folder)
    except Damaged as error:
        return error


def best_checkpoint(checkpoints: Iterable[Checkpoint]) -> Checkpoint:
    """Return the checkpoint with the lowest validation loss, the later one of equals; None and NaN rank last."""
    return min(checkpoints, key=_rank)


def _rank(checkpoint: Checkpoint) -> tuple[float, int]:
    loss = checkpoint.valid_loss
    return math.inf if loss is None or math.isnan(loss) else loss, -checkpoint.step


def find_checkpoint(path: Path, which: Literal["best", "latest"] = "best", verify: bool = True) -> Checkpoint:
    """Return the checkpoint that a path names: itself, or the best or latest one of a run folder.

    Args:
        path: run folder or checkpoint.
        which: which checkpoint of a run folder. Damaged ones are skipped, with a note.
        verify: whether to compare it with its checksums.

    Raises:
        UserError: there is no checkpoint.
        Damaged: the named checkpoint, or every one of the run, is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder, expected a run or one of its checkpoints")
    if (path / DESCRIPTION).exists():
        checkpoint = read_checkpoint(path.resolve())
        files.check_links(checkpoint.run_dir, OWN)
        try:
            if verify:
                _verify(checkpoint)
        except Damaged as error:
            raise Damaged(f"{error}; use another checkpoint, or read it unverified with --no_verify") from error
        return checkpoint
    run_dir = path.resolve()
    files.check_links(run_dir, OWN)
    if not checkpoint_folders(run_dir):
        raise UserError(f"{path}: found no checkpoint, expected a run folder with checkpoints/step_*; train one first")
    results = [_read(folder) for folder in checkpoint_folders(run_dir)]
    readable = [result for result in results if isinstance(result, Checkpoint)]
    damaged = [result for result in results if isinstance(result, Damaged)]
    for checkpoint in sorted(readable, key=_rank) if which == "best" else reversed(readable):
        try:
            if verify:
                _verify(checkpoint)
        except Damaged as error:
            damaged.append(error)
        else:
            for damage in damaged:
                note(f"{damage}; skipped")
            return checkpoint
    raise _all_damaged(run_dir, damaged[-1])


def _verify(checkpoint: Checkpoint) -> None:
    if not checkpoint.verify():
        note(f"{checkpoint.folder} was written by an older version, without checksums; reading it unverified")


def _all_damaged(run_dir: Path, one: Damaged) -> Damaged:
    return Damaged(
        f"{one}; every checkpoint of {run_dir} is damaged (see python -m lmcore.verify); restore one, "
        "start a new run, or read them unverified with --no_verify"
    )


def newest_checkpoint(run_dir: Path, verify: bool = True, before: int | None = None) -> Checkpoint | None:
    """Return the latest checkpoint that is not damaged; None if the run has no checkpoint.

    Args:
        run_dir: run folder.
        verify: whether to compare checkpoints with their checksums.
        before: consider only checkpoints before this step; None considers all.

    Raises:
        Damaged: every checkpoint is damaged.
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
        checkpoint: the checkpoint to resume from.
        reason: what is wrong with the later ones; if empty, their files are verified to find out.
    """
    for folder in checkpoint_folders(checkpoint.run_dir):
        if _step(folder) > checkpoint.step:
            what = reason or _damage(folder)
            aside = folder.with_suffix(".damaged")
            while aside.exists():  # from an earlier resume at the same step
                aside = aside.with_name(aside.name + "-again")
            folder.rename(aside)
            note(f"{what}; renamed to {aside.name}, resuming from step {checkpoint.step}")


def _damage(folder: Path) -> str:
    try:
        read_checkpoint(folder).verify()
    except Damaged as error:
        return str(error)
    return f"{folder}: was damaged"
