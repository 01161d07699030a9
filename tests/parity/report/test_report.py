"""The report: a verdict, a table, JSON, and a page that stands alone and opens in a browser."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from parity.check.result import judge
from parity.difference import compare_all
from parity.report.report import Report, result_table


def test_the_verdict_names_the_first_divergent_place(report: Callable):
    good, bad = report(), report(1e-6)
    assert good
    assert not bad
    assert good.verdict.startswith("The two are the same model: 6 comparisons")
    assert "differ first in layers.1 gate (rung 3, float64" in bad.verdict
    assert bad.first_failure == bad.results[0]
    assert str(bad).endswith(bad.verdict)


def test_a_check_in_which_nothing_was_compared_is_no_proof(made: Callable):
    skipped = Report(subject="x", results=(made()[-1],))
    assert not skipped
    assert "Nothing was compared" in skipped.verdict


def test_json_holds_everything_and_is_json(tmp_path: Path, made: Callable):
    lines = (*made(), judge(3, "x", "float64", compare_all({"a": math.nan}, {"a": 1.0}), "logits"))
    Report(subject="x", results=lines).save_json(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["ok"] is False
    assert read["results"][-1]["max_rel"] == "inf"
    assert read["results"][0]["differences"][1]["name"] == "layers.0 norm 1"
    assert len(read["results"][2]["curves"]["jax"]) == 30


def test_the_terminal_table_has_every_line(made: Callable):
    from rich.console import Console

    console = Console(width=180, record=True, file=io.StringIO())
    console.print(result_table(made(1e-6), "float64"))
    text = console.export_text()
    assert "first divergent: layers.1 gate" in text
    assert text.count("pass") == 2
    assert "FAIL" in text
