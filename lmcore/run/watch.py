"""Watch the numbers of a run: updates that were skipped, and spikes of the training loss."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from lmcore.run.trackers import Row

__all__ = ["MAX_SKIPPED", "Watch"]

MAX_SKIPPED = 20
"""Number of updates skipped in a row after which a run stops: its weights are the cause, not one batch."""
MAX_PENDING = 100
"""Number of steps whose flags may stay on the device; then they are read."""
WINDOW, FIRST = 50, 10
"""Number of earlier reports that a loss is compared with, and the fewest that it takes."""
SPIKE = 6.0
"""Robust standard deviations above the median from which a loss is a spike."""
DEVIATION = 1.4826
"""Ratio of the standard deviation of a normal distribution to its median absolute deviation."""
MIN_SPREAD = 0.02
"""Minimum standard deviation, relative to the median: a loss that hardly moves has no spikes."""


class Watch:
    """Counts the updates that a run skipped, and notices spikes of its loss."""

    def __init__(self, rows: Sequence[Row] = (), skipped: int = 0):
        """Continue a resumed run.

        Args:
            rows: metrics of the run so far, in order.
            skipped: number of updates skipped so far.
        """
        self.skipped = skipped
        self.in_a_row = 0
        """Number of updates skipped since the last one that was not."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        """Of the last reports; only finite ones."""
        for row in rows:
            self._remember(row.get("loss", math.nan))
        self._pending: list[tuple[int, Any]] = []
        self._skipped_now: list[int] = []

    def observe(self, step: int, metrics: dict[str, Any]) -> None:
        """Take note of the metrics of one step, without waiting for the device.

        Args:
            step: number of updates done.
            metrics: from the engine's train step; `skipped` is a flag on the device, if updates may be skipped.
        """
        if "skipped" in metrics:
            self._pending.append((step, metrics["skipped"]))
        if len(self._pending) >= MAX_PENDING:
            self.read()

    def report(self, row: Row, counts: bool) -> list[str]:
        """Add `skipped_steps`, and at a spike `loss_spike`, to a row of metrics.

        Args:
            row: the row, with its loss; changed in place.
            counts: whether updates may be skipped.

        Returns:
            Messages about what has happened since the last report.
        """
        self.read()
        messages = []
        if counts:
            row["skipped_steps"] = self.skipped
        if self._skipped_now:
            steps = ", ".join(map(str, self._skipped_now[:5])) + ", …" * (len(self._skipped_now) > 5)
            messages.append(
                f"loss or gradient not finite: skipped the update of step {steps}; {self.skipped:,} skipped so far"
            )
            self._skipped_now = []
        deviations = self._deviations(row["loss"])
        if deviations > SPIKE:
            row["loss_spike"] = deviations
            median = statistics.median(self._losses)
            messages.append(f"step {row['step']:,}: loss {row['loss']:.3f} is a spike; the median was {median:.3f}")
        self._remember(row["loss"])
        return messages

    def _remember(self, loss: float) -> None:
        if math.isfinite(loss):
            self._losses.append(loss)

    def read(self) -> None:
        """Read the flags of the steps so far; waits for the device."""
        for step, flag in self._pending:
            if bool(flag):
                self.skipped += 1
                self.in_a_row += 1
                self._skipped_now.append(step)
            else:
                self.in_a_row = 0
        self._pending = []

    def _deviations(self, loss: float) -> float:
        """Return how many robust standard deviations a loss is above the median of the reports before it.

        Source: the median absolute deviation, Iglewicz & Hoaglin 1993, who call a value an outlier from 3.5 on.
        """
        if len(self._losses) < FIRST:
            return 0.0
        median = statistics.median(self._losses)
        deviation = DEVIATION * statistics.median(abs(value - median) for value in self._losses)
        return (loss - median) / max(deviation, MIN_SPREAD * abs(median), 1e-12)
