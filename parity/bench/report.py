"""The report of a benchmark: every sample, and the medians and ratios that follow, as a table, JSON and a page."""

import json
import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcore.errors import UserError
from lmcore.parsing import read_json

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "BASES",
    "SCHEMA",
    "Change",
    "Measure",
    "Report",
    "cells",
    "changes",
    "generation_name",
    "load",
    "number",
    "table",
    "title",
]

SCHEMA = 2
"""Version of the JSON; `load` reads 1 too, which had other names."""

BASES = ("transformers", "torchlm", "encode_batch")
"""Ratios are to the first of these that was measured, or else to the first implementation of a group."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One implementation's samples of one thing."""

    mode: str
    """train, generate, serve, prepare or startup."""
    dtype: str
    """Type of the matmuls; empty where there are none."""
    implementation: str
    what: str
    unit: str
    """Of the value: seconds, or something per second."""
    amount: float
    """How much of the unit was done in each sample."""
    seconds: list[float]
    """Wall time of each sample, in the order of the rounds."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Processor time of each sample over all threads; empty where it was not taken."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is known: first_seconds, step_flops, rss_bytes, device_bytes, difference, …"""

    @property
    def key(self) -> tuple[str, str, str]:
        """What is compared between implementations."""
        return self.mode, self.dtype, self.what

    @property
    def values(self) -> list[float]:
        """Each sample in the unit."""
        return self.seconds if self.unit == "s" else [self.amount / seconds for seconds in self.seconds]

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The ends of the interquartile range of the values; for fewer than four, the smallest and the largest."""
        if len(self.seconds) < 4:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def speed(self, base: "Measure") -> float:
        """How many times as fast as `base`: the median over the rounds, in each of which both had their turn."""
        mine, theirs = ([measure.amount / s for s in measure.seconds] for measure in (self, base))
        if len(mine) != len(theirs):
            return statistics.median(mine) / statistics.median(theirs)
        return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that one run of the benchmark measured."""

    command: str
    date: str
    settings: dict[str, str]
    """Shape of the model, and how it was measured, for people."""
    machine: dict[str, str]
    versions: dict[str, str]
    flags: dict[str, str]
    """Environment variables that matter."""
    measures: list[Measure]

    def groups(self) -> list[list[Measure]]:
        """Measures of the same thing together, in order, without the bare matmul."""
        groups: dict[tuple[str, str, str], list[Measure]] = {}
        for measure in self.measures:
            if measure.implementation != "matmul":
                groups.setdefault(measure.key, []).append(measure)
        return list(groups.values())

    def base(self, group: list[Measure]) -> Measure:
        """The implementation that the others are compared with."""
        implementations = {measure.implementation: measure for measure in reversed(group)}
        return next((implementations[name] for name in BASES if name in implementations), group[0])

    def matmul(self, measure: Measure) -> Measure | None:
        """The bare matmul that took turns with a measure."""
        same = (m for m in self.measures if (m.mode, m.dtype) == (measure.mode, measure.dtype))
        return next((m for m in same if m.implementation == "matmul"), None)

    def derived(self, measure: Measure, base: Measure) -> dict[str, float]:
        """What follows from the samples.

        `flops_per_second` counts 6 FLOPs per weight and token and causal attention (`lmcore.model.flops`);
        `share_of_matmul_peak` is that over the rate of the bare matmul of the same round; `mfu` is it over the vendor's
        dense 16-bit peak, where that is known and the matmuls are of 16 bits. `weight_bytes_per_second` counts each
        weight once a decoding step: the memory bandwidth that decoding needs at least.
        """
        low, high = measure.quartiles
        values = {"median": measure.median, "lower_quartile": low, "upper_quartile": high, "ratio": measure.speed(base)}
        facts = measure.facts
        if measure.mode == "train" and measure.implementation != "matmul":
            step = statistics.median(measure.seconds) / facts["steps"]
            values |= {"step_seconds": step, "flops_per_second": facts["step_flops"] / step}
            values |= {"compile_seconds": max(0.0, facts["first_seconds"] - step)}
            if matmul := self.matmul(measure):
                work = facts["step_flops"] * facts["steps"]
                values["share_of_matmul_peak"] = measure.speed(matmul) / measure.amount * work
            if facts["peak"] and measure.dtype in ("bfloat16", "float16"):
                values["mfu"] = values["flops_per_second"] / facts["peak"]
        if measure.what.startswith("decode"):
            values["weight_bytes_per_second"] = facts["weight_bytes"] * measure.median / facts["sequences"]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with what is derived from them."""
        plain = {"schema": SCHEMA} | asdict(self)
        bases = {group[0].key: self.base(group) for group in self.groups()}
        for values, measure in zip(plain["measures"], self.measures, strict=True):
            values["derived"] = self.derived(measure, bases.get(measure.key, measure))
        return plain

    @property
    def facts(self) -> dict[str, str]:
        """Command, machine, versions and settings, for people."""
        devices = sorted({measure.facts["device"] for measure in self.measures if "device" in measure.facts})
        known = {"command": self.command, "date": self.date} | self.settings | self.machine
        return known | {"devices": ", ".join(devices)} | self.versions | self.flags

    def save_json(self, path: Path) -> None:
        """Write all of it."""
        path.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> Report:
    """Read a report that `save_json` wrote.

    Raises:
        UserError: the file is missing or is not one.
    """
    expected = f"expected a JSON file that python -m parity.bench wrote (schema 1 or {SCHEMA})"
    if not path.is_file():
        raise UserError(f"--compare: found no file {str(path)!r}, {expected}; name one, such as in runs/bench")
    try:
        values = read_json(path)
    except UserError as error:
        raise UserError(f"--compare: {error}; {expected}") from error
    if not isinstance(values, dict) or values.get("schema") not in (1, SCHEMA):
        found = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise UserError(f"--compare: {path}: found schema {found!r}, {expected}")
    schema = values.pop("schema")
    try:
        for measure in values["measures"]:
            del measure["derived"]
            if schema == 1:
                _rename_old_fields(measure)
        measures = [Measure(**measure) for measure in values.pop("measures")]
        for measure in measures:
            if not measure.seconds or not all(isinstance(s, float) and s > 0 for s in measure.seconds):
                raise TypeError(f"{measure.implementation}, {measure.what}: seconds {measure.seconds!r}")
        return Report(**values, measures=measures)
    except (KeyError, TypeError) as error:
        raise UserError(f"--compare: {path}: a field is missing or unknown ({error}); {expected}") from error


def _rename_old_fields(measure: dict[str, Any]) -> None:
    """Give a measure of schema 1 the names that schema 2 has."""
    implementation = measure.pop("side")
    measure["implementation"] = "matmul" if implementation == "product" else implementation
    if implementation == "product":
        measure["what"] = "matmul"
    if generated := re.fullmatch(r"(read|write) (\d+) texts? of (\d+)", measure["what"]):
        phase = {"read": "prefill", "write": "decode"}[generated[1]]
        measure["what"] = generation_name(phase, int(generated[2]), int(generated[3]))
    names = {"rows": "sequences", "idle_share": "idle_fraction"}
    measure["facts"] = {names.get(name, name): value for name, value in measure["facts"].items()}


def generation_name(phase: str, sequences: int, tokens: int) -> str:
    """Return what a measure of generation is called.

    Args:
        phase: prefill or decode.
        sequences: how many there are in the batch.
        tokens: of each, prefilled or decoded.
    """
    return f"{phase} {sequences} sequence{'s' * (sequences > 1)} of {tokens} tokens"


def title(group: list[Measure]) -> str:
    """Return what a group of measures is, for people."""
    mode, dtype, what = group[0].key
    named = mode in ("generate", "serve") or mode in what
    return ", ".join(filter(None, ("" if named else mode, what, dtype)))


def cells(report: Report, group: list[Measure]) -> list[dict[str, str]]:
    """Return the rows of a group's table: column -> text, the same columns in each, empty where nothing is known."""
    base = report.base(group)
    rows = []
    for measure in group:
        facts, derived = measure.facts, report.derived(measure, base)
        low, high = measure.quartiles
        row = {"implementation": measure.implementation, f"median {measure.unit}": number(measure.median)}
        row["interquartile range"] = f"{number(low)} – {number(high)}"
        row[f"× {base.implementation}"] = f"{derived['ratio']:.2f}"
        row["ms per step"] = _scaled(derived.get("step_seconds"), 1e3)
        row["GFLOP/s"] = _scaled(derived.get("flops_per_second"), 1e-9)
        row["share of matmul peak"] = _percent(derived.get("share_of_matmul_peak"))
        row["MFU"] = _percent(derived.get("mfu"))
        row["weights GB/s"] = _scaled(derived.get("weight_bytes_per_second"), 1e-9, 1)
        row["compile s"] = _scaled(derived.get("compile_seconds"), 1, 1)
        if measure.cpu_seconds:
            row["cores busy"] = f"{sum(measure.cpu_seconds) / sum(measure.seconds):.2f}"
        row["memory MB"] = _scaled(facts.get("rss_bytes"), 1e-6)
        row["device MB"] = _scaled(facts.get("device_bytes"), 1e-6)
        rows.append(row)
    used = [name for name in rows[0] if any(row[name] for row in rows)]
    return [{name: row[name] for name in used} for row in rows]


def table(report: Report, group: list[Measure]) -> "Table":
    """A group for a terminal."""
    rows = cells(report, group)
    return _table(title(group), rows)


def _table(heading: str, rows: list[dict[str, str]]) -> "Table":
    from rich.table import Table

    columns = Table(title=heading, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        columns.add_column(name, justify="left" if name in ("implementation", "what", "") else "right", no_wrap=True)
    for row in rows:
        columns.add_row(*row.values())
    return columns


def number(value: float) -> str:
    """Return a value to three figures, or to the unit where it has more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _scaled(value: float | None, scale: float, digits: int = 0) -> str:
    return "" if value is None else f"{value * scale:,.{digits}f}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.0%}"


@dataclass(frozen=True)
class Change:
    """One measure in two runs."""

    old: Measure
    new: Measure

    @property
    def ratio(self) -> float:
        """How many times as fast the new one is, by the medians."""
        ratio = self.new.median / self.old.median
        return 1 / ratio if self.new.unit == "s" else ratio

    @property
    def beyond_spread(self) -> bool:
        """Whether the two interquartile ranges do not overlap: the change is more than the spread within each run."""
        (old_low, old_high), (new_low, new_high) = self.old.quartiles, self.new.quartiles
        return new_low > old_high or new_high < old_low


def changes(old: Report, new: Report) -> list[Change]:
    """Return what both runs measured, in the new one's order."""
    before = {(*measure.key, measure.implementation): measure for measure in old.measures}
    pairs = ((before.get((*measure.key, measure.implementation)), measure) for measure in new.measures)
    return [Change(earlier, later) for earlier, later in pairs if earlier is not None]


def change_table(old: Report, new: Report) -> "Table":
    """Old and new medians, their ratio, and a mark where their interquartile ranges do not overlap.

    Raises:
        UserError: the two have nothing in common.
    """
    common = changes(old, new)
    if not common:
        raise UserError("--compare: the two have no measure in common; expected the same modes, types and shape")
    rows = []
    for change in common:
        measure = change.new
        mark = "" if not change.beyond_spread else "faster" if change.ratio > 1 else "slower"
        row = {
            "what": ", ".join(filter(None, measure.key[1:])),
            "implementation": measure.implementation,
            "unit": measure.unit,
        }
        row |= {"old": number(change.old.median), "new": number(measure.median)}
        rows.append(row | {"speed": f"× {change.ratio:.2f}", "beyond the spread": mark})
    return _table(f"{old.date} → {new.date}", rows)
