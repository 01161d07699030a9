"""Killed commands end as unbroken ones do, and a run that does not is called lost."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lmcore.run.checkpoints import list_checkpoints
from tests.torture import kills
from tests.torture.outcome import Outcome
from tests.torture.programs import Moment, Programs, difference, result_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose unbroken runs serve all tests."""
    return tmp_path_factory.mktemp("kills")


@pytest.mark.parametrize("twin", ["torchlm", pytest.param("jaxlm", marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_the_unbroken_one_and_any_loss_would_be_seen(twin: str, folder: Path):
    outcomes = list(kills.faults(2, folder, twins=(twin,)))
    assert [(outcome.verdict, outcome.detail) for outcome in outcomes] == [("survived", "")] * 2
    unbroken = result_of(folder / twin)
    assert len(unbroken.state) > 20, "weights and moments"
    assert [row["step"] for row in unbroken.rows] == list(range(1, 13))
    assert unbroken.samples.keys() == {f"sample-0000{step:02}.txt" for step in (3, 6, 9, 12)}
    run = (folder / "train-0").rename(folder / f"spoilt {twin}")
    spoiling = {
        "step_00000013.tmp/state/a": lambda: append(run / "checkpoints/step_00000013.tmp/state/a", ""),
        ".config.yaml.part": lambda: append(run / ".config.yaml.part", ""),
        "lock: still names ": lambda: append(run / ".lock", "12"),
        "samples differ": lambda: append(run / "samples" / "sample-000012.txt", "!"),
        "metrics: steps ": lambda: append(run / "metrics.jsonl", (run / "metrics.jsonl").read_text()),
        "state: ": lambda: shutil.rmtree(list_checkpoints(run)[-1].folder),
    }
    for problem, spoil in spoiling.items():
        assert problem not in difference(result_of(run), unbroken)
        spoil()
        assert problem in difference(result_of(run), unbroken)


def test_of_prepared_text_only_a_live_owner_of_the_lock_counts(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = tmp_path / ".lock"
    lock.write_text("")
    free = kills.contents(tmp_path)
    for pid, same in ((ended.pid, True), (os.getppid(), False)):
        lock.write_text(json.dumps({"pid": pid, "host": socket.gethostname()}) + "\n")
        assert (kills.contents(tmp_path) == free) == same
    lock.write_text("something else")
    assert kills.contents(tmp_path) != free


def append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def test_a_command_that_does_not_go_on_is_lost(folder: Path):
    programs = Programs(folder)
    victim = kills.train_victim(programs, "torchlm", "never resumed")
    words = [word.replace("resume=auto", "resume=never") for word in victim.words]
    moment = Moment("step 1", kills.has_rows(folder / "never resumed", 1), 0)
    careless = replace(victim, words=words, moments=[lambda rng: moment])
    [outcome] = kills.kill(programs, careless, 1, random.Random(0))
    assert outcome == Outcome("torchlm.train killed 0.000 s after step 1", "lost", outcome.detail)
    assert outcome.detail.startswith("exit code 2: error: run_dir: ")


def test_a_killed_conversion_leaves_the_old_run_or_the_new_one(folder: Path):
    programs = Programs(folder)
    victim = kills.convert_victim(programs, "torchlm", "convert")
    [outcome] = kills.kill(programs, victim, 1, random.Random(1))
    assert outcome.verdict == "survived", outcome
    append(folder / "convert" / ".out-1.tmp" / "file", "")
    assert victim.judge() == "files: .out-1.tmp/file"
