"""run.json says where a run comes from, and every start of it stays on record."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.config import Config, TrainConfig, flatten
from lmcore.describe import project, versions
from lmcore.run.provenance import MAX_STARTS, record

FACTS = {"framework": "jax", "device": "cpu", "parameters": 42}


def recorded(folder: Path, step: int = 0) -> dict:
    config = Config(run_dir=str(folder), train=TrainConfig(seed=7))
    record(folder, step, FACTS, config, {"train.bin": "ab12"})
    return json.loads((folder / "run.json").read_text())


def test_a_new_run_records_model_text_config_and_its_start(tmp_path: Path):
    found = recorded(tmp_path)
    assert {name: found[name] for name in FACTS} == FACTS
    assert (found["seed"], found["text"]) == (7, {"train.bin": "ab12"})
    assert found["config"] == dict(flatten(Config(run_dir=str(tmp_path), train=TrainConfig(seed=7))))
    assert found["config"]["optim.warmup_steps"] == 35, "derived values too"
    [start] = found["starts"]
    assert start["step"] == 0
    assert start["twinlm"] == project()
    assert start.items() >= versions().items()


def test_a_resumed_run_keeps_its_first_start_and_the_latest(tmp_path: Path):
    for step in range(MAX_STARTS + 5):
        found = recorded(tmp_path, step)
    steps = [start["step"] for start in found["starts"]]
    assert steps == [0, *range(5, MAX_STARTS + 5)]
    assert [start["step"] for start in recorded(tmp_path)["starts"]] == [0], "another run in its place"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"starts": 3}', '{"framework": "jax"'])
def test_a_record_that_is_damaged_or_old_does_not_stop_a_run(tmp_path: Path, content: str):
    (tmp_path / "run.json").write_text(content)
    assert [start["step"] for start in recorded(tmp_path, 5)["starts"]] == [5]


def test_the_command_can_be_pasted():
    script = "import sys; from lmcore.run.provenance import command_line; print(command_line())"
    words = ["--sample.prompt", "it's a 'tale'"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env=environment)
    assert shlex.split(done.stdout) == ["-c", *words]
    main = subprocess.run(
        [sys.executable, "-m", "tests.lmcore.run.test_provenance", *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert shlex.split(main.stdout) == ["python", "-m", "tests.lmcore.run.test_provenance", *words]


if __name__ == "__main__":
    from lmcore.run.provenance import command_line

    print(command_line())
