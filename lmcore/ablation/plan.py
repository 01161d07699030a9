"""The plan of an ablation, the runs that it defines, and their outcomes as read from the run folders."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmcore import config as configs
from lmcore.config import Config
from lmcore.errors import UserError, shown
from lmcore.parsing import read_json, read_yaml

__all__ = ["BASE", "Outcome", "Plan", "Trial", "check_trials", "merge", "outcome", "read_plan", "trials"]

BASE = "base"
"""Name of the entry that changes nothing."""
FIXED = {
    "run_dir": "--out names the folder of all runs",
    "train.seed": "seeds names those of every entry",
    "train.resume": "what is there is always continued",
}
"""Fields that no change may set -> the reason."""
SLUG = 100
"""Maximum number of characters of an entry's name in the name of its folder."""
FREE = ("run_dir", "train.resume", "train.cpu_devices", "train.device", "data.dir", "checkpoint.", "log.", "sample.")
"""Fields, or prefixes of fields, in which a run on disk may differ, since they do not affect its metrics."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An ablation, as its file describes it."""

    path: Path
    base: dict[str, Any]
    """Fields of the base, in groups."""
    seeds: list[int]
    changes: dict[str, dict[str, Any]]
    """Name of an entry -> the fields that it sets, by dotted names or in groups."""


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
    """State and metrics of a run, as read from its folder."""

    trial: Trial
    rows: list[dict[str, int | float]]
    """Its metrics so far."""
    state: str
    """`finished`, `diverged`, or `unfinished`."""
    facts: dict[str, Any]
    """Its run.json: framework, device, parameters; empty before the run has started."""


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: no such file, expected the YAML of an ablation")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {shown(content)}, expected fields, each with its value")
    return content


def read_plan(path: Path) -> Plan:
    """Read the file that describes an ablation.

    Raises:
        UserError: the file is missing or damaged, a field is unknown or of the wrong type, or a name is missing or
            not unique.
    """
    content = _read_yaml(path)
    for name in content:
        if name not in ("base", "seeds", "changes"):
            raise UserError(f"{path}: {name}: no such field, expected base, seeds and changes")
    base = content.get("base")
    if isinstance(base, str):
        base = _read_yaml(path.parent / base)
    if not isinstance(base, dict):
        expected = "the fields of a config, or the path of its YAML file"
        raise UserError(f"{path}: base: found {shown(base)}, expected {expected}")
    _check_once(f"{path}: base", base)
    seeds = content.get("seeds", [0, 1])
    distinct = isinstance(seeds, list) and len(seeds) == len(set(map(repr, seeds))) > 0
    if not distinct or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{path}: seeds: found {shown(seeds)}, expected a list of distinct integers, at least 0")
    changes = content.get("changes")
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
            clash = f"the same folder name as {folders[slug]!r}" if slug else "no letter or digit"
            raise UserError(
                f"{path}: {name}: found {clash}, expected a name from which a folder can be named; rename it"
            )
        folders[slug] = name
    return Plan(
        path=path, base=merge({}, base), seeds=seeds, changes={str(name): fields for name, fields in changes.items()}
    )


def _check_once(where: str, fields: dict[str, Any]) -> None:
    """Raise UserError for a field that is set both by its dotted name and in its group."""
    names = [name for name, _ in _leaves(fields)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: {twice[0]} is set twice, by its dotted name and in its group; keep one")


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return the base's fields, in groups, updated by a change, which may write `model.dim: 64` or a group."""
    merged = dict(base)
    for name, value in change.items():
        group, dot, rest = str(name).partition(".")
        inner = {rest: value} if dot else value
        before = merged.get(group)
        merged[group] = merge(before if isinstance(before, dict) else {}, inner) if isinstance(inner, dict) else inner
    return merged


def trials(plan: Plan, out: Path) -> list[Trial]:
    """Return all runs, seed by seed and the base first, so that an early stop leaves complete comparisons.

    Raises:
        UserError: the fields of an entry are unknown or incompatible; the message names the entry.
    """
    runs = []
    for seed in plan.seeds:
        for entry, change in {BASE: {}, **plan.changes}.items():
            run_dir = str(out / "runs" / f"{_slug(entry)}-seed-{seed}")
            fixed = {"run_dir": run_dir, "train.seed": seed, "train.resume": "auto"}
            try:
                config = configs.from_dict(Config, merge(merge(plan.base, change), fixed))
            except UserError as error:
                raise UserError(f"{plan.path}: {entry}: {error}") from error
            runs.append(Trial(entry=entry, seed=seed, config=config))
    return runs


def check_trials(runs: Sequence[Trial]) -> None:
    """Prepare the text of all runs, and check that the runs on disk have the same config and text.

    Raises:
        UserError: a text is unavailable or does not fit, or a run on disk has another config or text.
    """
    from lmcore.data.prepare import Prepared, prepare
    from lmcore.run.opening import with_vocabulary

    prepared: dict[str, Prepared] = {}
    for trial in runs:
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
    """Read the outcome of a run from its folder.

    Raises:
        UserError: its folder is damaged.
    """
    from lmcore.run.checkpoints import list_checkpoints
    from lmcore.run.trackers import read_metrics

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


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:SLUG].strip("-")


def _leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
