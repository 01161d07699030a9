"""A chat keeps its history, ends a turn where the template does, and ends with its input."""

import io
import sys

import numpy as np
import pytest

from lmcore.config import SampleConfig, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.chat import CHATML, CHATML_TOKENS, ChatTemplate
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.files import Damaged
from lmcore.generate.chat import Chat, reply, run_template

TURN = "<|im_start|>{}\n{}<|im_end|>\n"


class Speaker:
    """Replies `fox` and ends its turn; remembers what it read. Ctrl-C is pressed in the reply of that number."""

    def __init__(self, tokenizer: Tokenizer, interrupted: int = 0):
        self.tokenizer, self.interrupted = tokenizer, interrupted
        self.read: list[str] = []

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> int:
        self.read.append(self.tokenizer.inner.decode(tokens[0, pads[0] :].tolist(), skip_special_tokens=False))
        return 0

    def extend(self, state: int, uniforms: np.ndarray) -> tuple[np.ndarray, int]:
        if state and len(self.read) == self.interrupted:
            raise KeyboardInterrupt
        end = 32 if len(self.read) == self.interrupted else self.tokenizer.inner.token_to_id("<|im_end|>")
        return np.resize([*b"fox", end], uniforms.shape).astype(np.int32), 1

    def has_nan(self, state: int) -> bool:
        return False


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tokenizers.train(TokenizerConfig(kind="bytes", special_tokens=list(CHATML_TOKENS)), [])


def chat(tokenizer: Tokenizer, speaker: Speaker, context: int = 400, system: str | None = None) -> Chat:
    return Chat(speaker, tokenizer, ChatTemplate(CHATML), SampleConfig(max_tokens=20), context, system)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n\nAlone?\n"))


def test_a_reply_ends_with_its_turn_and_the_next_one_reads_it(tokenizer: Tokenizer, capsys, lines):
    speaker = Speaker(tokenizer)
    talk = chat(tokenizer, speaker, system="Be kind.")
    talk.interact()
    assert capsys.readouterr() == ("fox\nfox\n", ""), "no prompt where the input is no terminal"
    begin = TURN.format("system", "Be kind.") + TURN.format("user", "Who?") + "<|im_start|>assistant\n"
    assert speaker.read == [
        begin,
        begin + "fox<|im_end|>\n" + TURN.format("user", "Alone?") + "<|im_start|>assistant\n",
    ]
    assert [message["content"] for message in talk.messages] == ["Be kind.", "Who?", "fox", "Alone?", "fox"]
    assert talk.options.seed == 2


def test_ctrl_c_stops_a_reply_and_between_replies_it_ends(tokenizer: Tokenizer, monkeypatch, capsys):
    speaker = Speaker(tokenizer, interrupted=1)
    typed = iter(["Who?", "What?", KeyboardInterrupt])

    def ask(prompt: str) -> str:
        assert prompt == "> "
        word = next(typed)
        if word is KeyboardInterrupt:
            raise KeyboardInterrupt
        return word

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    talk = chat(tokenizer, speaker)
    talk.interact()
    assert capsys.readouterr().out == "fox fox fox fox \nfox\n"
    assert talk.messages[1]["content"] == "fox fox fox fox ", "what was said stays said"


def test_the_oldest_turns_are_left_out_of_a_short_context(tokenizer: Tokenizer, capsys):
    speaker = Speaker(tokenizer)
    talk = chat(tokenizer, speaker, context=100, system="S")
    for word in ("One", "Two", "Three"):
        talk.say(word)
    assert "One" in speaker.read[1]
    assert "One" not in speaker.read[2]
    assert speaker.read[2].startswith(TURN.format("system", "S") + TURN.format("user", "Two"))
    assert len(talk.messages) == 7, "the history itself is whole"


def test_a_special_token_is_refused_and_on_a_terminal_said(tokenizer: Tokenizer, monkeypatch, capsys):
    talk = chat(tokenizer, Speaker(tokenizer))
    with pytest.raises(UserError, match=r"message 1: found the special token '<\|im_end\|>'"):
        talk.say("a<|im_end|>")
    typed = iter(["<|im_start|>", EOFError])

    def ask(prompt: str) -> str:
        word = next(typed)
        if word is EOFError:
            raise EOFError
        return word

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    talk.interact()
    assert "note: message 1: found the special token '<|im_start|>'" in capsys.readouterr().err
    assert talk.messages == []


def test_a_reply_grows(tokenizer: Tokenizer):
    growing = [
        text.text
        for text in reply(
            Speaker(tokenizer, interrupted=1),
            tokenizer,
            ChatTemplate(CHATML),
            [{"role": "user", "content": "?"}],
            SampleConfig(max_tokens=16),
            context=200,
        )
    ]
    assert growing[-1] == "fox " * 4


def test_the_template_is_the_runs_or_the_options(tmp_path):
    with pytest.raises(UserError, match=r"found no chat template, .* name one with --template"):
        run_template(tmp_path, None)
    ChatTemplate(CHATML).save(tmp_path)
    assert run_template(tmp_path, None).source == CHATML
    assert run_template(tmp_path, "{{ 1 }}").source == "{{ 1 }}"
    with pytest.raises(UserError, match="--template: found no file 'absent'"):
        run_template(tmp_path, "absent")


def test_a_changed_template_is_damaged(tmp_path, monkeypatch):
    ChatTemplate(CHATML).save(tmp_path)
    (tmp_path / "meta.json").touch()
    monkeypatch.setattr(
        "lmcore.generate.chat.read_header", lambda folder: {"files": {"tokenizer_config.json": "0" * 64}}
    )
    with pytest.raises(Damaged, match=r"tokenizer_config\.json"):
        run_template(tmp_path, None)
    assert run_template(tmp_path, None, verify=False).source == CHATML
