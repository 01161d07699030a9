"""The plain form of attention against its formula: which keys a query sees, and what each weighs."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention import attention, by_head, causal_attention, causal_mask


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draws(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def heads(length: int = 7) -> tuple[jax.Array, jax.Array, jax.Array]:
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


def close(found: jax.Array | np.ndarray, expected: jax.Array | np.ndarray, tolerance: float = 1e-12) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    return bool(np.abs(found - expected).max() <= tolerance * np.abs(expected).max())


def test_the_plain_form_is_its_formula_and_groups_of_query_heads_share_a_key_head() -> None:
    q, k, v = heads()
    found = causal_attention(q, k, v)
    assert close(found, formula(*map(np.asarray, (q, k, v)), [0, 0, 0, 1, 1, 1]))
    assert not close(found, formula(*map(np.asarray, (q, k, v)), [0, 1, 0, 1, 0, 1]), 1e-3)


def test_factors_multiply_the_weights_after_the_softmax() -> None:
    q, k, v = heads()
    factors = np.random.default_rng(3).choice([0.0, 1 / 0.7], size=(2, 6, 7, 7))
    mask = causal_mask(jnp.arange(7), 7)
    found = attention(q, by_head(k), by_head(v), mask, jnp.asarray(factors))
    assert close(found, formula(*map(np.asarray, (q, k, v)), [0, 0, 0, 1, 1, 1], factors))
    assert not close(found, formula(*map(np.asarray, (q, k, v)), [0, 0, 0, 1, 1, 1]), 1e-3)


def test_a_query_sees_neither_padding_nor_later_columns() -> None:
    q, k, v = draws(2, 2, 6, 4), draws(2, 9, 2, 4, seed=1), draws(2, 9, 2, 4, seed=2)
    columns = jnp.asarray([4, 5])

    def padded(*pads: int) -> jax.Array:
        return attention(q, by_head(k), by_head(v), causal_mask(columns, 9, jnp.asarray(pads)))

    mixed, queries, keys, values = map(np.asarray, (padded(0, 3), q, k, v))
    for row, first in ((0, 0), (1, 3)):
        for i, column in enumerate((4, 5)):
            seen = slice(first, column + 1)
            for head in range(6):
                scores = np.exp(keys[row, seen, head // 3] @ queries[row, i, head] / 2)
                assert close(mixed[row, i, head], scores / scores.sum() @ values[row, seen, head // 3])
    assert not close(mixed, padded(0, 2), 1e-3)


def test_a_query_of_padding_sees_nothing_and_stays_finite() -> None:
    q, k, v = heads()
    mask = causal_mask(jnp.arange(7), 7, jnp.asarray([6, 0]))
    assert mask.tolist() == [[[pads <= key <= query for key in range(7)] for query in range(7)] for pads in (6, 0)]
    mixed = np.asarray(attention(q, by_head(k), by_head(v), mask))
    assert np.isfinite(mixed).all()
    assert close(mixed[0, 6], np.asarray(v)[0, 6].repeat(3, axis=0)), "the only key that it sees"
