"""The command: a table, its JSON and its exit code; mistakes are one line and exit code 2."""

import json
from pathlib import Path

import pytest

from parity.audit.command import main

SMALL = ["--model.dim", "64", "--model.n_layers", "2", "--model.n_heads", "4", "--model.ffn_dim", "160"]
SMALL += ["--train.precision", "bfloat16", "--tokenizer.vocab_size", "320"]


def test_an_audit_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "audit.json"
    assert main([*SMALL, "--platform", "cuda", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bfloat16, T = 256, 1 devices"
    assert lines[-1] == "9 of 9 checks passed"
    assert any(line.split() == ["ok", "cuda", "train", "lowered", "host", "callbacks", "none"] for line in lines)
    audit = json.loads(file.read_text())
    assert (audit["length"], len(audit["checks"])) == (256, 9)


def test_what_fails_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--platform", "torch", "--model.attention_softcap", "20"]) == 1
    text = capsys.readouterr().out
    assert "\nFAIL torch     train " in text
    assert text.endswith("\n5 of 7 checks passed\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--platform tpus", "--platform: found 'tpus', expected one of all, cuda, tpu, torch"),
        ("--devices 0", "--devices: found 0, expected at least 1"),
        ("--devices 3", "train.batch_size: found 8, expected a multiple of the 3 parts of the mesh (data 3)"),
        ("--json nowhere/audit.json", "--json: 'nowhere/audit.json' is in no folder that exists"),
        ("--tokenizer.kind chars", "model.vocab_size: found 0, expected a number"),
    ],
)
def test_a_mistake_is_one_line(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *options.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1
