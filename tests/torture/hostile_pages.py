"""Names with HTML and scripts, on every page that is written."""

import json
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from lmcore.ablation.plan import Outcome as Trained
from lmcore.ablation.plan import read_plan, trials
from lmcore.ablation.report import write_report
from parity.bench.page import page as bench_page
from parity.bench.report import Measure
from parity.bench.report import Report as BenchReport
from parity.check.result import Result, judge
from parity.difference import compare_all
from parity.report.report import Report
from tests.torture.hostile import Case, Lab

__all__ = ["PAGES", "check_page"]

EVIL = "\"><script>evil()</script><img src=x onerror=evil()>'`&lt;"
ELEMENTS = {"script", "iframe", "object", "embed", "link", "form", "base", "a", "foreignobject"}


class Page(HTMLParser):
    """Collects what a page would execute or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ELEMENTS:
            self.active.append(tag)
        for name, value in attributes:
            fetched = name in ("src", "href", "xlink:href") and not (value or "").startswith("data:")
            if name.startswith("on") or fetched or "javascript:" in (value or ""):
                self.active.append(f"{tag} {name}={value}")


def check_page(text: str) -> str:
    """Return nothing for a page that executes and fetches nothing, and shows what it was given.

    Raises:
        ValueError: it does not.
    """
    page = Page()
    page.feed(text)
    if page.active:
        raise ValueError(f"the page executes or fetches {page.active[:3]}")
    if "evil()" not in text:
        raise ValueError("the name is not on the page")
    return ""


def parity_page() -> str:
    """Return a page of parity.check with a hostile name everywhere."""
    names = ["embedding", f"layers.0 {EVIL}", "final norm"]
    floor = [1e-12, 1e-12]
    curves = {f"a{EVIL}": [2.0, 1.0], f"b{EVIL}": [2.0, 1.0], "floor": floor, "highest": floor}
    same = dict.fromkeys(names, 1.0)
    trained = {"verdict": "pass", "max_abs": 0.0, "max_rel": 0.0, "limit": "1 abs", "curves": curves}
    weights = {EVIL: np.ones(2), "b": 2.0}
    results = (
        judge(3, EVIL, "float64", compare_all(same, dict(same)), "logits"),
        judge(5, EVIL, "float64", compare_all(weights, dict(weights)), "gradients"),
        Result(rung=7, what=EVIL, dtype="float64", **trained),
        Result(rung=9, what=EVIL, dtype="float64", verdict="skipped", note=EVIL),
    )
    facts = {"model": EVIL, "text": EVIL, EVIL: EVIL}
    return Report(subject=EVIL, results=results, facts=facts).page()


def benchmark_page() -> str:
    """Return a page of parity.bench with a hostile name everywhere."""
    made = [
        Measure(mode="generate", dtype=EVIL, implementation=name, what=EVIL, unit=EVIL, amount=1.0, seconds=[1.0, 2.0])
        for name in (EVIL, "torchlm")
    ]
    facts = {"settings": {EVIL: EVIL}, "machine": {EVIL: EVIL}, "versions": {EVIL: EVIL}, "flags": {EVIL: EVIL}}
    return bench_page(BenchReport(command=EVIL, date=EVIL, measures=made, **facts))


def ablation_page(folder: Path) -> str:
    """Return a page of an ablation whose texts are hostile."""
    plan_file = folder / "study.yaml"
    changes = {f"wide {EVIL}": {"sample.prompt": EVIL}}
    plan_file.write_text(json.dumps({"base": {"train": {"steps": 40}}, "seeds": [0], "changes": changes}))
    plan = read_plan(plan_file)
    rows = [
        {"step": 4, "tokens": 64, "loss": 2.0, "valid_loss": 2.0, "valid_bits_per_byte": 1.0, "tokens_per_second": 9.0}
    ]
    facts = {"framework": EVIL, "device": EVIL, "parameters": 1}
    done = [Trained(trial=trial, rows=rows, state="finished", facts=facts) for trial in trials(plan, folder / "out")]
    write_report(folder, plan, done, [], EVIL)
    return (folder / "report.html").read_text()


def _case(name: str, make: Callable[..., str], *arguments: object) -> Case:
    def commands(lab: Lab, folder: Path) -> list[Callable[[], object]]:
        return [lambda: check_page(make(*(folder if argument is Path else argument for argument in arguments)))]

    return Case(name, commands, neutral=True)


PAGES = (
    _case("HTML on the page of parity.check", parity_page),
    _case("HTML on the page of parity.bench", benchmark_page),
    _case("HTML on the page of an ablation", partial(ablation_page), Path),
)
