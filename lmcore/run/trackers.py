"""Log the metrics of a run: to `metrics.jsonl` always, to TensorBoard and Weights & Biases on request.

A row is a flat dict of Python numbers: step, tokens, loss, lr, grad_norm, tokens_per_second and, at evaluations,
valid_loss, valid_perplexity and valid_bits_per_byte. On resume from step s, a tracker drops what was logged after s, so
that the log of a killed and resumed run reads like that of an uninterrupted one.
"""

import dataclasses
import html
import importlib
import json
import math
import re
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.files import Appender, replace_file
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
"""Matches the file name of a generated sample, which includes its step."""


@runtime_checkable
class Tracker(Protocol):
    """A destination of metrics, text and images. Its methods raise OSError where the disk is full."""

    name: str
    """Name for messages."""

    def log(self, row: Row) -> None:
        """Log the metrics of `row["step"]`."""

    def text(self, step: int, name: str, text: str) -> None:
        """Log generated text.

        Args:
            step: number of updates done.
            name: kind of text, such as "sample".
            text: the text.
        """

    def image(self, step: int, path: Path) -> None:
        """Log a PNG, such as the loss curve, under the name of its file."""

    def close(self) -> None:
        """Flush and close; the tracker cannot be used afterwards."""


class JsonlTracker:
    """Writes `metrics.jsonl`, one row per line, and `samples/{name}-{step}.txt` next to it for each text.

    JSON has no NaN and no infinity: both are written as null, which `read_metrics` returns as NaN.
    """

    name = "metrics.jsonl"

    def __init__(self, path: Path, resume_step: int | None):
        """Open `path` for appending; keep its rows up to `resume_step`, or none of them if that is None."""
        self.samples = path.parent / "samples"
        last = -1 if resume_step is None else resume_step
        rows = [row for row in _read(path) if row["step"] <= last] if path.exists() else []
        replace_file(path, "".join(map(_line, rows)))
        for sample in self.samples.glob("*.txt"):
            # Other names are the user's files.
            if (match := SAMPLE.fullmatch(sample.name)) and int(match.group(1)) > last:
                sample.unlink()
        self.file = Appender(path)

    def log(self, row: Row) -> None:
        self.file.append(_line(row).encode())

    def text(self, step: int, name: str, text: str) -> None:
        self.samples.mkdir(exist_ok=True)
        replace_file(self.samples / f"{name}-{step:06d}.txt", text)

    def image(self, step: int, path: Path) -> None:
        """Do nothing: the image is already in the run folder."""

    def close(self) -> None:
        self.file.close()


class TensorBoardTracker:
    """Writes TensorBoard event files with tensorboardX, which needs neither TensorFlow nor torch.

    The library makes the events and `Appender` writes them: the library's own background thread ends at a full disk,
    and the run would then wait for it forever.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, resume_step: int | None):
        """Open a new event file in `folder`.

        Raises:
            UserError: tensorboardX is not installed.
        """
        _library("tensorboardX", "log.tensorboard")
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        # TensorBoard itself hides the events of earlier files from this step on. The suffix keeps a quick resume, in
        # the same second, from appending to the file of the run before.
        purge_step = 0 if resume_step is None else resume_step + 1
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{purge_step}"
        self.file = Appender(folder / name)
        self._write(purge_step, file_version="brain.Event:2")
        if resume_step is not None:
            self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int, **content: Any) -> None:
        """Append an event, as TFRecord frames it: length, data, and a checksum of each."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(step=step, wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self.file.append(length + next(sums) + data + next(sums))

    def log(self, row: Row) -> None:
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        values = [scalar(name, value).value[0] for name, value in _grouped(row).items()]
        self._write(int(row["step"]), summary=Summary(value=values))

    def text(self, step: int, name: str, text: str) -> None:
        """Log the text literally: as an indented block, in which Markdown is not interpreted."""
        from tensorboardX import summary

        self._write(step, summary=summary.text(name, "".join(f"    {line}\n" for line in text.split("\n"))))

    def image(self, step: int, path: Path) -> None:
        import matplotlib.image
        from tensorboardX import summary

        self._write(step, summary=summary.image(path.stem, matplotlib.image.imread(path), dataformats="HWC"))

    def close(self) -> None:
        self.file.close()


class WandbTracker:
    """Logs to a Weights & Biases run, whose id is saved in the run folder so that a resumed run continues it.

    W&B accepts steps in increasing order only: for steps between the last checkpoint and a kill, it keeps the values
    from before the kill. With `WANDB_MODE=offline` nothing leaves the machine until `wandb sync`.
    """

    name = "Weights & Biases"

    def __init__(self, config: Config, run_dir: Path, resume_step: int | None):
        """Start or continue the W&B run.

        Args:
            config: config of the run, logged with it.
            run_dir: run folder, whose name the W&B run takes.
            resume_step: step from which the run is resumed; None for a new run.

        Raises:
            UserError: wandb is not installed, or fails to start (without an API key, say).
        """
        self.wandb = _library("wandb", "log.wandb")
        saved = run_dir / "wandb_id.txt"
        continued = resume_step is not None and saved.exists()
        try:
            self.run = self.wandb.init(
                project=config.log.project,
                name=run_dir.name,
                id=saved.read_text(encoding="utf-8").strip() if continued else None,
                resume="allow" if continued else None,
                dir=str(run_dir),
                config=dataclasses.asdict(config),
                settings=self.wandb.Settings(console="off"),  # its capture of the terminal breaks the progress bar
            )
        except self.wandb.Error as error:
            raise UserError(
                f"log.wandb: Weights & Biases failed to start ({error}); run `wandb login`, or set WANDB_MODE=offline"
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
    """Raise UserError if a library that `config.log` needs is missing."""
    for enabled, name, setting in (
        (config.log.tensorboard, "tensorboardX", "log.tensorboard"),
        (config.log.wandb, "wandb", "log.wandb"),
    ):
        if enabled:
            _library(name, setting)


def open_trackers(config: Config, run_dir: Path, resume_step: int | None) -> list[Tracker]:
    """Open every tracker that `config.log` selects.

    Args:
        config: its group `log` selects the trackers.
        run_dir: run folder.
        resume_step: step from which the run is resumed; None for a new run.

    Raises:
        UserError: a library is missing or fails to start; no metrics have been changed then.
    """
    check_libraries(config)
    factories: list[Callable[[], Tracker]] = []
    if config.log.wandb:
        factories.append(lambda: WandbTracker(config, run_dir, resume_step))
    if config.log.tensorboard:
        factories.append(lambda: TensorBoardTracker(run_dir / "tensorboard", resume_step))
    factories.append(lambda: JsonlTracker(run_dir / "metrics.jsonl", resume_step))
    # Trackers that may fail are opened first, before metrics.jsonl is changed; in use, metrics.jsonl comes first.
    return [make() for make in factories][::-1]


def read_metrics(path: Path) -> list[Row]:
    """Read a `metrics.jsonl`, except for a last line that a kill cut short; null becomes NaN.

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
            if number == len(lines):  # cut short by a kill, or empty after the last newline
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
    """Return the values without the step, named train/... and valid/..., by which both services group their panels."""
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
