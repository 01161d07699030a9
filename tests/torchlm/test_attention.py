"""The plain form of attention against its formula: which keys a query sees, and what each weighs."""

import numpy as np
import torch

from torchlm.attention import additive, attention, by_head, causal_attention, causal_mask


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def heads(length: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of six heads, keys and values of two."""
    return draws(2, length, 6, 4), draws(2, length, 2, 4, seed=1), draws(2, length, 2, 4, seed=2)


def formula(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, key_heads: list[int], factors: np.ndarray | float = 1.0
) -> np.ndarray:
    """Causal attention in which query head n has the keys and values of head `key_heads[n]`."""
    length = q.shape[1]
    scores = np.einsum("btnh,bsnh->bnts", q, k[:, :, key_heads]) / 2  # the root of the head's width, 4
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True) * factors, v[:, :, key_heads])


def close(found: torch.Tensor, expected: torch.Tensor | np.ndarray, tolerance: float = 1e-12) -> bool:
    expected = torch.as_tensor(expected)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_the_plain_form_is_its_formula_and_groups_of_query_heads_share_a_key_head():
    q, k, v = heads()
    found = causal_attention(q, k, v)
    assert close(found, formula(q.numpy(), k.numpy(), v.numpy(), [0, 0, 0, 1, 1, 1]))
    assert not close(found, formula(q.numpy(), k.numpy(), v.numpy(), [0, 1, 0, 1, 0, 1]), 1e-3)


def test_factors_multiply_the_weights_after_the_softmax():
    q, k, v = heads()
    factors = np.random.default_rng(3).choice([0.0, 1 / 0.7], size=(2, 6, 7, 7))
    mask = causal_mask(torch.arange(7), 7)
    found = attention(q, by_head(k), by_head(v), mask, factors=torch.from_numpy(factors))
    assert close(found, formula(q.numpy(), k.numpy(), v.numpy(), [0, 0, 0, 1, 1, 1], factors))
    assert not close(found, formula(q.numpy(), k.numpy(), v.numpy(), [0, 0, 0, 1, 1, 1]), 1e-3)


def test_a_query_sees_neither_padding_nor_later_columns():
    q, k, v = draws(2, 2, 6, 4), draws(2, 2, 9, 4, seed=1), draws(2, 2, 9, 4, seed=2)
    columns = torch.tensor([4, 5])
    mixed = attention(q, k, v, causal_mask(columns, 9, torch.tensor([0, 3])))
    for row, first in ((0, 0), (1, 3)):
        for i, column in enumerate((4, 5)):
            seen = slice(first, column + 1)
            alone = attention(
                q[row : row + 1, i : i + 1],
                k[row : row + 1, :, seen],
                v[row : row + 1, :, seen],
                torch.ones(1, 1, column + 1 - first, dtype=torch.bool),
            )
            assert close(mixed[row, i], alone[0, 0])
    assert not close(mixed, attention(q, k, v, causal_mask(columns, 9, torch.tensor([0, 2]))), 1e-3)


def test_a_query_of_padding_sees_nothing_and_stays_finite():
    q, k, v = heads()
    mask = causal_mask(torch.arange(7), 7, torch.tensor([6, 0]))
    assert mask.tolist() == [[[pads <= key <= query for key in range(7)] for query in range(7)] for pads in (6, 0)]
    mixed = attention(q, by_head(k), by_head(v), mask)
    assert torch.isfinite(mixed).all()
    assert close(mixed[0, 6], v[0, 6].repeat_interleave(3, dim=0)), "the only key that it sees"


def test_the_plain_form_is_the_same_by_torchs_kernel_and_step_by_step():
    q, k, v = heads(length=11)
    kernel, ones = causal_attention(q, k, v), torch.ones(2, 6, 11, 11, dtype=torch.float64)
    mask = causal_mask(torch.arange(11), 11)
    for given in (mask, additive(mask, torch.float64)):
        assert close(attention(q, by_head(k), by_head(v), given, factors=ones), kernel)
    later = causal_mask(torch.arange(11) + 1, 11)
    assert not close(attention(q, by_head(k), by_head(v), later, factors=ones), kernel, 1e-3)
