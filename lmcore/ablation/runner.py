"""`python -m jaxlm.ablate FILE`, and its twin: one base config and named changes to it, each trained on the same seeds.

FILE is YAML with three fields:

    base:     the fields of a config, in groups as in any other YAML here, or the path of such a file beside this one
    seeds:    [0, 1], the values of train.seed; every entry runs once with each, on the same batches
    changes:  a name for each change -> the fields that it sets, such as `no warmup: {optim.warmup_steps: 0}`

Every run is the package's own `train` in a process of its own, so that one which fails or diverges harms no other.
What is finished is known from the run folders alone: the same command again skips it and continues the rest.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmcore import config as configs
from lmcore.ablation.plan import Plan, Trial, check_trials, outcome, read_plan, trials
from lmcore.ablation.report import write_report
from lmcore.config import cli
from lmcore.config.shipped import config_path
from lmcore.errors import UserError
from lmcore.files import check_folder
from lmcore.hardware import usable_cores

__all__ = ["Runner", "main"]


def main(argv: Sequence[str] | None, package: str) -> int:
    """Train all that the command line names and write the report.

    Returns:
        Exit code: 0, 1 where a run failed, or 128 + the signal that interrupted.

    Raises:
        UserError: the file, an entry or the text is wrong; nothing has been trained then.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = cli.command_parser(
        f"python -m {package}.ablate",
        "Train a base config and named changes to it on the same seeds and batches; write one table and one plot. The "
        "same command again continues where it was stopped. Fields given here change the base.",
        "FILE [--out FOLDER] [--jobs N] [--FIELD VALUE ...]",
    )
    parser.add_argument("file", help="YAML file with base, seeds and changes; the shipped `ablations` shows how.")
    parser.add_argument("--out", type=str | None, help="Folder of runs and report; null takes runs/FILE-PACKAGE.")
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, each with its share of the cores.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    args = cli.parse_arguments(parser, words)
    if args.jobs < 1:
        raise UserError(f"--jobs: found {args.jobs}, expected at least 1")
    plan = read_plan(config_path(args.file, "FILE"))
    out = Path(args.out or f"runs/{Path(args.file).stem}-{package}")
    trials(plan, out)  # the file's own mistakes are told as such, before the command line changes its fields
    for place, fields in plan.base.items():
        if place in configs.GROUPS:
            parser.set_defaults({f"{place}.{field}": value for field, value in fields.items()})
    values = cli.parse_arguments(parser, words).as_dict()
    plan = replace(plan, base={name: values[name] for name in configs.GROUPS})
    return _run(plan, out, package, args.jobs, f"python -m {package}.ablate {shlex.join(words)}")


def _run(plan: Plan, out: Path, package: str, jobs: int, command: str) -> int:
    from lmcore.run.folder import lock_run, unlock_run

    check_folder("--out", out)
    found = trials(plan, out)
    check_trials(found)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    lock = lock_run(out)
    try:
        runner = Runner(found, package, jobs)
        runner.run()
        outcomes = [outcome(trial) for trial in found]
        print(write_report(out, plan, outcomes, runner.failures, command))
    finally:
        unlock_run(lock)
    left = sum(o.state == "unfinished" for o in outcomes)
    if runner.received is not None and left:
        print(f"stopped with {len(found) - left} of {len(found)} runs done; go on with: {command}")
        return 128 + runner.received
    for trial, reason in runner.failures.items():
        print(f"error: {trial}: {reason}; see {_beside(trial, '.log')}", file=sys.stderr)
    return 1 if left else 0


class Runner:
    """Trains what is left to train, some runs at a time."""

    def __init__(self, found: Sequence[Trial], package: str, jobs: int):
        self.found, self.package, self.jobs = found, package, jobs
        self.failures: dict[Trial, str] = {}
        """Runs that ended neither finished nor diverged -> why."""
        self.received: int | None = None
        """Signal that asked to stop."""

    def run(self) -> None:
        """Start, watch and end all processes.

        Raises:
            KeyboardInterrupt: asked to stop a second time; the processes are killed then.
        """
        from lmcore.run.trainer import StopRequest

        waiting = [trial for trial in self.found if outcome(trial).state == "unfinished"]
        self.done = len(self.found) - len(waiting)
        print(f"{len(self.found)} runs, {self.done} of them done, {self.jobs} at a time; logs in {self._logs()}")
        running: dict[Trial, tuple[subprocess.Popen, float]] = {}
        with StopRequest() as stop:
            try:
                while running or (waiting and stop.received is None):
                    while waiting and len(running) < self.jobs and stop.received is None:
                        trial = waiting.pop(0)
                        running[trial] = self._start(trial), time.monotonic()
                    if stop.received is not None and self.received is None:
                        self.received = stop.received
                        for process, _ in running.values():
                            process.terminate()
                    for trial, (process, begin) in list(running.items()):
                        if process.poll() is not None:
                            del running[trial]
                            self._ended(trial, process.returncode, time.monotonic() - begin)
                    time.sleep(0.05)
            finally:
                for process, _ in running.values():
                    process.kill()
                    process.wait()

    def _logs(self) -> str:
        return str(self.found[0].folder.parent / "*.log")

    def _start(self, trial: Trial) -> subprocess.Popen:
        """Train in a process group of its own: Ctrl-C at the terminal reaches only this process, which passes it on."""
        environment, config = dict(os.environ), trial.config
        if self.jobs > 1:
            share = max(1, usable_cores() // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(share))
            environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else the first takes most of a GPU
            config = replace(config, train=replace(config.train, cpu_devices=config.train.cpu_devices or share))
        path = _beside(trial, ".yaml")
        configs.save(config, path)
        command = [sys.executable, "-m", f"{self.package}.train", "--config", str(path)]
        with _beside(trial, ".log").open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )

    def _ended(self, trial: Trial, code: int, seconds: float) -> None:
        found = outcome(trial)
        if found.state == "finished":
            said = f"validation loss {found.rows[-1]['valid_loss']:.4f}"
        elif found.state == "diverged":
            said = f"diverged by step {found.rows[-1]['step']:,}"
        elif self.received is not None:
            said = f"stopped after step {found.rows[-1]['step']:,}" if found.rows else "stopped"
        else:
            said = self.failures[trial] = _last_words(_beside(trial, ".log"), code)
        self.done += found.state != "unfinished"
        print(f"[{self.done}/{len(self.found)}] {trial}: {said}, {seconds:.0f} s", flush=True)


def _last_words(log: Path, code: int) -> str:
    """Why a process ended, from its log: the line of its error, else the last."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return (told or [f"{ended} after {line.strip()!r}" for line in lines] or [ended])[-1]


def _beside(trial: Trial, suffix: str) -> Path:
    return trial.folder.with_name(trial.folder.name + suffix)
