"""Tokenizers as fields of a GGUF file; test_gguf.py asks llama.cpp whether it gives the same ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmcore.config import TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.stories import stories
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from parity.convert.vocabulary import (
    BYTE_TOKEN,
    CONTROL,
    LLAMA3,
    NEVER,
    NORMAL,
    QWEN2,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    tokenizer_fields,
)


def trained(kind: Any, **more: Any) -> Tokenizer:
    size = {"vocab_size": 300} if kind == "bpe" else {}
    return tokenizers.train(TokenizerConfig(kind=kind, **size, **more), stories(50, seed=0))


def loaded(state: dict[str, Any], folder: Path, eot: str = "<|endoftext|>", stops: tuple[str, ...] = ()) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    return Tokenizer.load(folder / "tokenizer.json", eot, stops)


def test_a_byte_level_bpe_is_gpt2s():
    tokenizer = trained("bpe", special_tokens=["<|im_end|>"], stop_tokens=["<|im_end|>"])
    fields = tokenizer_fields(tokenizer, 303)
    assert (fields["model"], fields["pre"]) == ("gpt2", "gpt-2")
    assert fields["merges"] == [" ".join(pair) for pair in json.loads(tokenizer.to_json())["model"]["merges"]]
    assert fields["tokens"][:3] == ["<|endoftext|>", "<|im_end|>", "!"]
    assert fields["tokens"][300:] == ["[PAD300]", "[PAD301]", "[PAD302]"]
    assert fields["token_type"] == [CONTROL] * 2 + [NORMAL] * 298 + [UNUSED] * 3
    ids = ("bos", "eos", "eot")
    assert [fields[f"{name}_token_id"] for name in ids] == [0, 0, 1]
    assert (fields["add_bos_token"], fields["add_eos_token"]) == (False, False)


def test_bytes_are_a_bpe_whose_one_merge_never_applies():
    fields = tokenizer_fields(trained("bytes"), 257)
    assert (fields["model"], fields["pre"], fields["merges"]) == ("gpt2", "gpt-2", [NEVER])
    left, _ = NEVER.split(" ")
    assert left not in fields["tokens"], "a token would let the merge apply"


def test_a_padded_token_has_a_text_of_its_own(tmp_path: Path):
    state = json.loads(trained("bpe").to_json())
    state["added_tokens"].append(state["added_tokens"][0] | {"id": 300, "content": "[PAD302]", "special": False})
    fields = tokenizer_fields(loaded(state, tmp_path), 304)
    assert fields["tokens"][300:] == ["[PAD302]", "[PAD301]", "[PAD302]]", "[PAD303]"]
    assert fields["token_type"][300:] == [USER_DEFINED, UNUSED, UNUSED, UNUSED]


@pytest.mark.parametrize(("pattern", "pre"), [(LLAMA3, "llama-bpe"), (QWEN2, "qwen2")])
def test_known_ways_to_split_words_are_named(pattern: str, pre: str, tmp_path: Path):
    state = json.loads(trained("bpe").to_json())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = state["pre_tokenizer"] | {"use_regex": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    state["model"]["ignore_merges"] = pre == "llama-bpe"
    assert tokenizer_fields(loaded(state, tmp_path), 300)["pre"] == pre
    state["model"]["ignore_merges"] = pre != "llama-bpe"
    with pytest.raises(UserError, match=f"found model.ignore_merges .* with the words of {pre}"):
        tokenizer_fields(loaded(state, tmp_path), 300)
    split["pattern"] = {"Regex": r"\w+"}
    with pytest.raises(UserError, match="found pre_tokenizer Split and ByteLevel"):
        tokenizer_fields(loaded(state, tmp_path), 300)
    state["model"]["ignore_merges"] = False
    state["pre_tokenizer"]["pretokenizers"] = [
        {"type": "Digits", "individual_digits": True},
        level | {"use_regex": True},
    ]
    assert tokenizer_fields(loaded(state, tmp_path), 300)["pre"] == "smollm"


def test_sentencepieces_scores_are_the_order_of_merges(sentencepiece: str, llama_tokenizer: str, tmp_path: Path):
    state = json.loads(sentencepiece)
    fields = tokenizer_fields(loaded(state, tmp_path, "</s>"), 340)
    assert (fields["model"], fields["add_space_prefix"], fields["add_bos_token"]) == ("llama", True, True)
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["unknown_token_id"]) == (1, 2, 0)
    assert fields["token_type"][:4] == [UNKNOWN, CONTROL, CONTROL, BYTE_TOKEN]
    assert fields["tokens"][3] == "<0x00>"
    vocab = state["model"]["vocab"]
    made = list(dict.fromkeys("".join(pair) for pair in state["model"]["merges"]))
    scores = [fields["scores"][vocab[token]] for token in made]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    with pytest.raises(UserError, match="found no merge of"):
        tokenizer_fields(loaded(json.loads(llama_tokenizer), tmp_path, "</s>"), 340)
    state["model"]["merges"].append(state["model"]["merges"][0])
    with pytest.raises(UserError, match="that do not follow one another"):
        tokenizer_fields(loaded(state, tmp_path, "</s>"), 340)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("roberta", "pre_tokenizer ByteLevel"),
        ("llama3", "pre_tokenizer Split and ByteLevel"),
        ("metaspace", "pre_tokenizer Metaspace"),
        ("unigram", "model.type 'Unigram'"),
    ],
)
def test_what_llama_cpp_lacks_is_refused_in_a_line(name: str, found: str, foreign_tokenizers: dict[str, Path]):
    tokenizer = Tokenizer.load(foreign_tokenizers[name], "</s>")
    with pytest.raises(UserError) as caught:
        tokenizer_fields(tokenizer, 400)
    assert f"tokenizer.json: found {found}, expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_characters_are_refused():
    with pytest.raises(UserError, match=r"found pre_tokenizer None, expected ByteLevel .*kind bpe or bytes"):
        tokenizer_fields(trained("chars"), 100)


def edited(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    state = json.loads(tokenizer.to_json())
    for name, value in changes.items():
        place = state["model"] if name in state["model"] else state
        place[name] = value
    return state


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"end_of_word_suffix": "</w>"}, "model.end_of_word_suffix '</w>'"),
        ({"normalizer": {"type": "NFC"}}, "normalizer 'NFC'"),
        ({"ignore_merges": True}, "model.ignore_merges True with the words of gpt-2"),
    ],
)
def test_settings_that_change_the_ids_are_refused(changes: dict[str, Any], found: str, tmp_path: Path):
    tokenizer = loaded(edited(trained("bpe"), **changes), tmp_path)
    with pytest.raises(UserError, match=rf"tokenizer.json: found {found}"):
        tokenizer_fields(tokenizer, 300)


def test_templates_and_stop_tokens_have_a_limit(tmp_path: Path):
    special = ["<a>", "<b>", "<c>"]
    tokenizer = trained("bpe", special_tokens=special, stop_tokens=special)
    with pytest.raises(UserError, match="found 4 tokens that end a text, expected at most 3 in GGUF"):
        tokenizer_fields(tokenizer, 300)
    state = json.loads(tokenizer.to_json())
    ids = {token: {"id": token, "ids": [number], "tokens": [token]} for number, token in enumerate(special, start=1)}
    one, text = ({"SpecialToken": {"id": "<a>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}})
    template = {"type": "TemplateProcessing", "pair": [text, text], "special_tokens": ids}
    for single, found in (([one, one, text], "2 tokens before each text"), ([text, one], "tokens after each text")):
        state["post_processor"] = template | {"single": single}
        with pytest.raises(UserError, match=f"found {found}"):
            tokenizer_fields(loaded(state, tmp_path), 300)
