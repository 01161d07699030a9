"""Text survives the tokenizer, control tokens never come from text, and one file says all."""

import json

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from lmcore.config import TokenizerConfig
from lmcore.errors import UserError
from lmcore.tokenizer import Tokenizer, train

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
    with pytest.raises(UserError, match=r"special token 'c', expected a mark"):
        train(TokenizerConfig(kind=kind, eot_token="c"), SOME)


@given(data=st.data())
@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_streamed_text_is_the_decoded_text_in_whole_characters(made, kind, data):
    tokenizer = made[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.stream()
    assert "".join([*map(stream.feed, ids), stream.flush()]) == tokenizer.decode(ids)
    assert stream.feed(tokenizer.encode("t")[0]) == "t", "flush starts anew"


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
    with pytest.raises(UserError, match=r"tokenizer: cannot encode the text .* take one that has an unknown token"):
        made.encode("ab")


def test_bpe_learns_from_the_first_bytes_only():
    read = []

    def texts():
        for text in ["first " * 100, "second " * 100, "third " * 100]:
            read.append(text[:5])
            yield text

    train(TokenizerConfig(kind="bpe", vocab_size=300, train_bytes=700), texts())
    assert read == ["first", "secon"]


def test_real_text_round_trips(lm_data):
    text = (lm_data / "tinystories" / "valid.txt").read_text(encoding="utf-8")
    tokenizer = train(TokenizerConfig(vocab_size=1000), [text])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(text) / len(ids) > 3
