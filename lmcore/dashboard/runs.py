"""What a run folder tells: state, samples and config. Nothing is checked, so that runs of any version can be shown."""

import contextlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from lmcore.dashboard.folder import Folder, join
from lmcore.dashboard.metrics import last_row
from lmcore.parsing import MAX_YAML_BYTES, parse_json, parse_scalar, parse_yaml

__all__ = ["config_differences", "config_of", "describe_report", "describe_run", "read_sample", "samples_of"]

STEP = re.compile(r"(\d{1,15})\.txt$")
"""The step at the end of a sample's file name."""
TITLE = re.compile(rb"<title>(.*?)</title>", re.DOTALL)
MAX_SAMPLE = 100_000
MAX_RECORD = 4 << 20
ABSENT = "—"
"""Stands for a field that a run's config does not have."""
NOT_COMPARED = {"run_dir"}
"""Fields that differ between any two runs."""


def describe_run(folder: Folder, run: str) -> dict[str, Any]:
    """Return what the list of runs shows of one.

    Args:
        folder: the folder of runs.
        run: name of the run.
    """
    record = _record(folder, run)
    try:
        with folder.open(join(run, "metrics.jsonl")) as file:
            values = last_row(file)
    except FileNotFoundError:
        values = {}
    modified = folder.modified(join(run, "metrics.jsonl")) or folder.modified(join(run, "config.yaml"))
    config = record.get("config")
    steps = config.get("train.steps") if isinstance(config, dict) else None
    if steps is None:
        steps = config_of(folder, run)[0].get("train.steps")
    return {
        "name": run,
        "label": folder.label(run),
        "framework": _text(record.get("framework")),
        "device": _text(record.get("device")),
        "parameters": _count(record.get("parameters")),
        "steps": _count(steps),
        "step": int(values["step"]) if "step" in values else 0,
        "loss": _finite(values.get("loss")),
        "metrics": [name for name in values if name != "step"],
        "modified": modified,
    }


def samples_of(folder: Folder, run: str) -> list[dict[str, Any]]:
    """Return the samples of a run that have a step in their file's name, by step.

    Args:
        folder: the folder of runs.
        run: name of the run.
    """
    names = folder.files(join(run, "samples"))
    found = [(int(match[1]), name) for name in names if (match := STEP.search(name))]
    return [{"step": step, "file": name} for step, name in sorted(found)]


def read_sample(folder: Folder, run: str, file: str) -> str:
    """Return the text of a sample, cut where it is very long.

    Args:
        folder: the folder of runs.
        run: name of the run.
        file: name of the file in `samples/`.

    Raises:
        FileNotFoundError: there is no such sample.
    """
    if not STEP.search(file):
        raise FileNotFoundError(f"{file!r} is no sample")
    content = folder.read(join(run, f"samples/{file}"), MAX_SAMPLE + 1)
    return content[:MAX_SAMPLE].decode("utf-8", "replace") + ("…" if len(content) > MAX_SAMPLE else "")


def config_of(folder: Folder, run: str) -> tuple[dict[str, Any], str]:
    """Return a run's config by dotted names, and what is wrong with it, if anything.

    Args:
        folder: the folder of runs.
        run: name of the run.
    """
    try:
        content = folder.read(join(run, "config.yaml"), MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            return {}, "config.yaml is too large"
        values = parse_yaml(content.decode("utf-8-sig"))
    except FileNotFoundError:
        return {}, "no config.yaml"
    except (ValueError, yaml.YAMLError):
        return {}, "config.yaml cannot be read as YAML"
    return dict(_leaves(values)), ""


def config_differences(folder: Folder, runs: Sequence[str]) -> dict[str, Any]:
    """Return the fields in which the configs of runs differ, with each run's value, and how many are the same.

    Args:
        folder: the folder of runs.
        runs: names of the runs.
    """
    configs, problems = [], []
    for run in runs:
        config, problem = config_of(folder, run)
        if problem:
            problems.append(f"{folder.label(run)}: {problem}")
        else:
            configs.append((run, config))
    names = list(dict.fromkeys(name for _, config in configs for name in config if name not in NOT_COMPARED))
    values = {name: [_shown(config[name]) if name in config else ABSENT for _, config in configs] for name in names}
    rows = [{"field": name, "values": shown} for name, shown in values.items()]
    different = [row for row in rows if len(set(row["values"])) > 1]
    different.sort(key=lambda row: ABSENT in row["values"])  # last: fields that only some versions have
    return {
        "runs": [folder.label(run) for run, _ in configs],
        "fields": different,
        "same": len(rows) - len(different),
        "problems": problems,
    }


def describe_report(folder: Folder, path: str) -> dict[str, Any]:
    """Return the title of an HTML file and when it was written.

    Args:
        folder: the folder of runs.
        path: name of the file.
    """
    try:
        match = TITLE.search(folder.read(path, 64 << 10))
    except FileNotFoundError:
        match = None
    title = html.unescape(match[1].decode("utf-8", "replace")).strip() if match else ""
    return {"path": path, "title": title or path, "modified": folder.modified(path)}


def _record(folder: Folder, run: str) -> dict[str, Any]:
    """Return `run.json`, empty where it is missing or damaged."""
    try:
        record = parse_json(folder.read(join(run, "run.json"), MAX_RECORD).decode())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of everything in nested mappings that is no mapping."""
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    """Return a config value as text, as YAML and the command line have it."""
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError):
            if parse_scalar(value) == value:
                return value
    return json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and value == value else None
