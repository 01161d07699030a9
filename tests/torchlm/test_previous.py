"""Embeddings of the tokens before each, against a loop, in training and in decoding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig
from torchlm.model import Decoder
from torchlm.previous import NoPreviousTokens, PreviousTokens, latest, preceding

SHAPE = ModelConfig(
    vocab_size=11, dim=6, n_layers=2, n_heads=1, n_kv_heads=1, ffn_dim=8, max_seq_len=16, previous_tokens=3
)
TOKENS = torch.tensor([[5, 3, 8, 1, 2], [9, 9, 4, 0, 7]])
NOTHING, PLACES = torch.zeros(2, 3, dtype=torch.int64), torch.arange(5)


def rows(text: list[int], table: np.ndarray, begins: list[int]) -> np.ndarray:
    """What the tokens before add to each token of a text, given where the document of each begins."""
    added = np.zeros((len(text), table.shape[1]))
    for position, distance in np.ndindex(len(text), 3):
        if position - distance - 1 >= begins[position]:
            added[position] += table[11 * distance + text[position - distance - 1]]
    return added


def test_each_distance_has_a_table_and_no_token_of_another_document_counts():
    rng = np.random.default_rng(0)
    module, table = PreviousTokens(SHAPE).requires_grad_(False), rng.normal(size=(33, 6))
    assert module.weight.shape == table.shape
    module.weight.data = torch.from_numpy(table)
    starts = np.array([[0, 0, 0, 3, 3], [0, 1, 1, 1, 1]])
    x = rng.normal(size=(2, 5, 6))
    found = module(
        torch.from_numpy(x),
        preceding(TOKENS, NOTHING),
        PLACES - torch.from_numpy(starts),
    )
    expected = [rows(text, table, begins) for text, begins in zip(TOKENS.tolist(), starts.tolist(), strict=True)]
    np.testing.assert_allclose(found, x + np.array(expected), atol=1e-12)


def test_the_tokens_before_are_in_order_and_the_latest_are_kept():
    previous = torch.tensor([[7, 6, 10], [1, 2, 3]])
    before = preceding(TOKENS, previous)
    assert before[0].tolist() == [[10, 6, 7], [5, 10, 6], [3, 5, 10], [8, 3, 5], [1, 8, 3]]
    assert latest(TOKENS, previous, torch.tensor([5, 1])).tolist() == [[8, 1, 2], [2, 3, 9]]
    assert latest(TOKENS, previous, torch.tensor([0, 2])).tolist() == [[7, 6, 10], [3, 9, 9]]


def test_without_them_nothing_is_added():
    x = torch.ones((2, 5, 6))
    assert NoPreviousTokens(SHAPE)(x, preceding(TOKENS, NOTHING[:, :0]), PLACES[None]) is x


@pytest.mark.parametrize("counts", [None, [2, 4]])
@pytest.mark.parametrize("prompt", [1, 2, 5])
def test_decoding_is_the_full_forward_pass(prompt: int, counts: list[int] | None):
    decoder, rng = (
        Decoder(replace(SHAPE, position="learned"), torch.float64).requires_grad_(False),
        np.random.default_rng(0),
    )
    for layer in (decoder.embed_tokens, decoder.embed_previous, decoder.embed_positions):
        layer.weight.data = torch.from_numpy(rng.normal(size=layer.weight.shape))
    tokens, pads = torch.from_numpy(rng.integers(11, size=(2, 9))), torch.zeros(2, dtype=torch.int64)
    full = decoder(tokens)
    _, cache = decoder.prefill(tokens[:, :prompt], decoder.empty_cache(pads, 16))
    for step in range(prompt, 5):
        logits, cache = decoder.decode(tokens[:, step : step + 1], cache)
        np.testing.assert_allclose(logits, full[:, step], atol=1e-12)
    appended = torch.tensor(counts or [4, 4])
    logits, cache = decoder.decode(tokens[:, 5:], cache, appended)
    np.testing.assert_allclose(logits, full[torch.arange(2), 4 + appended], atol=1e-12)
    assert cache.previous.tolist() == [tokens[b, 2 + n : 5 + n].tolist() for b, n in enumerate(appended.tolist())]
    wrong, _ = decoder.decode(tokens[:, 5:6], cache._replace(previous=torch.zeros_like(cache.previous)))
    right, _ = decoder.decode(tokens[:, 5:6], cache)
    assert (wrong - right).abs().max() > 1e-3


def test_left_padding_is_no_token_before():
    decoder, rng = Decoder(SHAPE, torch.float64).requires_grad_(False), np.random.default_rng(0)
    for layer in (decoder.embed_tokens, decoder.embed_previous):
        layer.weight.data = torch.from_numpy(rng.normal(size=layer.weight.shape))
    full = decoder(TOKENS[:, 2:])
    logits, cache = decoder.prefill(TOKENS, decoder.empty_cache(torch.tensor([2, 2]), 8))
    np.testing.assert_allclose(logits, full[:, -1], atol=1e-12)
    more = torch.tensor([[1], [2]])
    again, _ = decoder.decode(more, cache)
    np.testing.assert_allclose(
        again, decoder(torch.cat([TOKENS[:, 2:], torch.tensor([[1], [2]])], 1))[:, -1], atol=1e-12
    )
