"""`python -m jaxlm.ablate FILE`, and its twin: one base config and named changes to it, each trained on the same seeds.

FILE is YAML with three fields:

    base:     the fields of a config, in groups as in any other YAML here, or the path of such a file beside this one
    seeds:    [0, 1], the values of train.seed; every entry runs once with each, on the same batches
    changes:  a name for each change -> the fields that it sets, such as `no warmup: {optim.warmup_steps: 0}`

Every run is the package's own `train` in a process of its own, so that one which fails or diverges harms no other.
What is finished is known from the run folders alone: the same command again skips it and continues the rest.
"""

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmcore import cli
from lmcore import config as configs
from lmcore.config import Config
from lmcore.errors import UserError, shown
from lmcore.files import check_folder
from lmcore.machine import usable_cores
from lmcore.parsing import read_json, read_yaml
from lmcore.shipped import config_path

__all__ = ["BASE", "Outcome", "Plan", "Trial", "check_trials", "main", "merge", "outcome", "read_plan", "trials"]

BASE = "base"
"""Name of the entry that changes nothing."""
FIXED = {
    "run_dir": "--out names the folder of all runs",
    "train.seed": "seeds names those of every entry",
    "train.resume": "what is there is always continued",
}
"""Fields that no change may set -> why."""
SLUG = 100
"""Characters of an entry's name that name its folder."""
FREE = ("run_dir", "train.resume", "train.cpu_devices", "train.device", "data.dir", "checkpoint.", "log.", "sample.")
"""Fields, or beginnings of fields, in which a run on disk may differ: they leave its numbers alone."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a file asks for."""

    path: Path
    base: dict[str, Any]
    """Fields of the base, in groups."""
    seeds: list[int]
    changes: dict[str, dict[str, Any]]
    """Name of an entry -> the fields that it sets, dotted or in groups."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One run: an entry of the table with one seed."""

    entry: str
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        """The run's folder."""
        assert self.config.run_dir is not None
        return Path(self.config.run_dir)

    def __str__(self) -> str:
        return f"{self.entry}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the folder of a run says about it."""

    trial: Trial
    rows: list[dict[str, int | float]]
    """Its metrics so far."""
    state: str
    """`finished`, `diverged`, or `unfinished`."""
    facts: dict[str, Any]
    """Its run.json: framework, device, parameters; empty before it began."""


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such file, expected the YAML of an ablation")
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {shown(found)}, expected fields, each with its value")
    return found


def read_plan(path: Path) -> Plan:
    """Read the file that describes an ablation.

    Raises:
        UserError: it is missing or damaged; a field is unknown or of the wrong kind; a name is missing or stands twice.
    """
    found = _read_yaml(path)
    for name in found:
        if name not in ("base", "seeds", "changes"):
            raise UserError(f"{path}: {name}: no such field, expected base, seeds and changes")
    base = found.get("base")
    if isinstance(base, str):
        base = _read_yaml(path.parent / base)
    if not isinstance(base, dict):
        expected = "the fields of a config, or the path of its YAML file"
        raise UserError(f"{path}: base: found {shown(base)}, expected {expected}")
    _check_once(f"{path}: base", base)
    seeds = found.get("seeds", [0, 1])
    distinct = isinstance(seeds, list) and len(seeds) == len(set(map(repr, seeds))) > 0
    if not distinct or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{path}: seeds: found {shown(seeds)}, expected a list of different whole numbers from 0")
    changes = found.get("changes")
    if not isinstance(changes, dict) or not changes:
        expected = "a name for each change with the fields it sets"
        raise UserError(f"{path}: changes: found {shown(changes)}, expected {expected}")
    folders = {_slug(BASE): BASE}
    for name, fields in changes.items():
        if not isinstance(fields, dict) or not fields:
            raise UserError(f"{path}: {name}: found {shown(fields)}, expected fields, each with its value")
        _check_once(f"{path}: {name}", fields)
        for field in {name for name, _ in _leaves(fields)} & FIXED.keys():
            raise UserError(f"{path}: {name}: {field} cannot be changed: {FIXED[field]}")
        slug = _slug(str(name))
        if not slug or slug in folders:
            clash = f"beside {folders[slug]!r}" if slug else "without a letter or digit"
            raise UserError(f"{path}: {name}: found this name {clash}, expected one of its own for a folder; rename it")
        folders[slug] = name
    return Plan(
        path=path, base=merge({}, base), seeds=seeds, changes={str(name): fields for name, fields in changes.items()}
    )


def _check_once(where: str, fields: dict[str, Any]) -> None:
    """Refuse a field that is set both by its dotted name and in its group."""
    names = [name for name, _ in _leaves(fields)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: {twice[0]} stands twice, by its dotted name and in its group; keep one")


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The base's fields, in groups, with those of a change put in; a change may write `model.dim: 64` or a group."""
    merged = dict(base)
    for name, value in change.items():
        group, dot, rest = str(name).partition(".")
        inner = {rest: value} if dot else value
        before = merged.get(group)
        merged[group] = merge(before if isinstance(before, dict) else {}, inner) if isinstance(inner, dict) else inner
    return merged


def trials(plan: Plan, out: Path) -> list[Trial]:
    """All runs, the base's first, then seed by seed, so that an early stop leaves whole comparisons.

    Raises:
        UserError: the fields of an entry are unknown or don't fit each other; the message names the entry.
    """
    made = []
    for seed in plan.seeds:
        for entry, change in {BASE: {}, **plan.changes}.items():
            run_dir = str(out / "runs" / f"{_slug(entry)}-seed-{seed}")
            fixed = {"run_dir": run_dir, "train.seed": seed, "train.resume": "auto"}
            try:
                config = configs.from_dict(Config, merge(merge(plan.base, change), fixed))
            except UserError as error:
                raise UserError(f"{plan.path}: {entry}: {error}") from error
            made.append(Trial(entry=entry, seed=seed, config=config))
    return made


def check_trials(found: Sequence[Trial]) -> None:
    """Prepare the text of all runs, and compare what is on disk with what is asked for.

    Raises:
        UserError: a text cannot be had or does not fit, or a run was made with another config or text.
    """
    from lmcore.prepare import Prepared, prepare
    from lmcore.trainer import with_vocabulary

    prepared: dict[str, Prepared] = {}
    for trial in found:
        source = json.dumps([asdict(trial.config.data), asdict(trial.config.tokenizer)])
        try:
            text = prepared[source] = prepared.get(source) or prepare(trial.config)
            config = with_vocabulary(trial.config, text.tokenizer.vocab_size)
        except UserError as error:
            raise UserError(f"{trial}: {error}") from error
        saved = trial.folder / "config.yaml"
        if saved.exists():
            changed = configs.differences(configs.load(saved), config)
            listed = [f"{n} was {a!r} and is {b!r}" for n, (a, b) in changed.items() if not n.startswith(FREE)]
            if not text.is_of(trial.folder):
                listed.append("the text has changed")
            if listed:
                what = "; ".join(listed)
                raise UserError(f"{trial}: {trial.folder} is of another run: {what}; delete it or give another --out")


def outcome(trial: Trial) -> Outcome:
    """Read what a run has come to.

    Raises:
        UserError: its folder is damaged.
    """
    from lmcore.checkpoints import list_checkpoints
    from lmcore.trackers import read_metrics

    folder = trial.folder
    rows = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    facts = _read_facts(folder / "run.json")
    losses = [rows[-1][name] for name in ("loss", "valid_loss") if name in rows[-1]] if rows else []
    saved = list_checkpoints(folder)
    state = "unfinished"
    if not all(map(math.isfinite, losses)):
        state = "diverged"
    elif saved and saved[-1].step >= trial.config.train.steps:
        state = "finished"
        if not any("valid_loss" in row for row in rows):
            raise UserError(f"{folder / 'metrics.jsonl'}: found no evaluation; delete {folder} to train it again")
    return Outcome(trial=trial, rows=rows, state=state, facts=facts)


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    hint = f"delete {path.parent} to train it again"
    facts = read_json(path, hint)
    known = isinstance(facts, dict) and {"framework", "device"} <= facts.keys()
    if not known or not isinstance(facts.get("parameters"), int):
        expected = "framework, device and a number of parameters"
        raise UserError(f"{path}: cannot be read (found {shown(facts)}, expected {expected}); {hint}")
    return facts


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
    from lmcore.ablation_report import write_report
    from lmcore.folder import lock_run, unlock_run

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
        from lmcore.trainer import StopRequest

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


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:SLUG].strip("-")


def _leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
