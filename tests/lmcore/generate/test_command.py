"""What `generate` goes on from, and how it answers at a prompt: standard input, special tokens, Ctrl-C and NaN."""

import builtins
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lmcore.config import SampleConfig, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import NotFinite, UserError
from lmcore.generate import command as generation
from lmcore.generate.command import Finite, Writer


class Echo:
    """Writes `!` for ever, and remembers what it read."""

    def __init__(self, nan: bool = False):
        self.nan = nan
        self.read: list[list[int]] = []

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> None:
        self.read += [row[pad:].tolist() for row, pad in zip(tokens, pads, strict=True)]

    def extend(self, state: None, uniforms: np.ndarray) -> tuple[np.ndarray, None]:
        return np.full(uniforms.shape, ord("!"), np.int32), None

    def has_nan(self, state: None) -> bool:
        return self.nan


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers.train(TokenizerConfig(kind="bytes", special_tokens=["<|user|>"]), [])


def writer(tokenizer: Tokenizer, model: Echo, special: bool = False) -> Writer:
    return Writer(Finite(model), tokenizer, SampleConfig(max_tokens=3), 64, special)


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "in").write_bytes("A fox é\r\nand a cat\n".encode())
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield


def test_text_piped_in_is_the_prompt_unless_one_is_given(piped: None):
    assert generation._prompts(["given"], "default") == ["given"]
    assert generation._prompts(None, "default") == ["A fox é\nand a cat"]


def test_a_dash_stands_for_standard_input(piped: None):
    assert generation._prompts(["one", "-"], "default") == ["one", "A fox é\nand a cat"]


@pytest.mark.parametrize("source", [os.devnull, None, "empty"])
def test_where_nothing_is_piped_in_the_runs_prompt_is_taken(source: str | None, tmp_path: Path, monkeypatch):
    (tmp_path / "empty").touch()
    with (tmp_path / source if source == "empty" else Path(source or os.devnull)).open() as file:
        monkeypatch.setattr(sys, "stdin", file if source else None)
        assert generation._prompts(None, "default") == ["default"]


def test_a_pipe_is_read_and_what_is_no_text_is_one_line(monkeypatch: pytest.MonkeyPatch):
    reading, writing = os.pipe()
    os.write(writing, b"caf\xe9")
    os.close(writing)
    with os.fdopen(reading) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(UserError, match="--prompt: found text on standard input that is not UTF-8"):
            generation._prompts(None, "default")


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_are_read_from_prompts_when_asked_for(tokenizer: Tokenizer, special: bool, capsys):
    model = Echo()
    writer(tokenizer, model, special).write(["<|user|>a"])
    assert model.read == [[257, 97] if special else [*b"<|user|>a"]]
    assert capsys.readouterr().out == "<|user|>a!!!\n"


def test_ctrl_c_at_the_prompt_ends_the_line_only(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys):
    answers: list[str | type[BaseException]] = ["a", KeyboardInterrupt, "b", EOFError]

    def answer(prompt: str) -> str:
        found = answers.pop(0)
        if isinstance(found, str):
            return found
        raise found

    monkeypatch.setattr(builtins, "input", answer)
    model = Echo()
    writer(tokenizer, model).interact()
    assert model.read == [[97], [98]]
    assert capsys.readouterr().out == "a!!!\n\nb!!!\n"


def test_nan_is_no_text(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]):
    writer(tokenizer, Echo()).write(["a"])
    capsys.readouterr()
    with pytest.raises(NotFinite, match="gives NaN for every token") as caught:
        writer(tokenizer, Echo(nan=True)).write(["a"])
    assert caught.value.exit_code == 1
    assert capsys.readouterr().out == "a\n"  # the error's line begins a new one


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_no_control_characters(terminal: bool, tokenizer: Tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    writer(tokenizer, Echo()).write(["\x1b[2Jé\ta\r"])
    assert capsys.readouterr().out == ("\\x1b[2Jé\ta\\r!!!\n" if terminal else "\x1b[2Jé\ta\r!!!\n")


def test_another_form_of_weights_is_one_line():
    with pytest.raises(UserError, match="--weights: found 'int9', expected one of full, int8"):
        generation.main(["runs/none", "--weights", "int9"], "package", lambda config: None)
