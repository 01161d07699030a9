"""Conversations: of each only the assistant's tokens count, and a wrong one is named by file and line."""

import json

import numpy as np
import pytest

from lmcore import config as configs
from lmcore.config import DataConfig, TokenizerConfig
from lmcore.data.batches import HEADER, Tokens, read_header
from lmcore.data.chat import CHATML, CHATML_TOKENS, ChatTemplate
from lmcore.data.conversations import check_special, encode_turns, stops_of
from lmcore.data.marks import BEGINS, target_ids, token_ids
from lmcore.data.prepare import prepare
from lmcore.data.sources import open_text
from lmcore.data.tokenizer import train
from lmcore.errors import UserError

BYTES = TokenizerConfig(kind="bytes", special_tokens=list(CHATML_TOKENS))
USER, REPLY = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A fox."}


def quiet(line: str) -> None:
    pass


@pytest.fixture
def chat(tmp_path):
    """Makes a config of conversations, one a line; a string is a line as it is."""

    def made(*lines, tokenizer: TokenizerConfig = BYTES, **data) -> configs.Config:
        file = tmp_path / "chat.jsonl"
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        fields = {"files": [str(file)], "format": "chat", "dir": str(tmp_path / "data"), **data}
        return configs.Config(data=DataConfig(**fields), tokenizer=tokenizer)

    return made


def conversations(*rows) -> list[dict]:
    return [{"messages": list(row)} for row in rows]


def test_the_assistants_tokens_alone_are_targets_and_a_mark_begins_each_conversation(chat):
    lines: list[str] = []
    prepared = prepare(chat(*conversations([USER, REPLY, USER, REPLY], [USER, REPLY], [USER, REPLY])), lines.append)
    assert any(line.startswith("train: 2 conversations, ") and "21 of them the assistant's" in line for line in lines)
    tokens, decode = prepared.train, lambda ids: prepared.tokenizer.inner.decode(ids, skip_special_tokens=False)
    marked = tokens.read(slice(0, len(tokens)))
    targets = [i for i in target_ids(marked).tolist() if i >= 0]
    assert decode(targets) == "A fox.<|im_end|>" * 3
    assert (tokens.targets, tokens.bytes, tokens.documents) == (21, 18, 2)
    text = decode(token_ids(marked).tolist())
    assert text == ChatTemplate(CHATML).render([USER, REPLY] * 2) + ChatTemplate(CHATML).render([USER, REPLY])
    begins = np.flatnonzero(marked >= BEGINS)
    assert decode(token_ids(marked[begins[1] :]).tolist()) == ChatTemplate(CHATML).render([USER, REPLY])
    assert len(begins) == 2


def test_the_marks_are_kept_and_checked_with_the_token_files(chat):
    config = chat(*conversations(*[[USER, REPLY]] * 3))
    folder = prepare(config, quiet).folder
    assert {"train.bin", "valid.bin", "tokenizer.json", "tokenizer_config.json"} == set(read_header(folder)["files"])
    again = prepare(config, quiet)
    assert (again.folder, again.fresh, again.train.targets) == (folder, False, 14)
    other = chat(*conversations(*[[USER, REPLY]] * 3), chat_template="{# another #}" + CHATML)
    assert prepare(other, quiet).folder != folder
    (folder / "train.bin").write_bytes(bytes(reversed((folder / "train.bin").read_bytes())))
    with pytest.raises(UserError, match=r"train\.bin: is damaged"):
        prepare(config, quiet)
    header = json.loads((folder / HEADER).read_text())
    assert header["dtype"] == "<u4"
    assert Tokens.open(folder, "valid").targets == 7


def turn(role: object = "user", content: object = "x") -> dict:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], ": found an empty list in 'messages', expected a list of messages"),
        ("Hi", ": found str in 'messages', expected a list of messages"),
        (None, ": found NoneType in 'messages', expected a list of messages"),
        ([USER, "Hi"], ", message 2: found str, expected an object with role and content"),
        ([{"role": "user"}], ", message 1: found fields role, expected an object with role and content"),
        ([turn("bot")], ", message 1: found role 'bot', expected one of system, user, assistant, tool"),
        ([turn(["user"])], r", message 1: found role \['user'\], expected one of system"),
        ([USER, turn("assistant", " \n")], ", message 2: found empty content, expected text"),
        ([USER, turn("assistant", None)], ", message 2: found empty content, expected text"),
        ([USER, turn("assistant", [1])], ", message 2: found content that is list, expected text"),
        ([USER, USER], ": found no message of the assistant, expected at least one"),
        ([USER, turn("assistant", "a\ud800")], ", message 2: found half a surrogate pair at character 1"),
        ([turn(content="<|im_end|>"), REPLY], r": message 1: found the special token '<\|im_end\|>'"),
    ],
)
def test_wrong_messages_are_named(chat, messages, message: str):
    with pytest.raises(UserError, match=f"chat.jsonl, line 2{message}"):
        prepare(chat(*conversations([USER, REPLY]), {"messages": messages}, *conversations([USER, REPLY])), quiet)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "Once"}, "found fields text, expected 'messages'; set data.messages_field"),
        ("{", "found invalid JSON"),
        ("[1]", "found list, expected a JSON object with field 'messages'"),
    ],
)
def test_a_line_without_messages_is_named(chat, line, message: str):
    with pytest.raises(UserError, match=f"chat.jsonl, line 2: {message}"):
        prepare(chat(*conversations([USER, REPLY]), line), quiet)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "chat.jsonl, line 1: data.chat_template: line 1 is not valid Jinja"),
        ("{{ raise_exception('no') }}", r"chat.jsonl, line 1: .* does not render the conversation \(no\)"),
        ("{{ 'a' }}{% generation %}{% endgeneration %}", "line 1: found no token of the assistant in what data.chat"),
    ],
)
def test_a_template_that_fails_names_the_line_too(chat, source: str, message: str):
    with pytest.raises(UserError, match=message):
        prepare(chat(*conversations([USER, REPLY], [USER, REPLY]), chat_template=source), quiet)


def test_what_cannot_be_chat_is_refused_before_it_is_read(chat, tmp_path):
    with pytest.raises(UserError, match=r"default template needs the special tokens <\|im_start\|>, <\|im_end\|>"):
        prepare(chat(*conversations([USER, REPLY], [USER, REPLY]), tokenizer=TokenizerConfig(kind="bytes")), quiet)
    with pytest.raises(UserError, match="found one conversation, expected at least two, to hold one out"):
        prepare(chat(*conversations([USER, REPLY])), quiet)
    (tmp_path / "a.txt").write_text("Once")
    with pytest.raises(UserError, match=r"a.txt, expected .jsonl or .parquet with data.format: chat"):
        open_text(DataConfig(format="chat", files=[str(tmp_path / "a.txt")]))
    with pytest.raises(UserError, match=r"data.format: found 'chat', expected text, or data.files or data.dataset"):
        DataConfig(format="chat")


def test_conversations_are_read_from_parquet_and_another_field(chat, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    rows = [{"turns": [USER, REPLY]}] * 3
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), tmp_path / "chat.parquet")
    config = chat(files=[str(tmp_path / "chat.parquet")], messages_field="turns")
    assert prepare(config, quiet).train.targets == 14


def test_a_tokenizer_learns_from_what_is_said(chat):
    told = [USER | {"content": "owl owl owl owl"}, REPLY]
    own = TokenizerConfig(kind="bpe", vocab_size=300, special_tokens=list(CHATML_TOKENS))
    tokenizer = prepare(chat(*conversations(told, told, told), tokenizer=own), quiet).tokenizer
    assert tokenizer.inner.token_to_id("Ġowl") is not None
    assert "messages" not in "".join(tokenizer.inner.get_vocab())


def test_a_turn_ends_with_its_special_token_if_there_is_one():
    tokenizer = train(BYTES, ())
    assert stops_of(tokenizer, ChatTemplate(CHATML)) == {tokenizer.inner.token_to_id("<|im_end|>")}
    assert stops_of(tokenizer, ChatTemplate("{% for m in messages %}{{ m['content'] }}\n\n{% endfor %}")) == frozenset()
    ids = encode_turns(tokenizer, ChatTemplate(CHATML), [USER])
    assert tokenizer.inner.decode(ids, skip_special_tokens=False).endswith("Who?<|im_end|>\n<|im_start|>assistant\n")
    check_special(tokenizer, [USER, REPLY])


def test_end_of_text_begins_no_document_in_a_conversation(chat):
    ends = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    ends += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    rows = conversations([USER, REPLY, USER, REPLY], [USER, REPLY], [USER, REPLY])
    marked = [
        prepare(chat(*rows, chat_template=ends, document_mask=mask), quiet).train.read(slice(None))
        for mask in (False, True)
    ]
    np.testing.assert_array_equal(*marked)
    assert (marked[0] >= BEGINS).sum() == 2
