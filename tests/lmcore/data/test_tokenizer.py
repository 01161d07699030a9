"""Text survives the tokenizer, control tokens never come from text, and one file says all."""

import json
import time

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from lmcore.config import TokenizerConfig
from lmcore.data.tokenizer import WORD, Tokenizer, _with_short_words, train
from lmcore.errors import UserError

EOT = "<|endoftext|>"
SOME = ["The cat sat on the mat. The cat sat still.\n", "A dog saw the cat; the cat saw the dog.\n"] * 5
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    configs = {"bpe": {"vocab_size": 270}, "chars": {}, "bytes": {}}
    return {kind: train(TokenizerConfig(kind=kind, **more), SOME) for kind, more in configs.items()}


@given(text=UNICODE)
@example(text=f"a{EOT}b\0\n")
@example(text="🧑‍🚀é שלום 字")
@example(text=" \t\r\n  \u2028")
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_any_text_round_trips_and_never_gives_a_control_token(made, kind, text):
    tokenizer = made[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot_id not in ids
    if kind == "bytes":
        assert bytes(ids) == text.encode()


def test_without_our_setting_the_library_reads_control_tokens_from_text(made):
    plain = tokenizers.Tokenizer.from_str(made["bpe"].inner.to_str())
    assert plain.encode(EOT).ids == [made["bpe"].eot_id] != made["bpe"].encode(EOT)


def test_sizes_and_ids_are_those_of_the_documentation(made):
    assert (made["bpe"].eot_id, made["bpe"].vocab_size, made["bpe"].unk_id) == (0, 270, None)
    assert (made["bytes"].eot_id, made["bytes"].vocab_size, made["bytes"].unk_id) == (256, 257, None)
    characters = sorted(set("".join(SOME)))
    assert (made["chars"].eot_id, made["chars"].unk_id) == (0, 1)
    assert made["chars"].encode("".join(characters)) == list(range(2, 2 + len(characters)))
    assert made["chars"].vocab_size == 2 + len(characters)


def test_unseen_characters_become_unk_one_each(made):
    tokenizer = made["chars"]
    assert tokenizer.encode("caé字t") == [*tokenizer.encode("ca"), 1, 1, *tokenizer.encode("t")]


def test_special_tokens_are_reserved():
    tokenizer = train(TokenizerConfig(kind="bpe", vocab_size=270, special_tokens=["<|user|>"]), SOME)
    assert tokenizer.inner.token_to_id("<|user|>") == 1
    assert 1 not in tokenizer.encode("<|user|>")
    assert tokenizer.vocab_size == 270


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_a_special_token_that_text_can_spell_is_refused(kind):
    with pytest.raises(UserError, match=r"special token 'c', expected a string"):
        train(TokenizerConfig(kind=kind, eot_token="c"), SOME)


@given(data=st.data())
@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_streamed_text_is_the_decoded_text_in_whole_characters(made, kind, data):
    tokenizer = made[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.stream()
    assert "".join([*map(stream.feed, ids), stream.flush()]) == tokenizer.decode(ids)


KINDS = ("llama", "gpt2", "roberta", "llama3", "metaspace", "unigram", "wordpiece")


@pytest.fixture(scope="module")
def others(foreign_tokenizers) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.load(path, "</s>") for kind, path in foreign_tokenizers.items()}


@given(data=st.data())
@pytest.mark.parametrize("prompt", ["", "Once upon a time", "é", " "])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_is_what_decoding_prompt_and_tokens_adds(others, kind, prompt, data):
    tokenizer = others[kind]
    begin = tokenizer.encode_prompt(prompt)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.stream(begin)
    streamed = "".join([*map(stream.feed, ids), stream.flush()])
    assert streamed == tokenizer.decode(begin + ids)[len(tokenizer.decode(begin)) :]


def test_a_stream_keeps_the_first_space_and_bytes_that_form_no_character(others):
    tokenizer = others["llama"]
    begin, there, *_ = tokenizer.encode_prompt("time"), *tokenizer.encode("there was")
    stream = tokenizer.stream(begin)
    assert stream.feed(there).startswith(" t")
    assert tokenizer.decode([there]).startswith("t"), "alone, it begins a text"
    byte = {value: tokenizer.inner.token_to_id(f"<0x{value:02X}>") for value in (0xE2, 0x82, 0xAC, 0xFF)}
    assert [stream.feed(byte[value]) for value in (0xE2, 0x82, 0xAC)] == ["", "", ""], "a byte more would undo the sign"
    assert stream.feed(there).startswith("€ t")
    assert [stream.feed(byte[0xE2]), stream.feed(byte[0xFF]), stream.flush()] == ["", "", "\ufffd\ufffd"]


def test_a_prompt_begins_as_the_template_says_and_ours_with_nothing(others, made):
    for text in ("", "Once", "<s>Once</s>"):
        plain = others["llama"].inner.encode(text, add_special_tokens=True).ids
        assert others["llama"].encode_prompt(text) == plain
        assert plain[0] == 1
    assert made["bytes"].encode_prompt("ab") == [*b"ab"]
    assert made["bytes"].encode_prompt("") == [256]


def test_special_tokens_are_read_from_a_prompt_only_when_asked_for(others):
    tokenizer = others["llama"]
    once = tokenizer.encode("Once")
    assert tokenizer.encode_prompt("<s>Once</s>", special=True) == [1, *once, 2], "and the first is not doubled"
    assert tokenizer.encode_prompt("</s>", special=True) == [1, 2]
    assert tokenizer.encode_prompt("", special=True) == [1]
    assert 2 not in tokenizer.encode_prompt("Once</s>")
    assert 2 not in tokenizer.encode("Once</s>"), "and documents never"


def test_a_foreign_file_is_saved_as_it_was(foreign_tokenizers, tmp_path):
    for path in foreign_tokenizers.values():
        tokenizer = Tokenizer.load(path, "</s>")
        tokenizer.encode_prompt("a", special=True)
        tokenizer.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_what_makes_two_encodings_differ_is_switched_off_and_said(others, foreign_tokenizers, tmp_path):
    state = json.loads(foreign_tokenizers["llama"].read_text())
    state["model"]["dropout"] = 0.5
    text = "Once upon a time there was a fox " * 5
    plain = tokenizers.Tokenizer.from_str(json.dumps(state))
    assert len({tuple(plain.encode(text).ids) for _ in range(9)}) > 1
    plain.enable_truncation(2)
    plain.enable_padding(length=8)
    plain.save(str(tmp_path / "t.json"))
    found = Tokenizer.load(tmp_path / "t.json", "</s>")
    assert found.ignored == ("truncation", "padding", "model.dropout")
    assert {tuple(found.encode(text)) for _ in range(9)} == {tuple(others["llama"].encode(text))}
    assert others["llama"].ignored == ()


def test_a_stop_token_that_is_none_is_refused(foreign_tokenizers):
    assert Tokenizer.load(foreign_tokenizers["llama"], "</s>", ["<s>"]).stop_ids == {1, 2}
    with pytest.raises(UserError, match=r"tokenizer.stop_tokens: found '<nine>', expected tokens of .*llama.json"):
        Tokenizer.load(foreign_tokenizers["llama"], "</s>", ["<nine>"])
    with pytest.raises(UserError, match=r"tokenizer.stop_tokens: found '<nine>', which the vocabulary lacks"):
        train(TokenizerConfig(kind="bytes", stop_tokens=["<nine>"]), [])


def test_a_stream_holds_back_half_a_character(made):
    stream = made["bytes"].stream()
    assert [stream.feed(byte) for byte in "a€".encode()] == ["a", "", "", "€"]
    assert (stream.feed(0xE2), stream.flush(), stream.flush()) == ("", "\ufffd", "")


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_tokenizer_json_alone_restores_everything(made, kind, tmp_path):
    made[kind].save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for name in ("eot_id", "unk_id", "vocab_size"):
        assert getattr(loaded, name) == getattr(made[kind], name)
    assert loaded.digest() == made[kind].digest()
    assert loaded.encode("The cat" + EOT) == made[kind].encode("The cat" + EOT)
    assert len({t.digest() for t in made.values()}) == 3


def test_an_unusual_end_of_text_token_is_recovered_from_the_file(tmp_path):
    config = TokenizerConfig(kind="bytes", eot_token="[[STOP]]", special_tokens=[EOT])
    train(config, []).save(tmp_path / "t.json")
    assert Tokenizer.load(tmp_path / "t.json").eot_id == 256


def test_the_digest_ignores_layout_only(made, tmp_path):
    path = tmp_path / "t.json"
    text = made["chars"].inner.to_str()
    path.write_text(json.dumps(json.loads(text), indent=3), encoding="utf-8")
    assert Tokenizer.load(path).digest() == made["chars"].digest()
    changed = json.loads(text)
    changed["model"]["vocab"]["é"] = changed["model"]["vocab"].pop("T")
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert Tokenizer.load(path).digest() != made["chars"].digest()


@pytest.fixture
def foreign(tmp_path) -> str:
    """A tokenizer of another make: it truncates, pads and adds a token of its own to what it encodes."""
    inner = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "cat": 3, "dog": 9}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.enable_truncation(2)
    inner.enable_padding(length=8)
    inner.save(str(tmp_path / "foreign.json"))
    return str(tmp_path / "foreign.json")


def test_any_tokenizer_json_is_read_as_text_to_ids(foreign, tmp_path):
    tokenizer = train(TokenizerConfig(kind="file", file=foreign, eot_token="</s>"), [])
    assert tokenizer.encode("cat dog cow cat") == [3, 9, 2, 3]
    assert (tokenizer.eot_id, tokenizer.unk_id, tokenizer.vocab_size) == (1, 2, 10)
    tokenizer.save(tmp_path / "ours.json")
    assert Tokenizer.load(tmp_path / "ours.json").eot_id == 1
    assert Tokenizer.load(foreign).eot_id == 1, "a well-known name"


def test_a_file_without_the_token_names_those_it_has(foreign):
    with pytest.raises(UserError, match=r"foreign.json: found no token '<\|endoftext\|>'.*'</s>', '<s>'$"):
        train(TokenizerConfig(kind="file", file=foreign), [])


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", None])
def test_what_is_no_tokenizer_is_one_line(tmp_path, content):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"t.json: cannot be read as a tokenizer.json"):
        Tokenizer.load(path)


def test_text_that_a_tokenizer_has_no_token_for_is_one_line():
    pieces = tokenizers.Tokenizer(models.Unigram([("</s>", 0.0), ("a", -1.0)]))
    made = Tokenizer(pieces, "</s>")
    assert made.encode("aa") == [1, 1]
    with pytest.raises(UserError, match=r"tokenizer: cannot encode the text .* use one that has an unknown token"):
        made.encode("ab")


def test_bpe_learns_from_the_first_bytes_only():
    read = []

    def texts():
        for text in ["first " * 100, "second " * 100, "third " * 100]:
            read.append(text[:5])
            yield text

    train(TokenizerConfig(kind="bpe", vocab_size=300, train_bytes=700), texts())
    assert read == ["first", "secon"]


def test_bpe_learns_words_of_any_length_in_parts():
    begin = time.process_time()
    tokenizer = train(TokenizerConfig(kind="bpe", vocab_size=500), ["a" * 300_000, "\n", " " * 100_000, "short"])
    assert time.process_time() - begin < 5, "s; the library takes minutes for a word of this length"
    longest = max(map(len, tokenizer.inner.get_vocab()))
    assert longest == WORD
    repeated = ["the cat sat on the mat\n\n    " * 50]
    assert [*_with_short_words(repeated)] == repeated, "text with words is learned from as it is"


def test_real_text_round_trips(lm_data):
    text = (lm_data / "tinystories" / "valid.txt").read_text(encoding="utf-8")
    tokenizer = train(TokenizerConfig(vocab_size=1000), [text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(text) / len(ids) > 3
