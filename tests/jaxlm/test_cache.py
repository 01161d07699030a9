"""The KV cache: what is written where, and that a prompt prefills it as decoding would."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.cache import at, write
from tests.jaxlm.compiled import Compiled
from tests.jaxlm.test_model import ODD, make, tokens_for

BLOCKS: list[dict[str, Any]] = [
    {},
    *({"norm_placement": placement} for placement in ("post", "sandwich", "output")),
    {"parallel_residual": True, "n_layers": 1},
    {"layer_types": ["sliding", "full"], "sliding_window": 2},
    {"layer_types": ["full", "sliding"], "sliding_window": 2},
    {"attention_softcap": 0.5, "qk_norm": True, "tie_embeddings": False},
]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module", params=BLOCKS)
def model(request: pytest.FixtureRequest) -> Compiled:
    with jax.enable_x64(True):
        made, params = make(replace(ODD, **request.param))
        return Compiled(made(params))


@pytest.mark.parametrize("pads", [[0, 0, 0], [0, 3, 1]])
def test_prefill_is_decode_with_an_empty_cache(model: Compiled, pads: list[int]) -> None:
    ids, counts = tokens_for(ODD, rows=3, length=7), jnp.asarray([7, 6, 4])
    empty = model.empty_cache(jnp.asarray(pads), 9)
    expected, cache = model.decode(ids, empty, counts)
    found, filled = model.prefill(ids, empty, counts)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(filled.lengths, cache.lengths)
    for mine, other in zip(filled.keys + filled.values, cache.keys + cache.values, strict=True):
        rows = (x.reshape(3, -1, *x.shape[1:]) for x in (mine, other))
        for own, same, pad, count in zip(*rows, pads, counts, strict=True):
            np.testing.assert_allclose(own[:, pad:count], same[:, pad:count], rtol=1e-12, atol=1e-12)
    following = [model.decode(ids[:, :1], state)[0] for state in (filled, cache)]
    np.testing.assert_allclose(*following, rtol=1e-12, atol=1e-12)


def test_the_last_block_computes_one_position() -> None:
    made, params = make(ODD)
    model, ids = made(params), tokens_for(ODD, rows=3, length=7)
    empty = model.empty_cache(jnp.zeros(3, jnp.int32), 9)

    def widths(function: Any) -> list[int]:
        """Positions that each matmul with the feed-forward layers' down projection has."""
        equations = jax.make_jaxpr(function)(ids, empty).jaxpr.eqns
        calls = [eqn for eqn in equations if "jaxpr" in eqn.params or "call_jaxpr" in eqn.params]
        shapes = [(eqn.invars[0].aval.shape, eqn.invars[1].aval.shape) for eqn in calls if len(eqn.invars) == 2]
        return [left[1] for left, right in shapes if right == (ODD.ffn_dim, ODD.dim) and left[-1] == ODD.ffn_dim]

    assert widths(model.decode)[-1] == 7
    assert widths(model.prefill)[-1] == 1


def test_each_sequence_is_written_at_its_own_position() -> None:
    new = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3, 4)))
    written = write(jnp.zeros((6, 5, 4)), new, jnp.asarray([0, 3])).reshape(2, 3, 5, 4)
    np.testing.assert_array_equal(written[0, :, :2], new[0].swapaxes(0, 1))
    np.testing.assert_array_equal(written[1, :, 3:], new[1].swapaxes(0, 1))
    assert not written[0, :, 2:].any()
    assert not written[1, :, :3].any()


def test_at_takes_one_position_of_each_sequence() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7, 2, 4)))
    np.testing.assert_array_equal(at(x, jnp.asarray([6, 0, 2])), jnp.stack([x[0, 6:], x[1, :1], x[2, 2:3]]))
