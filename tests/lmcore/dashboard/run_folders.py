"""Writes run folders as training does."""

import json
from pathlib import Path
from typing import Any


def rows(count: int, start: int = 1, **values: Any) -> str:
    """Lines of `metrics.jsonl`, ten steps apart; the loss falls by 0.1 each."""
    lines = []
    for number in range(start, start + count):
        row = {"step": number * 10, "tokens": number * 1000, "loss": 5 - number / 10, "tokens_per_second": 500.0}
        lines.append(json.dumps(row | values))
    return "".join(f"{line}\n" for line in lines)


def write_run(folder: Path, metrics: str = "", config: str = "train:\n  steps: 100\n", **samples: str) -> Path:
    """Make a run; the names of its samples are those of the arguments."""
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(metrics or rows(10), encoding="utf-8")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    for name, text in samples.items():
        (folder / "samples" / f"{name.replace('_', '-')}.txt").write_text(text, encoding="utf-8")
    return folder
