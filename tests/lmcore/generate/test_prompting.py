"""From prompts to text: what a generator is shown, how many tokens it writes, and when and how they become text."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import SampleConfig, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.tokenizer import Tokenizer
from lmcore.generate.prompting import (
    CHUNK,
    Generator,
    Text,
    complete,
    draw_uniforms,
    generate_texts,
    pad_left,
    write_tokens,
)

V = 101


def rule(visible: Sequence[int], uniform: float) -> int:
    """The next token: every visible token, their number and the draw matter."""
    return (3 * sum(visible) + len(visible) + int(uniform * V)) % V


class Summing:
    """A language model of one line, which reads and writes a cache of real size as a twin does."""

    def __init__(self, sees_pads: bool = False):
        self.sees_pads = sees_pads
        self.starts: list[tuple[list[list[int]], int]] = []
        self.calls = 0

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> tuple[list[list[int]], int, int]:
        assert (tokens.dtype, pads.dtype) == (np.int32, np.int32)
        assert tokens.shape[1] <= size
        assert np.all(pads < tokens.shape[1]), "every row has a token to go on from"
        rows = [row[0 if self.sees_pads else pad :].tolist() for row, pad in zip(tokens, pads, strict=True)]
        self.starts.append(([list(row) for row in rows], size))
        return rows, tokens.shape[1], size

    def extend(self, state: tuple, uniforms: np.ndarray) -> tuple[np.ndarray, tuple]:
        rows, columns, size = state
        assert columns + uniforms.shape[1] <= size, "the cache overflows"
        self.calls += 1
        for draws in uniforms.T:
            for row, uniform in zip(rows, draws, strict=True):
                row.append(rule(row, uniform))
        written = np.array([row[-uniforms.shape[1] :] for row in rows], np.int32)
        return written, (rows, columns + uniforms.shape[1], size)

    def has_nan(self, state: tuple) -> bool:
        return False


def expected(prompts: list[list[int]], options: SampleConfig, context: int) -> list[list[int]]:
    """The documented rule, row by row and without padding: the first chunk has room, a full context forgets half."""
    chunk = min(CHUNK, context // 2)
    longest, room = min(context - chunk, max(map(len, prompts))), -(-options.max_tokens // chunk) * chunk
    width = min(context - chunk, -(-longest // 32) * 32)
    if longest + room <= context < width + room:  # padding would take the room that the text needs
        width = context - room
    uniforms = draw_uniforms(options.seed, len(prompts), options.max_tokens)
    rows = []
    for prompt, draws in zip(prompts, uniforms):
        visible, columns, written = prompt[-(context - chunk) :], width, []
        for position, uniform in enumerate(draws):
            if position % chunk == 0:
                if columns + chunk > context:
                    visible, columns = visible[-(context // 2) :], context // 2
                columns += chunk
            written.append(rule(visible, uniform))
            visible = [*visible, written[-1]]
        rows.append(written)
    return rows


def written(
    prompts: list[list[int]],
    max_tokens: int,
    context: int,
    *,
    seed: int = 0,
    pad: int = 0,
    model: Summing | None = None,
) -> list[list[int]]:
    options = SampleConfig(max_tokens=max_tokens, seed=seed)
    parts = list(write_tokens(model or Summing(), prompts, options, context=context, pad=pad))
    assert all(part.dtype == np.int32 and 1 <= part.shape[1] <= CHUNK for part in parts)
    return np.concatenate(parts, axis=1).tolist()


def test_a_generator_of_one_line_is_a_generator():
    assert isinstance(Summing(), Generator)
    assert not isinstance(object(), Generator)


@given(
    prompts=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=70), min_size=1, max_size=3),
    max_tokens=st.integers(1, 70),
    context=st.integers(2, 90),
    seed=st.integers(0, 2**64 - 1),
    pad=st.integers(0, V - 1),
)
def test_what_is_written_follows_the_visible_tokens_and_nothing_else(prompts, max_tokens, context, seed, pad):
    options = SampleConfig(max_tokens=max_tokens, seed=seed)
    found = written(prompts, max_tokens, context, seed=seed, pad=pad)
    assert found == expected(prompts, options, context)
    assert {len(row) for row in found} == {max_tokens}


def test_a_generator_that_saw_pads_or_forgot_otherwise_would_write_otherwise():
    prompts, options = [[5, 6, 7], [8]], SampleConfig(max_tokens=60)
    assert written(prompts, 60, 40) == expected(prompts, options, 40)
    assert written(prompts, 60, 40, pad=9, model=Summing(sees_pads=True)) != expected(prompts, options, 40)
    assert expected(prompts, options, 44) != expected(prompts, options, 40)


@pytest.mark.parametrize("context", [2, 3, 40, 256])
@pytest.mark.parametrize("max_tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_exactly_max_tokens_are_written_around_the_chunk_and_at_any_context(context: int, max_tokens: int):
    found = written([[1, 2, 3], [4]], max_tokens, context)
    assert [len(row) for row in found] == [max_tokens] * 2


def test_a_full_context_is_read_again_from_its_newer_half():
    model = Summing()
    prompts = [list(range(30)), list(range(50, 58))]
    found = written(prompts, 40, 40, model=model)
    (first, _), (second, _), (third, _) = model.starts
    assert first == [prompts[0][-24:], prompts[1]], "all that leaves room for a chunk of 16 in 40 columns"
    assert second == [(prompts[0] + found[0][:16])[-20:], (prompts[1] + found[1][:16])[-20:]]
    assert third == [found[0][12:32], found[1][12:32]]


def test_a_context_that_is_not_full_is_read_once():
    model = Summing()
    written([[1, 2, 3]], 100, 256, model=model)
    assert [rows for rows, _ in model.starts] == [[[1, 2, 3]]]


def test_caches_come_in_few_sizes_and_never_exceed_the_context():
    sizes = set()
    for length in range(1, 120, 7):
        for max_tokens in range(1, 120, 7):
            model = Summing()
            written([[1] * length], max_tokens, 200, model=model)
            sizes |= {size for _, size in model.starts}
    assert sizes == {64, 96, 128, 160, 192, 200}


def test_a_shorter_text_is_the_beginning_of_a_longer_one():
    whole = written([[1, 2], [3]], 50, 256)
    for max_tokens in (1, 16, 17, 49):
        assert written([[1, 2], [3]], max_tokens, 256) == [row[:max_tokens] for row in whole]


def test_a_row_of_a_batch_is_what_the_next_seed_writes_alone():
    both = written([[1, 2, 3], [4]], 20, 256, seed=7)
    assert both == [*written([[1, 2, 3]], 20, 256, seed=7), *written([[4]], 20, 256, seed=8)]
    assert both[1:] != written([[4]], 20, 256, seed=7)


def test_left_padding_keeps_the_last_tokens_and_counts_what_it_adds():
    tokens, pads = pad_left([[1, 2, 3], [4]], 40, 9)
    assert (tokens.shape, tokens.dtype, pads.dtype) == ((2, 32), np.int32, np.int32)
    assert pads.tolist() == [29, 31]
    assert tokens[0].tolist() == [9] * 29 + [1, 2, 3]
    assert tokens[1].tolist() == [9] * 31 + [4]
    tokens, pads = pad_left([list(range(50)), [7]], 40, 9)
    assert tokens[0].tolist() == list(range(10, 50))
    assert pads.tolist() == [0, 39]


@pytest.mark.parametrize(
    ("length", "longest", "width"), [(1, 40, 32), (32, 40, 32), (33, 40, 40), (33, 64, 64), (65, 256, 96), (9, 3, 3)]
)
def test_widths_are_multiples_of_32_or_the_longest(length: int, longest: int, width: int):
    tokens, pads = pad_left([[1] * length], longest, 0)
    assert tokens.shape == (1, width)
    assert pads.tolist() == [width - min(length, longest)]


GOLDEN = [[0.16372651, 0.8720734, 0.97226334], [0.31208754, 0.9956763, 0.93896717]]
"""Seed 7, two rows, as NumPy 2.4 gave them."""


def test_draws_are_the_same_in_every_version():
    np.testing.assert_allclose(draw_uniforms(7, 2, 3), GOLDEN, rtol=0, atol=1e-7)


@given(seed=st.integers(0, 2**64 - 1), rows=st.integers(1, 4), length=st.integers(1, 40), more=st.integers(0, 40))
def test_draws_are_a_pure_function_of_seed_plus_row_and_position(seed, rows, length, more):
    draws = draw_uniforms(seed, rows, length)
    assert (draws.shape, draws.dtype) == ((rows, length), np.float32)
    assert np.all((draws >= 0) & (draws < 1))
    assert np.array_equal(draw_uniforms(seed, rows, length + more)[:, :length], draws)
    for row in range(rows):
        assert np.array_equal(draw_uniforms(seed + row, 1, length)[0], draws[row])


def test_draws_are_spread_evenly_and_differ_by_seed():
    one, other = draw_uniforms(0, 1, 10_000)[0], draw_uniforms(1, 1, 10_000)[0]
    for draws in (one, other):
        assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * 10_000)
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(10_000)


class Scripted:
    """Writes the same bytes for each row whatever it reads, then zeros."""

    def __init__(self, *scripts: list[int]):
        self.scripts = scripts
        self.read: list[list[int]] = []
        self.calls = 0

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> None:
        self.read = [row[pad:].tolist() for row, pad in zip(tokens, pads, strict=True)]

    def extend(self, state: None, uniforms: np.ndarray) -> tuple[np.ndarray, None]:
        begin, count = self.calls * uniforms.shape[1], uniforms.shape[1]
        self.calls += 1
        rows = [[*script, *[0] * (begin + count)][begin : begin + count] for script in self.scripts]
        return np.array(rows, np.int32), None

    def has_nan(self, state: None) -> bool:
        return False


@pytest.fixture(scope="module")
def by_bytes() -> Tokenizer:
    """The 256 bytes as themselves, and end of text as 256."""
    return tokenizers.train(TokenizerConfig(kind="bytes"), [])


@pytest.fixture
def snapshots(by_bytes: Tokenizer) -> Callable[..., list[list[str]]]:
    """The texts of every row each time that they are yielded."""

    def write(model: Generator, max_tokens: int = 40, context: int = 256) -> list[list[str]]:
        prompts = ["p"] * len(model.scripts)
        options = SampleConfig(max_tokens=max_tokens)
        texts = generate_texts(model, by_bytes, prompts, options, context=context)
        return [[text.text for text in row] for row in texts]

    return write


def test_each_row_stops_at_its_own_end_of_text(by_bytes: Tokenizer):
    eot = by_bytes.eot_id
    model = Scripted([*b"one", eot, *b"never"], [*b"a longer one, over two chunks", eot, *b"never", eot])
    texts = complete(model, by_bytes, ["x", "y"], SampleConfig(max_tokens=100), context=256)
    assert texts == [
        Text("x", "one", [*b"one"], ended=True),
        Text("y", "a longer one, over two chunks", [*b"a longer one, over two chunks"], ended=True),
    ]
    assert model.calls == 2, "nothing is written after the last end"


def test_a_text_that_does_not_end_has_max_tokens(by_bytes: Tokenizer):
    [text] = complete(Scripted([*b"x" * 99]), by_bytes, ["p"], SampleConfig(max_tokens=21), context=256)
    assert text == Text("p", "x" * 21, [*b"x" * 21], ended=False)


def test_text_is_given_out_as_it_is_written(snapshots):
    assert snapshots(Scripted([*b"a" * 40])) == [["a" * 16], ["a" * 32], ["a" * 40], ["a" * 40]]


def test_a_character_of_several_bytes_comes_whole(snapshots):
    script = [*("a" * 14 + "é€😀" + "b" * 30).encode()]
    found = [row[0] for row in snapshots(Scripted(script), max_tokens=32)]
    assert found == ["a" * 14 + "é", "a" * 14 + "é€😀" + "b" * 9, "a" * 14 + "é€😀" + "b" * 9]


@pytest.mark.parametrize("ends", [True, False])
def test_an_unfinished_character_is_shown_as_such_at_the_end(snapshots, by_bytes: Tokenizer, ends: bool):
    script = [*b"ab\xe2\x82", *([by_bytes.eot_id] if ends else [])]
    found = [row[0] for row in snapshots(Scripted(script), max_tokens=40 if ends else 4)]
    assert found == ["ab", "ab\N{REPLACEMENT CHARACTER}"]


def test_the_prompt_is_read_and_an_empty_one_begins_at_end_of_text(by_bytes: Tokenizer):
    model = Scripted([*b"ab"], [*b"cd"])
    texts = complete(model, by_bytes, ["", "né"], SampleConfig(max_tokens=2), context=256)
    assert model.read == [[by_bytes.eot_id], [*"né".encode()]]
    assert [(text.prompt, text.text) for text in texts] == [("", "ab"), ("né", "cd")]


@pytest.mark.parametrize("context", [2, 3, 40])
def test_a_prompt_longer_than_the_context_keeps_its_end(by_bytes: Tokenizer, context: int):
    model, prompt = Scripted([*b"abc"]), "".join(chr(97 + i % 26) for i in range(50))
    [text] = complete(model, by_bytes, [prompt], SampleConfig(max_tokens=1), context=context)
    assert model.read == [[*prompt.encode()][-(context - min(16, context // 2)) :]], "there is room for a chunk"
    assert (text.prompt, text.text) == (prompt, "a")
