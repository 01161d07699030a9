"""Embeddings of the tokens before each, against a loop, in training and in decoding."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model import Decoder
from jaxlm.previous import NoPreviousTokens, PreviousTokens, latest, preceding
from lmcore.config import ModelConfig
from tests.jaxlm.compiled import Compiled

SHAPE = ModelConfig(
    vocab_size=11, dim=6, n_layers=2, n_heads=1, n_kv_heads=1, ffn_dim=8, max_seq_len=16, previous_tokens=3
)
TOKENS = jnp.asarray([[5, 3, 8, 1, 2], [9, 9, 4, 0, 7]])
NOTHING, PLACES = jnp.zeros((2, 3), jnp.int32), jnp.arange(5)


def rows(text: list[int], table: np.ndarray, begins: list[int]) -> np.ndarray:
    """What the tokens before add to each token of a text, given where the document of each begins."""
    added = np.zeros((len(text), table.shape[1]))
    for position, distance in np.ndindex(len(text), 3):
        if position - distance - 1 >= begins[position]:
            added[position] += table[11 * distance + text[position - distance - 1]]
    return added


def test_each_distance_has_a_table_and_no_token_of_another_document_counts() -> None:
    rng = np.random.default_rng(0)
    module, table = PreviousTokens(SHAPE), rng.normal(size=(33, 6))
    assert module.weight.shape == table.shape
    module.weight.set_value(jnp.asarray(table))
    starts = np.array([[0, 0, 0, 3, 3], [0, 1, 1, 1, 1]])
    x = rng.normal(size=(2, 5, 6))
    found = module(jnp.asarray(x), preceding(TOKENS, NOTHING), PLACES[None] - starts)
    expected = [rows(text, table, begins) for text, begins in zip(TOKENS.tolist(), starts.tolist(), strict=True)]
    np.testing.assert_allclose(found, x + np.array(expected), atol=1e-5)


def test_the_tokens_before_are_in_order_and_the_latest_are_kept() -> None:
    previous = jnp.asarray([[7, 6, 10], [1, 2, 3]])
    before = preceding(TOKENS, previous)
    assert before[0].tolist() == [[10, 6, 7], [5, 10, 6], [3, 5, 10], [8, 3, 5], [1, 8, 3]]
    assert latest(TOKENS, previous, jnp.asarray([5, 1])).tolist() == [[8, 1, 2], [2, 3, 9]]
    assert latest(TOKENS, previous, jnp.asarray([0, 2])).tolist() == [[7, 6, 10], [3, 9, 9]]


def test_without_them_nothing_is_added() -> None:
    x = jnp.ones((2, 5, 6))
    assert NoPreviousTokens(SHAPE)(x, preceding(TOKENS, NOTHING[:, :0]), PLACES[None]) is x


@pytest.fixture(scope="module")
def decoder() -> Compiled:
    decoder, rng = Decoder(replace(SHAPE, position="learned"), jnp.dtype("float32")), np.random.default_rng(0)
    for layer in (decoder.embed_tokens, decoder.embed_previous, decoder.embed_positions):
        layer.weight.set_value(jnp.asarray(rng.normal(size=layer.weight.shape)))
    return Compiled(decoder)


@pytest.mark.parametrize("counts", [[4, 4], [2, 4]])
@pytest.mark.parametrize("prompt", [1, 2, 5])
def test_decoding_is_the_full_forward_pass(decoder: Compiled, prompt: int, counts: list[int]) -> None:
    tokens = jnp.asarray(np.random.default_rng(1).integers(11, size=(2, 9)))
    pads = jnp.zeros(2, jnp.int32)
    full = decoder(tokens)
    _, cache = decoder.prefill(tokens[:, :prompt], decoder.empty_cache(pads, 16))
    for step in range(prompt, 5):
        logits, cache = decoder.decode(tokens[:, step : step + 1], cache)
        np.testing.assert_allclose(logits, full[:, step], atol=1e-5)
    appended = jnp.asarray(counts)
    logits, cache = decoder.decode(tokens[:, 5:], cache, appended)
    np.testing.assert_allclose(logits, full[jnp.arange(2), 4 + appended], atol=1e-5)
    assert cache.previous.tolist() == [tokens[b, 2 + n : 5 + n].tolist() for b, n in enumerate(appended.tolist())]
    wrong, _ = decoder.decode(tokens[:, 5:6], cache._replace(previous=jnp.zeros_like(cache.previous)))
    right, _ = decoder.decode(tokens[:, 5:6], cache)
    assert jnp.abs(wrong - right).max() > 1e-3


def test_left_padding_is_no_token_before() -> None:
    made, rng = Decoder(SHAPE, jnp.dtype("float32")), np.random.default_rng(0)
    for layer in (made.embed_tokens, made.embed_previous):
        layer.weight.set_value(jnp.asarray(rng.normal(size=layer.weight.shape)))
    decoder = Compiled(made)
    full = decoder(TOKENS[:, 2:])
    logits, cache = decoder.prefill(TOKENS, decoder.empty_cache(jnp.asarray([2, 2]), 8))
    np.testing.assert_allclose(logits, full[:, -1], atol=1e-5)
    more = jnp.asarray([[1], [2]])
    again, _ = decoder.decode(more, cache)
    np.testing.assert_allclose(
        again, decoder(jnp.concatenate([TOKENS[:, 2:], jnp.asarray([[1], [2]])], 1))[:, -1], atol=1e-5
    )
