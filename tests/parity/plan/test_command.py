"""The command: a plan, its JSON and its exit code; mistakes are one line and exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parity.plan.command import main

SMALL = ["--model.dim", "32", "--model.n_layers", "2", "--model.n_heads", "4", "--model.max_seq_len", "16"]
SMALL += ["--train.batch_size", "16", "--tokenizer.vocab_size", "300", "--model.scan_layers", "true"]


def test_a_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    options = ["--devices", "4", "--parallel.fsdp", "2", "--parallel.tensor", "2", "--json", str(file)]
    assert main([*SMALL, *options, "--meshes", "2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("quickstart: ")
    assert "4 × cpu: data 1 × fsdp 2 × tensor 2\n" in text
    assert "counted in the program for cpu:" in text
    plan = json.loads(file.read_text())
    assert plan["compiled"][0]["state"] == plan["mesh"]["memory"]["state"]
    assert len(plan["best"]) == 2


def test_what_does_not_fit_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--config llama_8b --parallel.data -1 --parallel.fsdp 1 --train.batch_size 32 --train.grad_accum 1"
    assert main([*options.split(), "--devices", "8", "--target", "tpu:v5e:2x4", "--compile", "false"]) == 1
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "\nwhat would make it fit:\n  --devices 16 --parallel.data 1 " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target tpu:v9", "--target: found 'tpu:v9', expected one of cpu, tpu:v4"),
        ("--devices 0", "--devices: found 0, expected at least 1"),
        ("--devices 6 --parallel.fsdp 4", "parallel: found fsdp 4, expected a divisor of the 6 devices of this run"),
        ("--devices 8 --parallel.tensor 8", "parallel.tensor: found 8, expected a divisor of model.n_heads = 4"),
        ("--devices 3", "train.batch_size: found 16, expected a multiple of the 3 parts of the mesh (data 3)"),
        ("--devices 2 --train.grad_accum 16", "train.batch_size: found 16 (1 sequences at a time with "),
        ("--tokenizer.kind chars", "model.vocab_size: found 0, expected a number"),
        ("--train.precision float8", "train.precision: found 'float8'"),
        ("--json nowhere/plan.json", "--json: 'nowhere/plan.json' is in no folder that exists"),
        ("--model.n_head 3", "--model.n_head: no such field; did you mean model.n_heads?"),
    ],
)
def test_a_mistake_is_one_line(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *options.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_a_batch_that_cannot_be_split_comes_with_a_mesh_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *["--devices", "32", "--target", "cuda:h100", "--compile", "false"]]) == 2
    error = capsys.readouterr().err
    assert (hint := re.search(r"\(data 32\); (--parallel.data .*) would fit\n", error))
    assert main([*SMALL, *hint[1].split(), *["--devices", "32", "--target", "cuda:h100", "--compile", "false"]]) == 0


def test_help_needs_no_framework() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "parity.plan", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--devices DEVICES" in ended.stdout
    assert "| jax\n" not in ended.stderr
    assert "| torch\n" not in ended.stderr
