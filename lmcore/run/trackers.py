"""Where the numbers of a run go: `metrics.jsonl` always, TensorBoard and Weights & Biases on request.

A row is a flat dict of Python numbers: step, tokens, loss, lr, grad_norm, tokens_per_second and, where the model was
evaluated, valid_loss, valid_perplexity and valid_bits_per_byte. On resume from step s a tracker forgets what was
logged after s, so that a killed and continued run reads as one unbroken run.
"""

import dataclasses
import html
import importlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.files import replace_file
from lmcore.parsing import parse_json

__all__ = [
    "JsonlTracker",
    "Row",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
    "check_libraries",
    "open_trackers",
    "read_metrics",
]

Row: TypeAlias = dict[str, int | float]
SAMPLE = re.compile(r"sample-(\d{6,})\.txt")
"""Text that the model wrote, by its step."""


@runtime_checkable
class Tracker(Protocol):
    """Somewhere to report to."""

    def log(self, row: Row) -> None:
        """Report the metrics of `row["step"]`."""

    def text(self, step: int, name: str, text: str) -> None:
        """Report text that the model wrote at `step`."""

    def image(self, step: int, path: Path) -> None:
        """Report a PNG, the loss curve say, under the name of its file."""

    def close(self) -> None:
        """Write out what is still pending; the tracker takes nothing more."""


class JsonlTracker:
    """`metrics.jsonl`, one row to a line, and beside it one `samples/{name}-{step}.txt` for each text.

    JSON has no NaN and no infinity: both are written as null, and `read_metrics` gives NaN back.
    """

    def __init__(self, path: Path, resume_step: int | None):
        """Open `path` for appending; keep its rows up to `resume_step`, or none of them where that is None."""
        self.samples = path.parent / "samples"
        last = -1 if resume_step is None else resume_step
        kept = [row for row in _read(path) if row["step"] <= last] if path.exists() else []
        replace_file(path, "".join(map(_line, kept)))
        for sample in self.samples.glob("*.txt"):
            if (named := SAMPLE.fullmatch(sample.name)) and int(named.group(1)) > last:  # no file of the user's
                sample.unlink()
        self.file = path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        self.file.write(_line(row))
        self.file.flush()

    def text(self, step: int, name: str, text: str) -> None:
        self.samples.mkdir(exist_ok=True)
        replace_file(self.samples / f"{name}-{step:06d}.txt", text)

    def image(self, step: int, path: Path) -> None:
        """Nothing to do: the picture already lies in the run folder."""

    def close(self) -> None:
        self.file.close()


class TensorBoardTracker:
    """TensorBoard event files in a folder, written by tensorboardX (which needs neither TensorFlow nor torch)."""

    def __init__(self, folder: Path, resume_step: int | None):
        """Open a new event file in `folder`.

        Raises:
            UserError: tensorboardX is not installed.
        """
        library = _library("tensorboardX", "log.tensorboard")
        if resume_step is None:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        # tensorboardX names a file by the second it is opened in: the suffix keeps a quick resume from overwriting.
        # TensorBoard itself hides the events from purge_step on that earlier files of the folder hold.
        purge_step = None if resume_step is None else resume_step + 1
        self.writer = library.SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=f".{purge_step or 0}")

    def log(self, row: Row) -> None:
        for name, value in _grouped(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()  # else a kill loses what the next checkpoint takes for granted

    def text(self, step: int, name: str, text: str) -> None:
        """Show the text as it is: an indented block, so that Markdown has nothing to interpret."""
        self.writer.add_text(name, "".join(f"    {line}\n" for line in text.split("\n")), step)

    def image(self, step: int, path: Path) -> None:
        import matplotlib.image

        self.writer.add_image(path.stem, matplotlib.image.imread(path), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandbTracker:
    """A Weights & Biases run, whose id stays in the run folder so that a resumed run continues it.

    W&B takes steps in rising order only: of the steps between the last checkpoint and a kill it keeps the first
    report. With `WANDB_MODE=offline` nothing leaves the machine until `wandb sync`.
    """

    def __init__(self, config: Config, run_dir: Path, resume_step: int | None):
        """Start or continue the run.

        Raises:
            UserError: wandb is not installed, or refuses (no key, say).
        """
        self.wandb = _library("wandb", "log.wandb")
        saved = run_dir / "wandb_id.txt"
        known = resume_step is not None and saved.exists()
        try:
            self.run = self.wandb.init(
                project=config.log.project,
                name=run_dir.name,
                id=saved.read_text(encoding="utf-8").strip() if known else None,
                resume="allow" if known else None,
                dir=str(run_dir),
                config=dataclasses.asdict(config),
                settings=self.wandb.Settings(console="off"),  # its capture of the terminal breaks the progress bar
            )
        except self.wandb.Error as error:
            raise UserError(
                f"log.wandb: Weights & Biases refuses ({error}); run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        replace_file(saved, self.run.id)

    def log(self, row: Row) -> None:
        self.run.log(_grouped(row), step=row["step"])

    def text(self, step: int, name: str, text: str) -> None:
        page = f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>'
        self.run.log({name: self.wandb.Html(page)}, step=step)

    def image(self, step: int, path: Path) -> None:
        self.run.log({path.stem: self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


def check_libraries(config: Config) -> None:
    """Raise UserError where a library that `config.log` asks for is missing."""
    for wanted, name, setting in (
        (config.log.tensorboard, "tensorboardX", "log.tensorboard"),
        (config.log.wandb, "wandb", "log.wandb"),
    ):
        if wanted:
            _library(name, setting)


def open_trackers(config: Config, run_dir: Path, resume_step: int | None) -> list[Tracker]:
    """Open every tracker that `config.log` asks for; `resume_step` is None for a new run.

    Raises:
        UserError: a library is missing or refuses; no metrics have been touched then.
    """
    check_libraries(config)
    wanted: list[Callable[[], Tracker]] = []
    if config.log.wandb:
        wanted.append(lambda: WandbTracker(config, run_dir, resume_step))
    if config.log.tensorboard:
        wanted.append(lambda: TensorBoardTracker(run_dir / "tensorboard", resume_step))
    wanted.append(lambda: JsonlTracker(run_dir / "metrics.jsonl", resume_step))
    # What may fail is opened first; what can't fail is written first.
    return [make() for make in wanted][::-1]


def read_metrics(path: Path) -> list[Row]:
    """Read a `metrics.jsonl`, leaving out a last line that a kill cut short; null is NaN.

    Raises:
        UserError: the file is missing, or a line before the last is not a row.
    """
    try:
        return _read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected the metrics.jsonl of a run") from error


def _read(path: Path) -> list[Row]:
    lines = path.read_bytes().split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line.decode())
        except ValueError:
            if number == len(lines):  # cut short by a kill, or nothing after the last newline
                break
            row = None
        if not _is_row(row):
            raise UserError(f"{path}: line {number} is {line[:60]!r}, expected a row of metrics; delete that line")
        rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    return all(value is None or type(value) in (int, float) for value in row.values())


def _line(row: Row) -> str:
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _grouped(row: Row) -> Row:
    """Row -> its values without the step, named train/... and valid/... as both services draw their panels."""
    return {
        f"valid/{name.removeprefix('valid_')}" if name.startswith("valid_") else f"train/{name}": value
        for name, value in row.items()
        if name != "step"
    }


def _library(name: str, setting: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        hint = 'pip install "twinlm[track]"'
        raise UserError(f"{setting}: found true, but {name} is not installed; run: {hint}") from error
