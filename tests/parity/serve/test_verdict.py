"""The check in the background: its real verdict, or why there is none, and no process is left."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from parity.arrays import Arrays
from parity.serve.verdict import Check
from tests.parity.serve.conftest import write_run

FEW = ["--rungs", "2", "4", "--dtype", "float32"]


def finished(check: Check) -> dict:
    """The outcome, waited for."""
    check.start()
    for _ in range(1200):
        if (found := check.outcome())["state"] != "checking":
            return found
        time.sleep(0.1)
    raise AssertionError("the check does not end")


def test_the_verdict_is_that_of_the_check(run: Path, tmp_path: Path):
    check = Check([str(run), *FEW], tmp_path, tmp_path / "mine.html", "a few rungs")
    assert check.outcome()["state"] == "checking", "not started"
    found = finished(check)
    report = json.loads((tmp_path / "check.json").read_text())
    count = len([result for result in report["results"] if result["verdict"] == "pass"])
    assert count > 3
    assert {key: found[key] for key in ("state", "verdict", "comparisons", "report", "scope")} == {
        "state": "passed",
        "verdict": f"The two are the same model: {count} comparisons passed in float32.",
        "comparisons": count,
        "report": True,
        "scope": "a few rungs",
    }
    assert report["verdict"] in (tmp_path / "mine.html").read_text()
    time.sleep(0.3)
    assert check.outcome() == found, "the time does not go on"


def test_a_check_that_fails_is_no_success(tmp_path: Path):
    def spoil(params: Arrays) -> None:
        params["norm.weight"][0] = np.nan

    run = write_run(tmp_path / "spoilt", spoil)
    found = finished(Check([str(run), *FEW], tmp_path))
    assert found["state"] == "failed"
    assert "They differ first in logits" in found["verdict"]
    assert found["report"]


def test_a_check_that_cannot_run_says_why(tmp_path: Path):
    found = finished(Check([str(tmp_path / "nothing"), *FEW], tmp_path))
    assert found["state"] == "error"
    assert found["verdict"].startswith(f"The check could not be run: {tmp_path / 'nothing'}: found nothing, expected")
    assert not found["report"]


def test_without_a_check_none_is_claimed(tmp_path: Path):
    check = Check([], tmp_path)
    check.start()
    assert check.outcome()["state"] == "off"
    assert check.outcome()["verdict"] == "The ladder was not climbed: --check none."
    check.end()


def children(group: int) -> list[int]:
    """Processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed as Linux lists them")
def test_the_end_takes_all_processes_along(run: Path, tmp_path: Path):
    check = Check([str(run)], tmp_path)
    check.start()
    group = check._process.pid
    for _ in range(600):
        if len(children(group)) > 1:  # one for each precision
            break
        time.sleep(0.1)
    assert len(children(group)) > 1
    assert os.getpriority(os.PRIO_PROCESS, group) > os.getpriority(os.PRIO_PROCESS, 0), "it gives way"
    check.end()
    for _ in range(50):
        if not children(group):
            break
        time.sleep(0.1)
    assert children(group) == []
    check.end()
