"""The run folder: config, tokenizer, metrics, and checkpoints that are whole or not there at all.

    RUN/config.yaml  tokenizer.json  metrics.jsonl  samples/  loss.png
    RUN/meta.json                                   what text it is trained on
    RUN/checkpoints/step_00000300/checkpoint.json   what it is: framework, step, validation loss
    RUN/checkpoints/step_00000300/state/            the framework's own files

A checkpoint is written under a name that ends in `.tmp` and renamed when all of it is on disk, so a kill leaves the
earlier ones untouched and nothing half written that is later believed.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from lmcore import config as configs
from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "best_checkpoint",
    "find_checkpoint",
    "list_checkpoints",
    "load_run",
    "lock_run",
    "open_run",
    "unlock_run",
]

CHANGEABLE = (
    *("run_dir", "train.steps", "train.resume", "train.remat", "train.cpu_devices", "data.dir"),
    *("train.device", "train.compile", "train.deterministic", "model.scan_layers"),
    "tokenizer.stop_tokens",
    *("optim.", "eval.", "checkpoint.", "log.", "sample."),
)
"""Fields, or beginnings of fields, that may differ when a run goes on; the others would make it another run."""
UNCHANGEABLE = ("optim.name",)
"""Fields that may not, whatever they begin with: one optimizer cannot read what another remembers."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk."""

    folder: Path
    framework: str
    step: int
    valid_loss: float | None
    """None where the run was interrupted before it could be evaluated."""

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


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """All whole checkpoints of a run, by step.

    Raises:
        UserError: a checkpoint's description cannot be read.
    """
    folders = sorted((run_dir / "checkpoints").glob("step_*"))
    return [_read_checkpoint(folder) for folder in folders if folder.suffix != ".tmp"]


def _read_checkpoint(folder: Path) -> Checkpoint:
    path = folder / "checkpoint.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Checkpoint(folder, str(found["framework"]), int(found["step"]), found["valid_loss"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: cannot be read ({reason}); delete the folder {folder} to go on without it") from error


def best_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The one with the lowest validation loss, the later of equals; one without, or with NaN, is worse than any."""

    def loss(checkpoint: Checkpoint) -> float:
        found = checkpoint.valid_loss
        return math.inf if found is None or math.isnan(found) else found

    return min(checkpoints, key=lambda checkpoint: (loss(checkpoint), -checkpoint.step))


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that a user's RUN names: a run folder's best, or one checkpoint.

    Raises:
        UserError: there is none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder, expected a run or one of its checkpoints")
    if (path / "checkpoint.json").exists():
        return _read_checkpoint(path.resolve())
    checkpoints = list_checkpoints(path.resolve())
    if not checkpoints:
        raise UserError(f"{path}: found no checkpoint, expected a run folder with checkpoints/step_*; train one first")
    return best_checkpoint(checkpoints)


def load_run(checkpoint: Checkpoint) -> tuple[Config, Tokenizer]:
    """Config and tokenizer of a checkpoint's run.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    run_dir = checkpoint.run_dir
    config = configs.load(run_dir / "config.yaml")
    named = config.tokenizer
    tokenizer = Tokenizer.load(run_dir / "tokenizer.json", named.eot_token, named.stop_tokens)
    if 0 < config.model.vocab_size < tokenizer.vocab_size:
        expected = f"at most the model's {config.model.vocab_size}"
        raise UserError(f"{run_dir / 'tokenizer.json'}: found {tokenizer.vocab_size} tokens, expected {expected}")
    return config, tokenizer


def open_run(config: Config, framework: str) -> Checkpoint | None:
    """Check the run folder before anything is written, and return the checkpoint to go on from.

    Raises:
        UserError: the folder holds a run that is not to be resumed, of the other framework, or of another config.
    """
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    if not (run_dir / "config.yaml").exists():
        return None
    if config.train.resume == "never":
        raise UserError(f"run_dir: {run_dir} holds a run; continue it with --train.resume auto, or name another folder")
    changed = configs.differences(configs.load(run_dir / "config.yaml"), config)
    checkpoints = list_checkpoints(run_dir)
    imported = bool(checkpoints) and checkpoints[-1].step == 0  # a model that has seen no text here: any may follow
    free = (*CHANGEABLE, "data.", "train.") if imported else CHANGEABLE
    refused = {n: c for n, c in changed.items() if n in UNCHANGEABLE or not n.startswith(free)}
    if refused:
        listed = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in refused.items())
        raise UserError(f"run_dir: {run_dir} was made with another config: {listed}; restore them or start a new run")
    if checkpoints:
        checkpoints[-1].check_framework(framework)
    return checkpoints[-1] if checkpoints else None


def lock_run(run_dir: Path) -> int:
    """Keep other processes out of a run folder for as long as this one lives.

    Raises:
        UserError: another process is training there.
    """
    handle = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UserError(f"run_dir: {run_dir} is in use by another process; wait for it or name another") from None
    return handle


def unlock_run(handle: int) -> None:
    """Let others in again."""
    os.close(handle)


def _sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoints:
    """Saves checkpoints in the background, keeps the latest few and the best, and drops the rest."""

    def __init__(self, run_dir: Path, framework: str, keep: int):
        self.folder = run_dir / "checkpoints"
        self.framework = framework
        self.keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob("*.tmp"):
            shutil.rmtree(unfinished)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None

    def save(self, step: int, valid_loss: float | None, write: Callable[[Path], Callable[[], None]]) -> None:
        """Save what `write(folder)` copies now and its returned function finishes in the background.

        Raises:
            UserError: this or the previous checkpoint could not be written.
        """
        self.wait()
        final = self.folder / f"step_{step:08d}"
        if final.exists():  # resumed here, and asked to stop before another step
            return
        checkpoint = Checkpoint(final.with_suffix(".tmp"), self.framework, step, valid_loss)
        try:
            checkpoint.folder.mkdir()
            finish = write(checkpoint.state)
        except (OSError, ValueError) as error:  # Orbax reports a full disk as ValueError
            raise _not_written(error) from error
        self._pending = self._thread.submit(self._commit, checkpoint, finish, final)

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
                raise _not_written(error) from error

    def close(self) -> None:
        """Wait for what is being written, whatever comes of it, and stop the background thread."""
        self._thread.shutdown()

    def _commit(self, checkpoint: Checkpoint, finish: Callable[[], None], final: Path) -> None:
        finish()
        description = checkpoint.folder / "checkpoint.json"
        facts = {name: value for name, value in asdict(checkpoint).items() if name != "folder"}
        description.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        _sync(description)
        checkpoint.folder.rename(final)
        _sync(self.folder)
        self._retain()

    def _retain(self) -> None:
        kept = list_checkpoints(self.folder.parent)
        keep = {best_checkpoint(kept).folder, *(c.folder for c in kept[-self.keep :])}
        for checkpoint in kept:
            if checkpoint.folder not in keep:
                doomed = checkpoint.folder.with_suffix(".tmp")
                checkpoint.folder.rename(doomed)  # so that a kill here leaves no half of it
                shutil.rmtree(doomed)


def _not_written(error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"checkpoint: could not be written ({reason}); earlier checkpoints are intact; free space, resume")
