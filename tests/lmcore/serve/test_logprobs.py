"""Log probabilities in float64, and the text and bytes of single tokens of every kind of tokenizer."""

from pathlib import Path

import numpy as np
import pytest

from lmcore.config import TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.tokenizer import Tokenizer
from lmcore.serve.logprobs import LOWEST, ROWS, Logprob, TokenTexts, log_softmax, logprob_of, prompt_logprobs


def test_log_probabilities_sum_to_one_in_float64_whatever_the_logits_dtype():
    logits = np.random.default_rng(0).normal(size=(3, 501)).astype(np.float32) * 30
    found = log_softmax(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-13)
    np.testing.assert_allclose(found - found[:, :1], logits.astype(np.float64) - logits[:, :1], atol=1e-5)


def test_the_chosen_token_and_the_most_likely_ones_are_reported():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
    found = logprob_of(logits, 0, 2)
    assert found.token == 0
    assert found.value == pytest.approx(np.log(0.1), abs=1e-12)
    assert [token for token, _ in found.top] == [1, 3]
    assert [value for _, value in found.top] == pytest.approx([np.log(0.4), np.log(0.3)], abs=1e-12)
    assert logprob_of(logits, 0, 0).top == ()
    assert len(logprob_of(logits, 0, 20).top) == 4


def test_of_equals_the_smaller_ids_are_the_most_likely():
    assert [token for token, _ in logprob_of(np.zeros(5), 4, 3).top] == [0, 1, 2]


def test_minus_infinity_is_a_number_that_json_has():
    assert logprob_of(np.array([0.0, -np.inf]), 1, 1).value == LOWEST


def test_a_prompts_tokens_are_predicted_by_those_before():
    tokens = np.arange(2 * ROWS + 3, dtype=np.int32) % 7
    logits = np.random.default_rng(1).normal(size=(len(tokens), 7))
    found = prompt_logprobs(logits, tokens, 1)
    assert found[0] == Logprob(0, None)
    assert [each.token for each in found] == tokens.tolist()
    expected = log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]]
    assert [each.value for each in found[1:]] == pytest.approx(expected.tolist(), abs=1e-12)
    assert prompt_logprobs(logits[:1], tokens[:1], 1) == [Logprob(0, None)]


def test_a_token_that_is_part_of_a_character_has_its_bytes():
    tokenizer = tokenizers.train(TokenizerConfig(kind="bytes", special_tokens=["<|im_end|>"]), [])
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("é\n")
    assert [texts.bytes_of(token) for token in ids] == [b"\xc3", b"\xa9", b"\n"]
    assert [texts.text_of(token) for token in ids] == [r"bytes:\xc3", r"bytes:\xa9", "\n"]
    special = tokenizer.inner.token_to_id("<|im_end|>")
    assert (texts.text_of(special), texts.bytes_of(special)) == ("<|im_end|>", b"<|im_end|>")
    assert texts.text_of(tokenizer.vocab_size + 5) == ""


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "llama3", "llama", "metaspace", "unigram"])
def test_the_bytes_of_the_tokens_of_a_text_are_the_texts(kind: str, foreign_tokenizers: dict[str, Path]):
    tokenizer = Tokenizer.load(foreign_tokenizers[kind])
    texts = TokenTexts(tokenizer)
    text = "Once upon a time, a fox."
    known = text if tokenizer.unk_id not in tokenizer.encode(text) else "Once upon a time"
    joined = b"".join(texts.bytes_of(token) for token in tokenizer.encode(known)).decode()
    assert joined.removeprefix(" ") == known


@pytest.mark.parametrize("kind", ["chars", "bytes"])
def test_so_they_are_for_our_own_kinds(kind: str):
    tokenizer = tokenizers.train(TokenizerConfig(kind=kind), ["a fox, é"])
    texts = TokenTexts(tokenizer)
    assert b"".join(map(texts.bytes_of, tokenizer.encode("a fé"))) == "a fé".encode()
