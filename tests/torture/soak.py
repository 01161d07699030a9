"""Long runs of tiny models: memory, open files and threads must stay what they are after a warm-up.

`python -m tests.torture.soak --plot docs/soak.png` draws the memory of both twins over 50,000 steps.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

from lmcore.hardware import cpu_name
from lmcore.report.plots import BLUE, ORANGE, new_plot, save
from tests.torture.outcome import Outcome

__all__ = ["STEPS", "Sample", "faults", "growth", "plot", "soak", "verdict"]

STEPS = 50_000
TWINS = ("jaxlm", "torchlm")
REPORT = re.compile(r"step\s+([\d,]+)/")
SECONDS = 1200
"""Time limit of a run."""

POOL = "ts_pool_worker"
"""Name of the threads of TensorStore's pool, which come and go: between 7 and 9 in 25,000 steps."""
FLAT_MB = 1.0
"""Maximum growth of resident memory over 10,000 steps after the warm-up, in MB."""


@dataclass(frozen=True)
class Sample:
    """What a process holds at a step of its run."""

    step: int
    memory: float
    """Resident memory in MB."""
    files: int
    """Open file descriptors."""
    threads: int
    """Threads but those of POOL."""


def soak(twin: str, steps: int, folder: Path, every: int = 100) -> list[Sample]:
    """Train a tiny model in a child process, and sample it at each report.

    Args:
        twin: jaxlm or torchlm.
        steps: steps of the run.
        folder: folder for the run and its text.
        every: steps between evaluations, samples of text and checkpoints.

    Raises:
        RuntimeError: the run failed.
    """
    fields = {
        "run_dir": folder / twin,
        "model.dim": 16,
        "model.n_layers": 1,
        "model.n_heads": 2,
        "model.max_seq_len": 16,
        "tokenizer.kind": "bytes",
        "data.stories": 200,
        "data.dir": folder / "data",
        "train.steps": steps,
        "train.batch_size": 2,
        "train.device": "cpu",
        "train.cpu_devices": 1,
        "eval.every": every,
        "eval.windows": 4,
        "sample.every": every,
        "sample.max_tokens": 8,
        "checkpoint.every": every,
        "log.every": max(1, every // 2),
    }
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", f"{twin}.train", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    samples, last = [], ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            last = line.strip() or last
            if match := REPORT.match(line):
                samples.append(_sample(child.pid, int(match[1].replace(",", ""))))
        child.wait(SECONDS)
    if child.returncode:
        raise RuntimeError(f"{twin}: exit code {child.returncode}: {last}")
    return samples


def _sample(pid: int, step: int) -> Sample:
    process = Path(f"/proc/{pid}")
    resident = int(re.search(r"^VmRSS:\s+(\d+)", (process / "status").read_text(), re.MULTILINE)[1])
    names = []
    for thread in (process / "task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            names.append((thread / "comm").read_text().strip())
    return Sample(step, resident / 1024, len(os.listdir(process / "fd")), sum(name != POOL for name in names))


def growth(samples: Sequence[Sample]) -> float:
    """Return the growth of memory in MB over 10,000 steps: the median slope between any two samples (Theil and Sen).

    Unlike a least-squares line it ignores that the allocator now and then takes or returns a block.
    """
    slopes = [(b.memory - a.memory) / (b.step - a.step) for a, b in combinations(samples, 2) if b.step > a.step]
    return 10_000 * median(slopes)


def verdict(samples: Sequence[Sample]) -> str:
    """Return what grows, or an empty string for a flat run. The first third of the samples is the warm-up.

    Memory is flat if its `growth` after the warm-up is at most FLAT_MB. Files and threads are flat if the fewest in the
    last third are no more than the fewest in the second: work in the background comes and goes.
    """
    third = len(samples) // 3
    assert third > 1, "too few samples to judge"
    middle, last = samples[third : 2 * third], samples[2 * third :]
    grown = []
    if (rate := growth(samples[third:])) > FLAT_MB:
        grown.append(f"memory by {rate:.1f} MB in 10,000 steps, expected at most {FLAT_MB:.1f}")
    for name in ("files", "threads"):
        before, after = (min(getattr(sample, name) for sample in part) for part in (middle, last))
        if after > before:
            grown.append(f"{name} from {before} to {after}")
    return "; ".join(grown)


def faults(count: int, folder: Path) -> Iterator[Outcome]:
    """Train each twin for 50,000 steps with 500 evaluations, samples and checkpoints, or fewer for a smaller count."""
    for twin in TWINS:
        steps = max(3000, STEPS * count // 2)
        samples = soak(twin, steps, folder)
        grown = verdict(samples)
        yield Outcome(f"{twin}, {steps:,} steps", "lost" if grown else "survived", grown or _described(samples))


def _described(samples: Sequence[Sample]) -> str:
    after = samples[len(samples) // 3 :]
    first, last = after[0], after[-1]
    return (
        f"{growth(after):+.2f} MB in 10,000 steps: {first.memory:.1f} MB at step {first.step:,}, "
        f"{last.memory:.1f} MB at step {last.step:,}; {last.files} files, {last.threads} threads"
    )


def plot(runs: dict[str, list[Sample]], path: Path) -> None:
    """Draw the resident memory of runs over their steps, as a PNG.

    Args:
        runs: twin -> samples.
        path: the PNG.
    """
    figure, axes = new_plot(
        f"Memory of a tiny model in training, {cpu_name()}", "training steps", "resident memory (MB)"
    )
    for (twin, samples), colour in zip(runs.items(), (BLUE, ORANGE)):
        steps, memory = [sample.step for sample in samples], [sample.memory for sample in samples]
        axes.plot(steps, memory, color=colour, linewidth=1.6, label=twin)
    axes.set_ylim(0, 1.15 * max(sample.memory for samples in runs.values() for sample in samples))
    axes.legend(framealpha=0.8, edgecolor="none", loc="lower right")
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train both twins, say whether they stayed flat, and draw their memory."""
    parser = argparse.ArgumentParser("python -m tests.torture.soak", description=__doc__)
    parser.add_argument("--plot", type=Path, required=True, help="PNG to write.")
    parser.add_argument("--steps", type=int, default=STEPS, help="Steps of each run.")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        runs = {twin: soak(twin, args.steps, Path(folder)) for twin in TWINS}
    for twin, samples in runs.items():
        print(f"{twin}: {verdict(samples) or 'flat'}; {_described(samples)}")
    plot(runs, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
