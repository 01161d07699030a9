"""The report of a benchmark: numbers that follow from samples, files that are read back, changes between two runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmcore.errors import UserError
from parity.bench.command import main
from parity.bench.report import cells, change_table, changes, load, number, title


def test_mfu_is_a_fraction_of_the_vendors_peak(report: Callable, measure: Callable):
    half = measure("jaxlm", [0.5, 0.5, 0.5, 0.5])
    derived = report(half).derived(half, half)
    assert derived["mfu"] == pytest.approx(6e9 / 0.25 / 1e12)
    assert derived["compile_seconds"] == pytest.approx(2.75)
    single = replace(half, dtype="float32")
    assert "mfu" not in report(single).derived(single, single)


def test_a_ratio_holds_on_a_machine_that_slows_down_meanwhile(measure: Callable):
    fast, slow = measure("jaxlm", [1.0, 2.0, 4.0]), measure("torchlm", [2.0, 4.0, 8.0])
    assert fast.speed(slow) == 2
    assert slow.speed(fast) == 0.5


def test_a_report_of_the_first_schema_is_read_under_the_new_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: Callable
):
    whats = ("read 1 text of 32", "write 32 texts of 250", "train 2 × 4")
    common: dict[str, Any] = {"dtype": "float32", "amount": 16.0, "cpu_seconds": [], "derived": {"median": 1.0}}
    common |= {
        "mode": "generate",
        "unit": "tokens/s",
        "facts": {"rows": 1, "idle_share": 0.0, "weight_bytes": 8},
        "seconds": [1.0, 1.0],
    }
    measures = [common | {"side": "torchlm", "what": what} for what in whats]
    measures.append(common | {"side": "product", "what": "a matrix product", "unit": "FLOP/s"})
    fields: dict[str, Any] = {"settings": {}, "machine": {}, "versions": {}, "flags": {}, "measures": measures}
    old = {"schema": 1, "command": "python -m parity.bench", "date": "2026-11-24T02:00:00+00:00"} | fields
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = load(tmp_path / "old.json").measures
    assert [(m.implementation, m.what) for m in found] == [
        ("torchlm", "prefill 1 sequence of 32 tokens"),
        ("torchlm", "decode 32 sequences of 250 tokens"),
        ("torchlm", "train 2 × 4"),
        ("matmul", "matmul"),
    ]
    assert found[0].facts == {"sequences": 1, "idle_fraction": 0.0, "weight_bytes": 8}
    report(*(replace(m, seconds=[2.0, 2.0]) for m in found)).save_json(tmp_path / "new.json")
    assert main(["--compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("× 0.50" in line and "slower" in line for line in lines) == 4


def test_a_change_counts_where_the_interquartile_ranges_do_not_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: Callable, measure: Callable
):
    old = report(measure("jaxlm", [1.0, 1.1, 1.2, 1.3]), measure("torchlm", [1.0, 1.1, 1.2, 1.3]))
    new = report(measure("jaxlm", [1.1, 1.2, 1.3, 1.4]), measure("torchlm", [2.0, 2.2, 2.4, 2.6]))
    near, far = changes(old, new)
    assert (near.beyond_spread, far.beyond_spread) == (False, True)
    assert far.ratio == pytest.approx(0.5)
    old.save_json(tmp_path / "old.json")
    new.save_json(tmp_path / "new.json")
    assert main(["--compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["slower" in line for line in lines if "jaxlm" in line] == [False]
    assert ["slower" in line for line in lines if "torchlm" in line] == [True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "found schema 'list'"),
        ('{"schema": 0}', "found schema 0"),
        ('{"schema": 1, "measures": []}', "a field is missing"),
        ('{"schema": 1, "measures": [{"derived": {}, "implementation": "x"}]}', "a field is missing"),
    ],
)
def test_a_file_that_is_no_report_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "old.json"
    path.write_text(text)
    assert main(["--compare", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "expected a JSON file that python -m parity.bench wrote" in line


def test_a_table_names_what_was_measured_and_leaves_out_what_is_not_known(report: Callable, measure: Callable):
    group = [measure("jaxlm", [2.0, 2.0], rss_bytes=3e9), measure("torchlm", [4.0, 4.0])]
    assert title(group) == "train 2 × 4, bfloat16"
    one, other = cells(report(*group), group)
    assert one["× torchlm"] == "2.00", "torchlm comes first among the bases"
    assert (one["median tokens/s"], one["ms per step"], one["GFLOP/s"]) == ("8.00", "1,000", "6")
    assert list(one) == list(other)
    assert "share of matmul peak" not in one
    assert [number(value) for value in (1234.5, 12.34, 1.234)] == ["1,234", "12.3", "1.23"]


def test_two_reports_with_nothing_in_common_are_not_compared(report: Callable, measure: Callable):
    with pytest.raises(UserError, match="--compare: the two have no measure in common; expected the same modes"):
        change_table(report(measure("jaxlm", [1.0])), report(measure("torchlm", [1.0])))
