"""The subject of a check: which text is fed, as much as is named, and models that bring no tokenizer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore import config as configs
from lmcore.config import Config, DataConfig, TokenizerConfig
from lmcore.data.chat import CHATML_TOKENS
from lmcore.data.marks import BEGINS, counts, token_ids
from lmcore.errors import UserError
from lmcore.run.saving import Checkpoints
from parity.check.subject import TOKENS, open_subject
from parity.convert.moments import zero_moments
from parity.convert.names import table
from parity.convert.states import State, write_state


def test_the_text_is_named_with_as_much_of_it_as_is_fed(text: Path, monkeypatch: pytest.MonkeyPatch):
    def named(given: list[str], **data: Any) -> str:
        config = Config(data=DataConfig(**data), tokenizer=TokenizerConfig(kind="bytes"))
        subject = open_subject(None, config, given)
        assert subject.text.split(" tokens of ")[0].removeprefix("the first ") == f"{len(subject.tokens):,}"
        return subject.text

    assert named([], stories=3).endswith(" tokens of 3 embedded stories")
    assert named([], stories=9999) == "the first 200,000 tokens of 1,500 embedded stories"
    assert named([str(text)], stories=3).endswith(f" tokens of {text}")
    monkeypatch.setattr("parity.check.subject.STORIES", 4)
    assert named([], stories=3, files=["no such file.txt"]).endswith(" tokens of 4 embedded stories")


def saved(folder: Path, config: Config) -> Path:
    """A run of torchlm without a tokenizer, each of whose weights holds its place in the table."""
    rows = enumerate(table(config.model))
    params = {row.name("torch"): np.full(row.shape_in("torch"), place, np.float64) for place, row in rows}
    state = State("torch", 3, params, replace(zero_moments(config, "torch", np.dtype("f8")), count=3))
    saver = Checkpoints(folder, "torch", keep=1)
    saver.save(3, 1.5, lambda place: write_state(place, state, config))
    saver.wait()
    saver.close()
    configs.save(config, folder / "config.yaml")
    return folder


def test_a_run_without_a_tokenizer_is_fed_random_ids(tiny_config: Config, text: Path, tmp_path: Path):
    run = saved(tmp_path / "run", tiny_config)
    subject = open_subject(run, Config(), [])
    assert subject.what == f"{run} (torch checkpoint, step 3)"
    assert subject.config.model == tiny_config.model
    assert [float(value.flat[0]) for value in subject.params.values()] == list(range(len(subject.params)))
    assert subject.params["layers.0.mlp.up_proj.kernel"].shape == (12, 20), "in canonical layout"
    assert subject.text == "200,000 random ids"
    assert (len(subject.tokens), subject.tokens.min(), subject.tokens.max()) == (TOKENS, 0, 36)
    with pytest.raises(UserError, match=r"--data\.files: .* has no tokenizer\.json to read text with; leave it out"):
        open_subject(run, Config(), [str(text)])


def test_a_text_of_nothing_is_refused(tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="found no text"):
        open_subject(None, Config(tokenizer=TokenizerConfig(kind="bytes")), [str(tmp_path / "empty.txt")])


def test_conversations_are_fed_with_their_marks_in_short_documents(tmp_path: Path):
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A fox."}]
    file = tmp_path / "chat.jsonl"
    file.write_text(f"{json.dumps({'messages': messages})}\n" * 20)
    own = TokenizerConfig(kind="bytes", special_tokens=list(CHATML_TOKENS))
    config = Config(data=DataConfig(format="chat", files=[str(file)]), tokenizer=own)
    subject = open_subject(None, config, [])
    assert counts(subject.tokens).sum() == 20 * 7
    assert (subject.tokens >= BEGINS).sum() > 20
    plain = open_subject(None, replace(config, data=DataConfig(stories=3)), [])
    masked = open_subject(None, replace(config, data=DataConfig(stories=3, document_mask=True)), [])
    np.testing.assert_array_equal(token_ids(masked.tokens), plain.tokens)
    assert (masked.tokens >= BEGINS).any()
