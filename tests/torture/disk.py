"""Disks that are full, fill up, are freed again, or are read-only, under training, preparation and conversion.

A disk is a tmpfs of a few megabytes where this process may mount one, of which a random part is taken; else a limit on
the size of files, which breaks writes in the same places. Whatever happens, no message is a traceback, every checkpoint
is whole, and the run, resumed with space, ends as the unbroken one.
"""

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmcore import config as configs
from lmcore.errors import UserError
from lmcore.run.checkpoints import checkpoint_folders, read_checkpoint
from lmcore.run.trackers import read_metrics
from parity.convert.states import read_state
from tests.torture.outcome import Outcome

__all__ = ["faults"]

Watch = Callable[[str, int], None]
ROOT = Path(__file__).parents[2]
STEPS = 12
OPTIONS = {
    "model.dim": 96,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.max_seq_len": 16,
    "tokenizer.kind": "bytes",
    "data.stories": 20,
    "train.steps": STEPS,
    "train.batch_size": 2,
    "log.every": 1,
    "eval.windows": 2,
    "checkpoint.every": 3,
    "checkpoint.keep": 2,
    "sample.max_tokens": 1,
    "sample.every": 3,
    "train.device": "cpu",
    "train.cpu_devices": 1,
}
SIZE = 8 << 20
"""Bytes of a disk: the run's four checkpoints, those kept and the one being written, need somewhat less."""
NO_SPACE = re.compile("No space left|File too large|Read-only|ENOSPC|full|RESOURCE_EXHAUSTED|Permission denied")


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a program, with what jax compiled in `folder`."""
    found = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    found["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    return found | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@dataclass
class Bench:
    """A folder with what the faults need: the text, the unbroken runs, and what became of them."""

    folder: Path
    known: dict[str, tuple[dict[int, str], list]] = field(default_factory=dict)
    """Twin -> digest of the state at each saved step, and the rows of metrics, of the unbroken run."""

    def run(self, words: list[str], watch: Watch | None = None) -> Ended:
        """Run a program; `watch` is called with each line of its standard output, and its process id."""
        how = {"env": environment(self.folder), "cwd": self.folder, "text": True, "stdout": subprocess.PIPE}
        with (self.folder / "stderr").open("w+") as err:
            with subprocess.Popen([sys.executable, "-m", *words], stderr=err, **how) as process:
                lines = []
                for line in process.stdout or ():
                    lines.append(line)
                    if watch is not None:
                        watch(line, process.pid)
            err.seek(0)
            return Ended(process.returncode, "".join(lines), err.read())

    def train(self, twin: str, run: Path, *words: str, watch: Watch | None = None) -> Ended:
        """Train in a run folder."""
        return self.run([f"{twin}.train", *self.words(run), *words], watch)

    def words(self, run: Path) -> list[str]:
        """Return the command line that trains in a run folder."""
        options = OPTIONS | {"data.dir": self.folder / "data", "run_dir": run, "train.resume": "auto"}
        return [f"--{name}={value}" for name, value in options.items()]

    def unbroken(self, twin: str) -> tuple[dict[int, str], list]:
        """Return the digests and rows of the unbroken run, which is made once."""
        if twin not in self.known:
            run = self.folder / f"unbroken-{twin}"
            ended = self.train(twin, run, "--checkpoint.keep=99")
            assert ended.code == 0, ended.err
            self.known[twin] = digests(run), rows(run)
        return self.known[twin]


def digests(run: Path) -> dict[int, str]:
    """Return the digest of the parameters and optimizer state of every checkpoint, each compared with its checksums."""
    config = configs.load(run / "config.yaml")
    found = {}
    for folder in checkpoint_folders(run):
        checkpoint = read_checkpoint(folder)
        checkpoint.verify()
        state = read_state(checkpoint, config)
        assert state.moments is not None
        arrays = [*state.params.values(), *(a for kind in state.moments.arrays.values() for a in kind.values())]
        found[checkpoint.step] = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
    return found


def rows(run: Path) -> list:
    """Return the run's rows of metrics without their times."""
    return [row | {"tokens_per_second": 0} for row in read_metrics(run / "metrics.jsonl")]


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk.

    Raises:
        OSError: this process may not.
    """
    folder.mkdir()
    size = ["-t", "tmpfs", "-o", f"size={SIZE}", "torture", str(folder)]
    if os.name != "posix" or subprocess.run(["mount", *size], capture_output=True).returncode:
        folder.rmdir()
        raise OSError("cannot mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path, leave: int) -> None:
    """Fill a disk but for `leave` bytes."""
    taken = max(0, shutil.disk_usage(folder).free - leave)
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        file.write(bytes(taken))


def free(folder: Path) -> None:
    """Free what `fill` took."""
    (folder / "filler").unlink(missing_ok=True)


def complaint(ended: Ended) -> str:
    """Return what is wrong with a program's messages and exit code; an empty string if nothing is."""
    errors = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
    if "Traceback" in ended.out + ended.err:
        return f"traceback: {ended.err[-300:]}"
    if ended.code == 0:
        return f"exit code 0, and on standard error: {errors[:2]}" if errors else ""
    if len(errors) != 1 or not errors[0].startswith("error: "):
        return f"exit code {ended.code} with {len(errors)} lines: {errors[:3]}"
    if ended.code not in (1, 2) or not NO_SPACE.search(errors[0]):
        return f"exit code {ended.code}: {errors[0]}"
    return ""


def leftovers(folder: Path) -> list[str]:
    """Return incomplete files that take space."""
    return [str(path) for path in folder.rglob("*") if path.suffix in (".tmp", ".part") or ".making-" in path.name]


def judge(bench: Bench, twin: str, run: Path, ended: Ended, fault: str) -> Outcome:
    """Judge a run by its messages and checkpoints, and by what it becomes when it is resumed with space."""
    states, metrics = bench.unbroken(twin)
    wrong = complaint(ended)
    try:
        found = digests(run) if (run / "config.yaml").exists() else {}
        wrong = wrong or "".join(f"checkpoint of step {s} differs; " for s, d in found.items() if states.get(s) != d)
        if left := leftovers(run):
            wrong = wrong or f"left {left}"
        again = ended if ended.code == 0 else bench.train(twin, run)
        if again.code:
            wrong = wrong or f"resumed: {again.err[-300:]}"
        elif digests(run)[STEPS] != states[STEPS] or rows(run) != metrics:
            wrong = wrong or "resumed with space, it ends with other figures than the unbroken run"
    except (UserError, AssertionError, KeyError) as error:
        wrong = wrong or f"{type(error).__name__}: {error}"
    verdict = "lost" if wrong else "refused" if ended.code else "survived"
    return Outcome(fault, verdict, wrong)


def train_on_a_full_disk(bench: Bench, twin: str, rng: np.random.Generator, small: Path, words: list[str]) -> Outcome:
    """Train where a random part of the disk is taken; half of those that train on find it freed at a random step."""
    leave, at = int(rng.integers(0, SIZE)), int(rng.integers(1, STEPS))
    freed = "continue" in words[0] and rng.random() < 0.5
    fill(small, leave)
    fault = f"{twin}.train {' '.join(words)}, {leave:,} bytes free{f', all from step {at} on' * freed}"

    def watch(line: str, process: int) -> None:
        if freed and line.startswith(f"step {at:>2}/"):
            free(small)

    ended = bench.train(twin, small / "run", *words, watch=watch)
    free(small)
    return judge(bench, twin, small / "run", ended, fault)


def train_with_the_log_on_it(bench: Bench, twin: str, rng: np.random.Generator, small: Path) -> Outcome:
    """Train with standard output and error on the full disk, too: nothing can be said, and the run is whole."""
    leave = int(rng.integers(0, SIZE // 2))
    fill(small, leave)
    log = small / "log.txt"
    words = [sys.executable, "-m", f"{twin}.train", *bench.words(small / "run"), "--checkpoint.on_error=continue"]
    with log.open("w") as file:
        ended = subprocess.run(words, env=environment(bench.folder), cwd=bench.folder, stdout=file, stderr=file)
    free(small)
    code = 1 if ended.returncode == 120 else ended.returncode  # 120: Python could not flush standard output
    cut = Ended(code, log.read_text(), "error: No space left" if code else "")
    return judge(bench, twin, small / "run", cut, f"{twin}.train with its log on the disk, {leave:,} bytes free")


def train_with_a_limit(bench: Bench, twin: str, rng: np.random.Generator, folder: Path) -> Outcome:
    """Train where no file may be larger than a random size, from a random step on."""
    limit, at = int(rng.integers(0, 1 << 18)), int(rng.integers(1, STEPS))
    on_error = str(rng.choice(["stop", "continue"]))

    def watch(line: str, process: int) -> None:
        if line.startswith(f"step {at:>2}/"):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, limit))

    ended = bench.train(twin, folder / "run", f"--checkpoint.on_error={on_error}", watch=watch)
    fault = f"{twin}.train, on_error {on_error}, files limited to {limit:,} bytes from step {at} on"
    return judge(bench, twin, folder / "run", ended, fault)


def resume_read_only(bench: Bench, twin: str, small: Path) -> Outcome:
    """Resume a run on a disk that has become read-only: refused, and the run is as it was."""
    bench.unbroken(twin)
    run = shutil.copytree(bench.folder / f"unbroken-{twin}", small / "run")
    for step in (9, 12):
        shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    evaluated = bench.run([f"{twin}.evaluate", str(small / "run"), "--device=cpu"])
    ended = bench.train(twin, small / "run")
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    fault = f"{twin}.train on a read-only disk"
    if evaluated.code or not ended.code:
        return Outcome(fault, "lost", f"evaluated: {evaluated.err[-200:]}; trained: {ended.code}")
    return judge(bench, twin, small / "run", ended, fault)


def write_elsewhere(bench: Bench, words: list[str], out: Path, fault: str, undo: Callable[[], None]) -> Outcome:
    """Run a program that cannot write its output: refused, with nothing that could be taken for whole; later it can."""
    ended = bench.run(words)
    wrong = complaint(ended) or ("" if ended.code else "it reported success")
    if left := [str(path) for path in out.glob("**/*") if path.is_file() and path.name not in ("filler", ".lock")]:
        wrong = wrong or f"left {left[:3]}"
    undo()
    again = bench.run(words)
    wrong = wrong or (f"with space: {again.err[-300:]}" if again.code else "")
    return Outcome(fault, "lost" if wrong else "refused", wrong)


def prepare(bench: Bench, rng: np.random.Generator, small: Path, read_only: bool) -> Outcome:
    """Prepare text on a full or read-only disk."""
    words = ["lmcore.prepare", f"--data.dir={small / 'data'}", "--data.stories=4000", "--tokenizer.kind=bytes"]
    return _elsewhere(bench, rng, small, words, small / "data", read_only)


def convert(bench: Bench, twin: str, to: str, rng: np.random.Generator, small: Path, read_only: bool) -> Outcome:
    """Convert a run to a full or read-only disk."""
    bench.unbroken(twin)
    source, out = bench.folder / f"unbroken-{twin}", small / "out"
    return _elsewhere(bench, rng, small, ["parity.convert", str(source), f"--to={to}", f"--out={out}"], out, read_only)


def _elsewhere(
    bench: Bench, rng: np.random.Generator, small: Path, words: list[str], out: Path, read_only: bool
) -> Outcome:
    leave = int(rng.integers(0, 300_000))
    if read_only:
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    else:
        fill(small, leave)

    def undo() -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        free(small)

    where = "a read-only disk" if read_only else f"a disk with {leave:,} bytes free"
    return write_elsewhere(bench, words, out, f"{words[0]} {words[2]} on {where}", undo)


def faults(count: int, folder: Path) -> Iterator[Outcome]:
    """Inject `count` faults; the first few are the quickest.

    Args:
        count: number of faults.
        folder: an empty folder.
    """
    bench, rng = Bench(folder), np.random.default_rng(count)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for number in range(count):
        twin = ("torchlm", "jaxlm")[number // len(KINDS) % 2]
        place = folder / f"fault-{number}"
        kind = KINDS[number % len(KINDS)]
        try:
            with disk(place):
                yield kind(bench, twin, rng, place)
        except OSError as error:
            if "mount" not in str(error):
                raise
            print(f"note: {error}; files are limited instead", file=sys.stderr)
            place.mkdir()
            yield train_with_a_limit(bench, twin, rng, place)


Kind = Callable[[Bench, str, np.random.Generator, Path], Outcome]
KINDS: tuple[Kind, ...] = (
    lambda bench, twin, rng, small: prepare(bench, rng, small, read_only=False),
    lambda bench, twin, rng, small: train_on_a_full_disk(bench, twin, rng, small, ["--checkpoint.on_error=continue"]),
    lambda bench, twin, rng, small: train_on_a_full_disk(bench, twin, rng, small, ["--checkpoint.on_error=stop"]),
    lambda bench, twin, rng, small: convert(bench, twin, "hf", rng, small, read_only=False),
    lambda bench, twin, rng, small: convert(bench, twin, "jax", rng, small, read_only=False),
    lambda bench, twin, rng, small: convert(bench, twin, "torch", rng, small, read_only=False),
    lambda bench, twin, rng, small: train_with_a_limit(bench, twin, rng, small),
    lambda bench, twin, rng, small: resume_read_only(bench, twin, small),
    lambda bench, twin, rng, small: train_on_a_full_disk(
        bench, twin, rng, small, ["--checkpoint.on_error=continue", "--log.tensorboard=true"]
    ),
    lambda bench, twin, rng, small: train_with_the_log_on_it(bench, twin, rng, small),
    lambda bench, twin, rng, small: prepare(bench, rng, small, read_only=True),
    lambda bench, twin, rng, small: convert(bench, twin, "torch", rng, small, read_only=True),
)
