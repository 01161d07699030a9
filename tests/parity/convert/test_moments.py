"""Optimizer state under one set of names: layouts on both sides, optax's axes, what is missing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.optim
from jaxlm.engine import Engine as JaxEngine
from lmcore.config import Config, ModelConfig, OptimConfig
from lmcore.errors import UserError
from parity.convert.moments import TORCH, Moments, fill_optax, read_optax, torch_key, zero_moments
from parity.convert.names import table

MODEL = ModelConfig(vocab_size=31, dim=12, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=20, max_seq_len=9)
OPTIMIZERS = ("adamw", "adafactor", "muon", "lion", "sgd")


def test_row_and_column_means_keep_their_axes_on_the_way():
    """Means over one axis of the same squares, held against optax's own choice of axes."""
    config = Config(model=MODEL, optim=OptimConfig(name="adafactor"))
    engine = JaxEngine(config)
    squares = {n: np.random.default_rng(1).random(leaf.shape) for n, leaf in engine.model.shapes.items()}
    optimizer = jaxlm.optim.make_optimizer(config.optim)
    params = {n: jnp.asarray(s, jnp.float32) for n, s in squares.items()}
    grads, start = {n: jnp.sqrt(p) for n, p in params.items()}, jax.eval_shape(optimizer.init, params)
    _, state = jax.jit(optimizer.update)(
        grads, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), start), params, lr=0.1
    )
    kept = read_optax(state, config).to(config, "jax", "torch").arrays
    for name, square in squares.items():
        there = name.replace("kernel", "weight")
        lying = square.T if name.endswith("kernel") else square
        if square.ndim == 2:
            np.testing.assert_allclose(kept["rows"][there], lying.mean(1, keepdims=True), rtol=1e-5)
            np.testing.assert_allclose(kept["columns"][there], lying.mean(0, keepdims=True), rtol=1e-5)
        else:
            np.testing.assert_allclose(kept["square"][there], lying, rtol=1e-5)


def drawn(config: Config) -> Moments:
    """State of the shapes that zero moments have, with random numbers."""
    rng, zeros = np.random.default_rng(0), zero_moments(config, "jax", np.dtype("f4"))
    arrays = {
        kind: {name: rng.random(array.shape, np.float32) for name, array in by_name.items()}
        for kind, by_name in zeros.arrays.items()
    }
    return Moments(7, arrays)


def same(one: Moments, other: Moments) -> bool:
    assert {kind: set(arrays) for kind, arrays in one.arrays.items()} == {k: set(a) for k, a in other.arrays.items()}
    return one.count == other.count and all(
        np.array_equal(array, other.arrays[kind][name])
        for kind, arrays in one.arrays.items()
        for name, array in arrays.items()
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_way_to_torch_and_back_and_through_optax_keeps_every_bit(name: str):
    config = Config(model=MODEL, optim=OptimConfig(name=name))
    state = drawn(config)
    there = state.to(config, "jax", "torch")
    zeros = zero_moments(config, "torch", np.dtype("f4")).arrays
    assert {k: {n: a.shape for n, a in arrays.items()} for k, arrays in there.arrays.items()} == {
        k: {n: a.shape for n, a in arrays.items()} for k, arrays in zeros.items()
    }
    assert same(there.to(config, "torch", "jax"), state)
    shapes = {row.jax: jax.ShapeDtypeStruct(row.shape, np.float32) for row in table(MODEL)}
    empty = jax.eval_shape(jaxlm.optim.make_optimizer(config.optim).init, shapes)
    read = read_optax(fill_optax(empty, state, config), config)
    assert same(replace(read, count=7), state)
    assert read.count == (-1 if name == "sgd" else 7)


def test_a_transposed_kernel_swaps_its_rows_and_columns():
    config = Config(model=MODEL, optim=OptimConfig(name="adafactor"))
    there = drawn(config).to(config, "jax", "torch")
    name = "layers.0.mlp.up_proj"
    rows, columns = (drawn(config).arrays[kind][f"{name}.kernel"] for kind in ("rows", "columns"))
    assert (rows.shape, columns.shape) == ((12, 1), (1, 20))
    np.testing.assert_array_equal(there.arrays["columns"][f"{name}.weight"], rows.T)
    np.testing.assert_array_equal(there.arrays["rows"][f"{name}.weight"], columns.T)
    embedding = "embed_tokens.weight"
    np.testing.assert_array_equal(there.arrays["rows"][embedding], drawn(config).arrays["rows"][embedding])


def test_a_kind_has_its_name_in_the_state_of_torch():
    kinds = {"mean": "exp_avg", "square": "exp_avg_sq", "momentum": "momentum_buffer", "rows": "row_var"}
    assert {kind: torch_key(OptimConfig(), kind) for kind in kinds} == kinds
    assert torch_key(OptimConfig(name="adafactor"), "square") == "variance"
    assert set(kinds.values()) < set(TORCH)


def test_a_missing_array_is_named():
    config = Config(model=MODEL)
    state = drawn(config)
    del state.arrays["square"]["norm.weight"]
    with pytest.raises(UserError, match=r"norm\.weight"):
        state.to(config, "jax", "torch")
