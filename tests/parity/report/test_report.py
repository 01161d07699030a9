"""The report: a verdict, a table, JSON, and a page that stands alone and opens in a browser."""

import io
import json
import math
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lmcore.describe import environment
from parity.check.result import Result, judge
from parity.difference import Difference, compare_all
from parity.report.report import Report, result_table
from parity.taps import OPERATIONS


def made(fault: float = 0.0, dtype: str = "float64") -> list[Result]:
    """Lines as a check makes them; a fault shows in one operation of layer 1."""
    names = ["embedding", *(f"layers.{i} {operation}" for i in range(2) for operation in OPERATIONS), "final norm"]
    right = {name: 1 + (fault if name == "layers.1 gate" else 1e-16 * n) for n, name in enumerate(names)}
    losses = [5 - 0.01 * step for step in range(30)]
    noise = [1e-12 * 1.2**step for step in range(30)]
    curves = {"jax": losses, "torch": [x + 1e-12 for x in losses], "floor": noise, "highest": noise}
    trajectory = Result(
        rung=7,
        what="losses",
        dtype=dtype,
        verdict="pass",
        max_abs=1e-12,
        max_rel=2e-13,
        limit="1.0e-09 abs",
        curves=curves,
    )
    return [
        judge(3, "activations", dtype, compare_all(dict.fromkeys(names, 1.0), right), "logits"),
        judge(5, "gradients", dtype, compare_all({"w<0>": 1.0, "b": 2.0}, {"w<0>": 1.0, "b": 2.0}), "gradients"),
        trajectory,
        Result(rung=9, what="transformers", dtype=dtype, verdict="skipped", note="not installed"),
    ]


def report(fault: float = 0.0) -> Report:
    results = (*made(fault), *made(dtype="float32"))
    return Report(subject="runs/a & b (<jax>)", results=results, facts={"model": "2 layers"} | environment())


def test_the_verdict_names_the_first_divergent_place():
    good, bad = report(), report(1e-6)
    assert good
    assert not bad
    assert good.verdict.startswith("The two are the same model: 6 comparisons")
    assert "differ first in layers.1 gate (rung 3, float64" in bad.verdict
    assert bad.first_failure == bad.results[0]
    assert str(bad).endswith(bad.verdict)


def test_a_check_in_which_nothing_was_compared_is_no_proof():
    skipped = Report(subject="x", results=(made()[-1],))
    assert not skipped
    assert "Nothing was compared" in skipped.verdict


def test_json_holds_everything_and_is_json(tmp_path: Path):
    lines = (*made(), judge(3, "x", "float64", compare_all({"a": math.nan}, {"a": 1.0}), "logits"))
    Report(subject="x", results=lines).save_json(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["ok"] is False
    assert read["results"][-1]["max_rel"] == "inf"
    assert read["results"][0]["differences"][1]["name"] == "layers.0 norm 1"
    assert len(read["results"][2]["curves"]["jax"]) == 30


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe"):
            self.fetched.append(tag)
        self.fetched += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("fault", [0.0, 1e-6, math.nan])
def test_the_page_is_whole_and_fetches_nothing(fault: float):
    text = report(fault).page()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.fetched == []
    assert not re.search(r"https?://|url\(|@import", text)
    assert "nan," not in text
    assert "runs/a &amp; b (&lt;jax&gt;)" in text
    assert "w&lt;0&gt;" in text


def test_the_page_shows_the_fault_where_it_is():
    good, bad = report().page(), report(1e-6).page()
    assert good.count("cell beyond") == 0
    assert bad.count("cell beyond") == 1
    assert re.search(r"<title>layers\.1 gate: [^<]*</title><rect class=\"cell beyond\"", bad)
    assert good.count("<svg") == 6
    assert '<h1 id="verdict">They differ first in layers.1 gate' in bad


def test_differences_that_are_not_finite_can_be_drawn():
    nowhere = Difference(
        name="a", max_abs=math.inf, max_rel=math.inf, where=None, left=0.0, right=0.0, note="has shape [1] against [2]"
    )
    lines = (judge(5, "gradients", "float64", [nowhere, nowhere], "gradients"),)
    assert "has shape [1] against [2]" in Report(subject="x", results=lines).page()


def test_the_terminal_table_has_every_line():
    from rich.console import Console

    console = Console(width=180, record=True, file=io.StringIO())
    console.print(result_table(made(1e-6), "float64"))
    text = console.export_text()
    assert "first divergent: layers.1 gate" in text
    assert text.count("pass") == 2
    assert "FAIL" in text


PROBE = """({
    page: document.documentElement.scrollWidth,
    cut: [...document.querySelectorAll(".card")].filter(card => card.scrollWidth > card.clientWidth).length,
    split: [...document.querySelectorAll(".badge")].filter(badge => badge.getClientRects().length > 1).length,
    verdict: document.querySelector("h1").textContent,
    charts: document.querySelectorAll("svg").length,
})"""


@pytest.mark.parametrize(("width", "wide_charts"), [(1200, 0), (400, 6)])
def test_the_page_fits_a_window_of_any_width(width: int, wide_charts: int, in_browser: Callable[[str, int, str], Any]):
    """In a narrow window a chart is scrolled within its card; nothing else is wider than the window."""
    bad = report(1e-6)
    text = bad.page()
    probed = in_browser(text, width, PROBE)
    assert probed.pop("page") <= width
    assert probed == {"cut": wide_charts, "split": 0, "verdict": bad.verdict, "charts": 6}


def test_the_page_can_be_drawn(tmp_path: Path, chromium: str):
    report(1e-6).save_page(tmp_path / "r.html")
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user", f"--screenshot={shot}"]
    subprocess.run([chromium, *flags, (tmp_path / "r.html").as_uri()], capture_output=True, timeout=120)
    assert shot.read_bytes()[:4] == b"\x89PNG"
    assert shot.stat().st_size > 20_000
