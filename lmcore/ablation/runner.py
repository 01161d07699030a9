"""`python -m jaxlm.ablate FILE`, or torchlm: train a base config and named changes to it, all on the same seeds.

FILE is YAML with three fields:

    base:     the fields of a config, in groups as in any config file, or the path of one, relative to this file
    seeds:    [0, 1], the values of train.seed; every entry is trained once with each, on the same batches
    changes:  a name for each change -> the fields that it sets, such as `no warmup: {optim.warmup_steps: 0}`

Every run is the package's `train` command in a separate process, so that a run which fails or diverges affects no
other. The run folders alone determine which runs are finished: the same command again skips them and resumes the rest.
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
    """Train all runs of the plan that the command line names, and write the report.

    Args:
        argv: command-line arguments; None takes those of the process.
        package: name of the twin.

    Returns:
        Exit code: 0, 1 where a run failed, or 128 + the signal that interrupted.

    Raises:
        UserError: the file, an entry or the text is invalid; nothing has been trained then.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = cli.command_parser(
        f"python -m {package}.ablate",
        "Train a base config and named changes to it on the same seeds and batches; write one table and one plot. The "
        "same command again resumes where it was stopped. Fields set here change the base.",
        "FILE [--out FOLDER] [--jobs N] [--FIELD VALUE ...]",
    )
    parser.add_argument("file", help="YAML file with base, seeds and changes; the shipped `ablations` is an example.")
    parser.add_argument(
        "--out", type=str | None, help="Folder of the runs and the report; null takes runs/FILE-PACKAGE."
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="Number of runs at a time, which share the CPU cores equally."
    )
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    args = cli.parse_arguments(parser, words)
    if args.jobs < 1:
        raise UserError(f"--jobs: found {args.jobs}, expected at least 1")
    plan = read_plan(config_path(args.file, "FILE"))
    out = Path(args.out or f"runs/{Path(args.file).stem}-{package}")
    trials(plan, out)  # reports mistakes of the file as such, before the command line changes its fields
    for place, fields in plan.base.items():
        if place in configs.GROUPS:
            parser.set_defaults({f"{place}.{field}": value for field, value in fields.items()})
    values = cli.parse_arguments(parser, words).as_dict()
    plan = replace(plan, base={name: values[name] for name in configs.GROUPS})
    return _run(plan, out, package, args.jobs, f"python -m {package}.ablate {shlex.join(words)}")


def _run(plan: Plan, out: Path, package: str, jobs: int, command: str) -> int:
    from lmcore.run.folder import lock_run, unlock_run

    check_folder("--out", out)
    runs = trials(plan, out)
    check_trials(runs)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    lock = lock_run(out)
    try:
        runner = Runner(runs, package, jobs)
        runner.run()
        outcomes = [outcome(trial) for trial in runs]
        print(write_report(out, plan, outcomes, runner.failures, command))
    finally:
        unlock_run(lock)
    unfinished = sum(o.state == "unfinished" for o in outcomes)
    if runner.received is not None and unfinished:
        print(f"stopped with {len(runs) - unfinished} of {len(runs)} runs done; resume with: {command}")
        return 128 + runner.received
    for trial, reason in runner.failures.items():
        print(f"error: {trial}: {reason}; see {_beside(trial, '.log')}", file=sys.stderr)
    return 1 if unfinished else 0


class Runner:
    """Trains the unfinished runs, a few at a time."""

    def __init__(self, runs: Sequence[Trial], package: str, jobs: int):
        """Set up the runs.

        Args:
            runs: all runs of the ablation; finished ones are skipped.
            package: name of the twin.
            jobs: number of runs at a time.
        """
        self.trials, self.package, self.jobs = runs, package, jobs
        self.failures: dict[Trial, str] = {}
        """Runs that ended neither finished nor diverged -> the reason."""
        self.received: int | None = None
        """Signal that requested a stop, if any."""

    def run(self) -> None:
        """Start all processes and wait for them.

        Raises:
            KeyboardInterrupt: a second signal requested a stop; the processes are killed then.
        """
        from lmcore.run.signals import StopRequest

        waiting = [trial for trial in self.trials if outcome(trial).state == "unfinished"]
        self.done = len(self.trials) - len(waiting)
        print(f"{len(self.trials)} runs, {self.done} of them done, {self.jobs} at a time; logs in {self._logs()}")
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
        return str(self.trials[0].folder.parent / "*.log")

    def _start(self, trial: Trial) -> subprocess.Popen:
        """Start a run in its own process group, so that Ctrl-C reaches only this process, which forwards it."""
        environment, config = dict(os.environ), trial.config
        if self.jobs > 1:
            cores = max(1, usable_cores() // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(cores))
            environment.setdefault(
                "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
            )  # else the first run takes most of a GPU's memory
            config = replace(config, train=replace(config.train, cpu_devices=config.train.cpu_devices or cores))
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
        result = outcome(trial)
        if result.state == "finished":
            message = f"validation loss {result.rows[-1]['valid_loss']:.4f}"
        elif result.state == "diverged":
            message = f"diverged by step {result.rows[-1]['step']:,}"
        elif self.received is not None:
            message = f"stopped after step {result.rows[-1]['step']:,}" if result.rows else "stopped"
        else:
            message = self.failures[trial] = _failure(_beside(trial, ".log"), code)
        self.done += result.state != "unfinished"
        print(f"[{self.done}/{len(self.trials)}] {trial}: {message}, {seconds:.0f} s", flush=True)


def _failure(log: Path, code: int) -> str:
    """Return why a process ended: the last error in its log, else its exit code and last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    status = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return (errors or [f"{status} after {line.strip()!r}" for line in lines] or [status])[-1]


def _beside(trial: Trial, suffix: str) -> Path:
    return trial.folder.with_name(trial.folder.name + suffix)
