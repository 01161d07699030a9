"""Dropout zeroes its fraction, is the same mask in every precision, and does nothing without a key."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.dropout import dropout, split


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    x = jnp.ones((100, 1000))
    dropped = dropout(x, 0.2, jax.random.key(0))
    assert set(np.unique(dropped)) == {0.0, 1.25}
    assert abs(float(dropped.mean()) - 1) < 0.01
    assert dropout(x, 0.2, None) is x


def test_split_keys_are_independent_and_no_key_stays_none() -> None:
    assert split(None, 3) == [None] * 3
    first, second = split(jax.random.key(0), 2)
    assert first is not None
    masks = [np.asarray(dropout(jnp.ones((100, 1000)), 0.2, key)) == 0 for key in (first, second)]
    assert abs((masks[0] & masks[1]).mean() - 0.2 * 0.2) < 0.004
