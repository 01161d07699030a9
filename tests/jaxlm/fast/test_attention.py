"""Attention in blocks of queries against its plain form and its definition, with gradients and dropout."""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import attention as plain
from jaxlm.fast import attention as fast
from jaxlm.fast.attention import causal_attention

BLOCKS = [(1, 11), (3, 11), (4, 11), (11, 1), (128, 8), (2, 3), (3, 2), (4, 1)]
TOLERANCE = {jnp.float64: 1e-12, jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def drawn_heads(dtype: type = jnp.float64) -> list[jax.Array]:
    """Queries, keys and values of 2 sequences of 11 tokens, 6 query heads and 2 of keys and values."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, 11, heads, 4)), dtype) for heads in (6, 2, 2)]


def by_definition(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    scores = jnp.einsum("btkgh,bskh->bkgts", q.reshape(2, 11, 2, 3, 4), k) / 2.0
    scores = jnp.where(jnp.tri(11, dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bkgts,bskh->btkgh", jax.nn.softmax(scores), v).reshape(q.shape)


def cut(monkeypatch: pytest.MonkeyPatch, block: int, most: int) -> None:
    monkeypatch.setattr(fast, "QUERY_BLOCK", block)
    monkeypatch.setattr(fast, "MAX_BLOCKS", most)


@pytest.mark.parametrize(("block", "most"), BLOCKS)
def test_blocks_of_queries_change_nothing(block: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the values nor their gradients; with few blocks, each is made in turns of `block` queries."""
    cut(monkeypatch, block, most)
    with jax.enable_x64(True):
        factors = jnp.asarray(np.random.default_rng(1).normal(size=(2, 11, 6, 4)))
        given = drawn_heads()

        def value(attend: Callable, *given: jax.Array) -> jax.Array:
            return (attend(*given) * factors).sum()

        for form in (causal_attention, plain.causal_attention):
            np.testing.assert_allclose(jax.jit(form)(*given), by_definition(*given), rtol=1e-12, atol=1e-13)
        found, expected = (
            jax.jit(jax.grad(partial(value, attend), (0, 1, 2)))(*given) for attend in (causal_attention, by_definition)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_blocks_are_the_plain_form_in_every_precision_and_with_dropout(
    dtype: type, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, 3, 11)
    with jax.enable_x64(True):
        given, key = drawn_heads(dtype), jax.random.key(4) if rate else None
        attend = jax.jit(causal_attention, static_argnums=3)
        expected = np.asarray(plain.causal_attention(*given, rate, key), np.float64)
        found = np.asarray(attend(*given, rate, key), np.float64)
        later = np.asarray(attend(given[0], given[1][:, ::-1], given[2], rate, key), np.float64)
    allowed = TOLERANCE[dtype] * np.abs(expected).max()
    assert np.abs(found - expected).max() <= allowed
    assert np.abs(later - expected).max() > allowed


def test_a_long_sequence_keeps_no_weights_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest_kept(most: int) -> int:
        cut(monkeypatch, 2, most)
        kept = jax.vjp(causal_attention, *drawn_heads(jnp.float32))[1]
        return max(leaf.size for leaf in jax.tree.leaves(kept))

    assert largest_kept(most=2) <= 2 * 6 * 12 * 4  # no more than the padded queries
    assert largest_kept(most=8) >= 2 * 6 * 2 * 10  # weights of a block


@pytest.mark.parametrize("window", [0, 2, 4, 20])
@pytest.mark.parametrize(("block", "most"), [(3, 11), (3, 2), (128, 8)])
def test_windows_and_soft_caps_are_those_of_the_definition(
    block: int, most: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, block, most)
    with jax.enable_x64(True):
        q, k, v = drawn_heads()
        scores = jnp.einsum("btkgh,bskh->bkgts", q.reshape(2, 11, 2, 3, 4), k) / 2.0
        mask = jnp.tri(11, dtype=bool) & ~jnp.tri(11, k=-(window or 11), dtype=bool)
        weights = jax.nn.softmax(jnp.where(mask, 0.7 * jnp.tanh(scores / 0.7), -jnp.inf))
        expected = jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)
        for form in (causal_attention, plain.causal_attention):
            found, uncapped = (jax.jit(partial(form, window=window, softcap=cap))(q, k, v) for cap in (0.7, 0.0))
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
            assert np.abs(uncapped - expected).max() > 1e-3


@pytest.mark.parametrize(("block", "window"), [(2, 1), (2, 2), (2, 5), (3, 4), (4, 11), (5, 3)])
@pytest.mark.parametrize("with_documents", [False, True])
def test_a_window_over_a_long_sequence_is_the_plain_form(
    block: int, window: int, with_documents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, block, 1)
    monkeypatch.setattr(fast, "MAX_WINDOW_BLOCK", 3)
    documents = jnp.asarray([[0] * 4 + [4] * 7, [0] * 9 + [9] * 2]) if with_documents else None
    with jax.enable_x64(True):
        given = drawn_heads()

        def value(attend: Callable, *given: jax.Array) -> jax.Array:
            return (attend(*given, documents=documents, window=window, softcap=0.7) ** 2).sum()

        found, expected = (
            jax.jit(jax.value_and_grad(partial(value, form), (0, 1, 2)))(*given)
            for form in (causal_attention, plain.causal_attention)
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), found, expected)


def test_a_window_over_a_long_sequence_costs_a_linear_number_of_operations() -> None:
    def operations(length: int) -> float:
        q, k, v = (jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (2, 1, 1))
        grads = jax.grad(lambda *given: causal_attention(*given, window=128).sum(), (0, 1, 2))
        text = str(jax.make_jaxpr(grads)(q, k, v))
        widest = max(int(width) for width in re.findall(r"f32\[1,2,128,(\d+)\]", text))
        return widest * length

    assert operations(8192) == 4 * operations(2048)
