"""Terminal output of a run: a progress bar with the main metrics, messages above it, and a final table.

Without a terminal (a log file, CI), the same metrics are printed as plain lines, one per report.
"""

import os
import sys
import time
from io import TextIOBase
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from lmcore.run.trackers import Row

__all__ = ["Progress"]

_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Progress:
    """A context manager that shows the progress of a run: a bar on a terminal, plain lines elsewhere.

    Text is printed literally: neither rich markup nor terminal control codes in generated text take effect, and
    characters that the output cannot encode are replaced.
    """

    def __init__(self, total_steps: int, start_step: int = 0, file: TextIOBase | None = None):
        """Set up the display.

        Args:
            total_steps: steps of the whole run.
            start_step: 0, or the step from which a run is resumed.
            file: stream to write to; None is standard output.
        """
        self.total_steps = total_steps
        self.file = cast(TextIO, file or sys.stdout)
        self.origin = (start_step, time.monotonic())
        self.reports = 0
        self.bar: Bar | None = None
        if self.file.isatty() and os.environ.get("TERM") != "dumb":
            self.bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
                TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True)),
                console=Console(file=self.file, force_terminal=True),
                refresh_per_second=4,
                expand=True,
            )
            step = self._step(start_step)
            self.task = self.bar.add_task(step, total=total_steps, completed=start_step, numbers="starting")

    def __enter__(self) -> "Progress":
        self.origin = (self.origin[0], time.monotonic())
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, row: Row, mfu: float | None = None) -> None:
        """Report a row of metrics, and MFU (the fraction of the device's peak FLOP/s in use) if it is known.

        The remaining time is estimated from the rate of this session. From the second report on, the time before the
        first is excluded, since it is mostly compilation; after the first step alone there is no estimate.
        """
        step, now = int(row["step"]), time.monotonic()
        since, start = self.origin
        numbers = []
        if "loss" in row:
            numbers.append(f"loss {row['loss']:.3f}")
        if "lr" in row and not self.bar:
            numbers.append(f"lr {_scientific(row['lr'])}")
        if "tokens_per_second" in row:
            numbers.append(f"{row['tokens_per_second']:,.0f} tokens/s")
        if mfu is not None:
            numbers.append(f"MFU {mfu:.1%}")
        if step > since + (self.reports == 0):
            numbers.append(f"{_clock((self.total_steps - step) * (now - start) / (step - since))} left")
        valid = f"valid loss {row['valid_loss']:.3f}" if "valid_loss" in row else ""
        if "valid_bits_per_byte" in row:
            valid += f"  {row['valid_bits_per_byte']:.3f} bits/byte"
        if self.bar:
            self.bar.update(self.task, description=self._step(step), completed=step, numbers="  ".join(numbers))
            if valid:
                self.say(f"{self._step(step)}  {valid}")
        else:
            self.say("  ".join([self._step(step), *numbers, *([valid] if valid else [])]))
        self.reports += 1
        if self.reports == 1:
            self.origin = (step, now)

    def say(self, text: str) -> None:
        """Print a message, above the bar where there is one."""
        text = self._safe(text)
        if self.bar:
            self.bar.console.print(Text(text))
        else:
            print(text, file=self.file, flush=True)

    def summary(self, rows: list[tuple[str, str]]) -> None:
        """Print the final table of (name, value)."""
        if not self.bar:
            width = max((len(name) for name, _ in rows), default=0)
            self.say("\n" + "\n".join(f"{name:{width}}  {value}" for name, value in rows))
            return
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(self._safe(name)), Text(self._safe(value)))
        self.bar.console.print()
        self.bar.console.print(table)

    def _step(self, step: int) -> str:
        total = f"{self.total_steps:,}"
        return f"step {step:>{len(total)},}/{total}"

    def _safe(self, text: str) -> str:
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        return text.translate(_CONTROL).encode(encoding, "replace").decode(encoding)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _clock(seconds: float) -> str:
    """Format seconds as 0:07, 2:10 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
