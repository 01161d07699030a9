"""The report's page: whole, standing alone, and readable in a window of any width."""

import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


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
def test_the_page_is_whole_and_fetches_nothing(fault: float, report: Callable):
    text = report(fault).page()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.fetched == []
    assert not re.search(r"https?://|url\(|@import", text)
    assert "nan," not in text
    assert "runs/a &amp; b (&lt;jax&gt;)" in text
    assert "w&lt;0&gt;" in text


def test_the_page_shows_the_fault_where_it_is(report: Callable):
    good, bad = report().page(), report(1e-6).page()
    assert good.count("cell beyond") == 0
    assert bad.count("cell beyond") == 1
    assert re.search(r"<title>layers\.1 gate: [^<]*</title><rect class=\"cell beyond\"", bad)
    assert good.count("<svg") == 6
    assert '<h1 id="verdict">They differ first in layers.1 gate' in bad


PROBE = """({
    page: document.documentElement.scrollWidth,
    cut: [...document.querySelectorAll(".card")].filter(card => card.scrollWidth > card.clientWidth).length,
    split: [...document.querySelectorAll(".badge")].filter(badge => badge.getClientRects().length > 1).length,
    verdict: document.querySelector("h1").textContent,
    charts: document.querySelectorAll("svg").length,
})"""


@pytest.mark.parametrize(("width", "wide_charts"), [(1200, 0), (400, 6)])
def test_the_page_fits_a_window_of_any_width(
    width: int, wide_charts: int, in_browser: Callable[[str, int, str], Any], report: Callable
):
    """In a narrow window a chart is scrolled within its card; nothing else is wider than the window."""
    bad = report(1e-6)
    text = bad.page()
    probed = in_browser(text, width, PROBE)
    assert probed.pop("page") <= width
    assert probed == {"cut": wide_charts, "split": 0, "verdict": bad.verdict, "charts": 6}


def test_the_page_can_be_drawn(tmp_path: Path, chromium: str, report: Callable):
    report(1e-6).save_page(tmp_path / "r.html")
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user", f"--screenshot={shot}"]
    subprocess.run([chromium, *flags, (tmp_path / "r.html").as_uri()], capture_output=True, timeout=120)
    assert shot.read_bytes()[:4] == b"\x89PNG"
    assert shot.stat().st_size > 20_000


def test_the_likely_cause_stands_below_the_finding_and_no_box_is_empty(report: Callable):
    found = replace(
        report(1e-6), likely=("likely: eps 1e-05 -> 1e-06 in norm (agrees to 2e-16 when changed)",), facts={}
    )
    text = found.page()
    assert '<p class="likely">Likely: eps 1e-05 -&gt; 1e-06 in norm (agrees to 2e-16 when changed).</p>' in text
    assert "Likely" not in text.partition('<h1 id="verdict">')[2].partition("</h1>")[0]
    above = text.partition("<h2>The ladder</h2>")[0]
    assert "<dl" not in above
    assert "<dl" in report(1e-6).page().partition("<h2>The ladder</h2>")[0]
    assert 'class="likely"' not in report(1e-6).page()
