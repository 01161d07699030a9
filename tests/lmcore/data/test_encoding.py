"""A document in pieces has the tokens of the whole, whatever the tokenizer, and long ones take bounded memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.config import TokenizerConfig
from lmcore.data import encoding, readers
from lmcore.data import tokenizer as tokenizers
from lmcore.data.encoding import Cuts, Joiner, encode
from lmcore.data.readers import Piece
from lmcore.data.tokenizer import Tokenizer

KINDS = ("llama", "gpt2", "roberta", "llama3", "metaspace", "unigram", "wordpiece", "bpe", "chars", "bytes")
SOME = ["Once upon a time, it's 12345 foxes' day!\n\n  A naïve 字 \t end. "] * 9
PARTS = [
    "Once",
    " upon",
    " a",
    "time ",
    "it's",
    "12345",
    "7",
    "\n",
    " ",
    "    ",
    "\t",
    "é",
    "字",
    "🦊",
    "\u0301",
    "x!",
    "</s>",
]
TEXT = st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300).map(
    "".join
)


@pytest.fixture(scope="module")
def kinds(foreign_tokenizers: dict[str, Path]) -> dict[str, Tokenizer]:
    foreign = {kind: Tokenizer.load(path, "</s>") for kind, path in foreign_tokenizers.items()}
    own = {kind: tokenizers.train(TokenizerConfig(kind=kind, vocab_size=300), SOME) for kind in KINDS[-3:]}
    return foreign | own


def cut(text: str, size: int) -> Iterator[Piece]:
    for begin in range(0, len(text), size):
        yield Piece(text[begin : begin + size], ends=begin + size >= len(text))


def ids_of(tokenizer: Tokenizer, pieces: list[Piece]) -> list[int]:
    return np.concatenate([ids for ids, _, _ in encode(tokenizer, pieces)]).tolist()


def whole(tokenizer: Tokenizer, *texts: str) -> list[int]:
    return [i for text in texts for i in (*tokenizer.document_prefix, *tokenizer.encode(text), tokenizer.eot_id)]


@pytest.fixture(params=[(16, 1), (64, 4), (2048, 8)], ids=str)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("OVERLAP", "AGREED"), request.param):
        monkeypatch.setattr(encoding, name, value)
    monkeypatch.setattr(encoding, "BATCH", 200)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_tokens_of_the_whole(kinds: dict[str, Tokenizer], kind: str, sizes: None):
    @settings(max_examples=40)
    @given(first=TEXT, second=TEXT, size=st.integers(1, 120))
    def check(first: str, second: str, size: int) -> None:
        found = ids_of(kinds[kind], [*cut(first, size), *cut(second, size)])
        assert found == whole(kinds[kind], first, second)

    check()


@pytest.mark.parametrize("kind", ["llama", "roberta", "unigram", "bpe"])
def test_pieces_by_themselves_have_others(kinds: dict[str, Tokenizer], kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Cuts, "is_safe", lambda *_: True)
    text = "Once upon a time " * 20
    assert ids_of(kinds[kind], [*cut(text, 39)]) != whole(kinds[kind], text)


@pytest.mark.parametrize("kind", ["llama", "roberta", "llama3", "metaspace", "unigram", "wordpiece"])
def test_a_long_document_is_joined_in_bounded_memory(kinds: dict[str, Tokenizer], kind: str, monkeypatch):
    held: list[int] = []
    take = Joiner.take

    def watched(self: Joiner, window: encoding.Window, encoded: object) -> list[int]:
        given = take(self, window, encoded)
        held.append(len(self._text))
        return given

    monkeypatch.setattr(Joiner, "take", watched)
    text = "".join(f"Once upon a time there were {n} foxes. It's day {n * n}!\n" for n in range(6000))
    pieces = list(readers.document(text, "text"))
    assert len(pieces) >= 4
    assert ids_of(kinds[kind], pieces) == whole(kinds[kind], text)
    assert max(held) <= readers.PIECE + readers.SEARCH + encoding.OVERLAP


@pytest.mark.parametrize("kind", ["llama3", "bpe", "wordpiece", "metaspace"])
def test_text_without_a_place_to_join_is_encoded_whole(kinds: dict[str, Tokenizer], kind: str, monkeypatch):
    again: list[int] = []
    encode_again = Joiner._encode_again
    monkeypatch.setattr(Joiner, "_encode_again", lambda self: again.append(len(self._text)) or encode_again(self))
    text = "1234567" * 20_000 + "a" * 100_000
    assert ids_of(kinds[kind], [*cut(text, 10_000)]) == whole(kinds[kind], text)
    assert sum(again) < 4 * len(text), "the work stays in bounds"
    assert bool(again) == (kind not in ("metaspace", "bpe")), "where neighbours alone decide, any boundary will do"


def test_text_that_never_agrees_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(encoding, "HELD", 100_000)
    tokenizer = tokenizers.train(TokenizerConfig(vocab_size=300), ["a" * 1000])
    text = "x " + "a" * 200_000  # tokens of 64 letters begin elsewhere in each window
    with pytest.raises(encoding.UserError, match=r"found 1\d\d,\d{3} characters \(from 'x .* without a place"):
        ids_of(tokenizer, [*cut(text, 10_000)])


def test_our_own_are_cut_where_that_is_known_to_be_safe(kinds: dict[str, Tokenizer]):
    cuts = {kind: Cuts(kinds[kind]) for kind in KINDS}
    assert [kind for kind in KINDS if cuts[kind].is_safe("a", "b")] == ["chars", "bytes"]
    for left, right, safe in (
        ("one", " two", True),
        ("one\n", "two", True),
        ("one ", "two", False),
        ("\n\n", "a", False),
    ):
        found = {kind for kind in KINDS if cuts[kind].is_safe(left, right)} - {"chars", "bytes"}
        assert found == ({"gpt2", "bpe"} if safe else set())


def test_text_that_decides_from_too_far_away_is_refused(kinds: dict[str, Tokenizer]):
    joiner = Joiner(kinds["metaspace"])
    joiner._hold("a time", encoding.Encoded([7, 8], [(0, 1), (1, 6)], [0, 0]), 1)
    joiner._text += " upon"
    with pytest.raises(encoding.UserError, match="chooses tokens by text too far away"):
        joiner._encode_again()
