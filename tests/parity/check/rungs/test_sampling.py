"""What a uniform number can give, by the definition of each sampling option, and how near rounding may bring it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decoding import choose_tokens
from lmcore.config import SampleConfig
from parity.check.rungs.sampling import OPTIONS, possible_tokens

LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
PLAIN = SampleConfig(temperature=1.0)


def tokens(uniform: float, options: SampleConfig, slack: float = 0.0) -> set[int]:
    return set(possible_tokens(LOGITS, uniform, options, slack).tokens)


def test_a_draw_gives_one_token_and_at_a_boundary_either():
    assert [tokens(u, PLAIN) for u in (0.0, 0.39, 0.41, 0.69, 0.71, 0.95)] == [{0}, {0}, {1}, {1}, {2}, {3}]
    assert tokens(0.4, PLAIN) == {0, 1}
    assert tokens(0.4001, PLAIN) == {1}
    assert tokens(0.4001, PLAIN, slack=1e-3) == {0, 1}, "as much as the logits may be off"
    found = possible_tokens(LOGITS, 0.4001, PLAIN, 0.0)
    assert found.distance == pytest.approx(1e-4)
    assert found.rounding < 1e-13


def test_filters_leave_out_what_they_say_and_either_at_their_edge():
    assert tokens(0.99, replace(PLAIN, top_k=2)) == {1}
    assert tokens(0.99, replace(PLAIN, top_p=0.6)) == {1}
    assert tokens(0.99, replace(PLAIN, top_p=0.4 + 1e-15)) == {0, 1}, "whether the second is needed is rounding"
    assert tokens(0.99, replace(PLAIN, min_p=0.6)) == {1}
    assert tokens(0.99, replace(PLAIN, min_p=0.75)) == {0, 1}, "the second is exactly at the edge"
    assert tokens(0.5, replace(PLAIN, temperature=0.0)) == {0}
    assert tokens(0.5, replace(PLAIN, temperature=0.0), slack=0.2) == {0, 1}


def test_equally_likely_tokens_stay_or_go_together():
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.1, 0.1]))
    kept = [set(possible_tokens(logits, u, replace(PLAIN, top_p=0.5), 0.0).tokens) for u in (0.1, 0.6, 0.99)]
    assert kept == [{0}, {1}, {2}]
    assert set(possible_tokens(logits, 0.99, replace(PLAIN, top_p=0.39), 0.0).tokens) == {0}


@pytest.mark.parametrize("decimals", [9, 0], ids=["all different", "many equal"])
@pytest.mark.parametrize("name", OPTIONS)
def test_what_a_twin_chooses_is_possible(name: str, decimals: int):
    rng, options = np.random.default_rng(0), OPTIONS[name]
    logits = (rng.standard_normal((200, 50)).astype(np.float32) * 4).round(decimals)
    uniforms = rng.random(200, dtype=np.float32)
    chosen = jax.jit(choose_tokens, static_argnums=2)(jnp.asarray(logits), jnp.asarray(uniforms), options)
    found = [possible_tokens(row, float(u), options, 0.0).tokens for row, u in zip(logits, uniforms, strict=True)]
    assert all(int(token) in possible for token, possible in zip(chosen, found, strict=True))
    if decimals:
        assert np.mean([len(possible) == 1 for possible in found]) > 0.95, "rounding decides seldom"
