"""The results of a check, as a verdict, a table for the terminal, JSON, and (in `parity.report.page`) a web page."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.check.result import MESH_RUNG, Result

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Report", "result_table"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All lines of a check; true if something was compared and nothing failed."""

    subject: str
    """What was checked, for people."""
    results: tuple[Result, ...]
    facts: dict[str, str] = field(default_factory=dict)
    """What else is to be known: the model, the text, the tools and devices."""
    compared: str = "JAX against PyTorch"
    """The two implementations, for the page's heading."""
    likely: tuple[str, ...] = ()
    """Sentences that name what would make the two agree, where a usual cause does."""

    @property
    def ok(self) -> bool:
        """Whether something was compared and nothing failed."""
        compared = any(result.verdict in ("pass", "FAIL") for result in self.results)
        return compared and all(result.ok for result in self.results)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def first_failure(self) -> Result | None:
        """The narrowest question that failed, in the first type: where to look."""
        return next((result for result in self.results if not result.ok), None)

    @property
    def verdict(self) -> str:
        """What was found, in one sentence, and the likely causes."""
        return " ".join(filter(None, [self._finding, self._causes]))

    @property
    def _causes(self) -> str:
        return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in self.likely)

    @property
    def _finding(self) -> str:
        failure = self.first_failure
        if not self.ok and failure is None:
            return "Nothing was compared that has a tolerance."
        if failure is None:
            types = list(dict.fromkeys(r.dtype for r in self.results))
            passed = f"{sum(r.verdict == 'pass' for r in self.results)} comparisons passed in {' and '.join(types)}."
            if all(r.rung == MESH_RUNG for r in self.results):
                return f"Runs on meshes are the run of one device: {passed}"
            return f"The two are the same model: {passed}"
        if failure.rung == 0:
            size = "" if failure.max_abs is None else f", by up to {failure.max_abs:.1e}"
            return f"{failure.what}: {failure.first} is not the same{size}. The port is not to blame for what follows."
        size = "" if failure.max_rel is None else f": {failure.max_rel:.1e} relative"
        if failure.curves:
            size = f": {failure.max_abs:.1e} absolute"
        return (
            f"They differ first in {failure.first} (rung {failure.rung}, {failure.dtype}, {failure.what}){size}, "
            f"allowed {failure.limit}."
        )

    def __str__(self) -> str:
        lines = [f"{'rung':4}  {'type':8}  {'what':44}  {'max abs':>8}  {'max rel':>8}  verdict   where"]
        for r in self.results:
            numbers = f"{_number(r.max_abs):>8}  {_number(r.max_rel):>8}"
            lines.append(f"{r.rung:4}  {r.dtype:8}  {r.what:44}  {numbers}  {r.verdict:8}  {r.where}".rstrip())
            if note := r.note.removeprefix(f"first divergent: {r.first}").removeprefix("; "):  # the verdict names that
                lines.append(f"{'':16}{note}")
        return "\n".join([*lines, self.verdict])

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes its name, as JSON has none."""
        results = [asdict(result) for result in self.results]
        return _plain({"subject": self.subject, "ok": self.ok, "verdict": self.verdict} | {"results": results}) | {
            "facts": self.facts
        }

    def save_json(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def page(self) -> str:
        """A web page that stands alone."""
        from parity.report.page import page

        return page(self.ok, self._finding, self._causes, self.subject, self.results, self.facts, self.compared)

    def save_page(self, path: Path) -> None:
        """Write the page."""
        path.write_text(self.page(), encoding="utf-8")


def result_table(results: Sequence[Result], title: str) -> "Table":
    """The lines of one type, for a terminal."""
    from rich.table import Table

    styles = {"pass": "green", "FAIL": "bold red", "reported": "cyan", "skipped": "yellow"}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in ("rung", "what", "max abs", "max rel", "worst place", "tolerance", "verdict", "s"):
        table.add_column(name, justify="right" if name in ("rung", "max abs", "max rel", "s") else "left")
    for number, r in enumerate(results):
        rung = str(r.rung) if number == 0 or results[number - 1].rung != r.rung else ""
        verdict = f"[{styles[r.verdict]}]{r.verdict}[/]"
        note = f"\n[dim]{_escape(r.note)}[/]" if r.note else ""
        numbers = _number(r.max_abs), _number(r.max_rel)
        table.add_row(rung, r.what + note, *numbers, _escape(r.where), r.limit, verdict, f"{r.seconds:.1f}")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
