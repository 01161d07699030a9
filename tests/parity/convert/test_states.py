"""Checkpoints of both twins as NumPy arrays: every bit there and back, and what is wrong told by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmcore.config import Config, ModelConfig, OptimConfig, TrainConfig
from lmcore.errors import UserError
from lmcore.run.checkpoints import Checkpoint
from parity.convert.moments import Moments, zero_moments
from parity.convert.names import Side, table
from parity.convert.states import State, parameter_type, read_state, write_state

MODEL = ModelConfig(vocab_size=30, dim=25, n_layers=1, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=7)


def made(side: Side, config: Config, step: int = 7) -> State:
    """A state of random numbers, whose optimizer skipped a step."""
    rng, dtype = np.random.default_rng(0), parameter_type(config)
    params = {row.name(side): rng.standard_normal(row.shape_in(side)).astype(dtype) for row in table(config.model)}
    kinds = zero_moments(config, side, dtype).arrays
    arrays = {k: {n: rng.random(a.shape).astype(dtype) for n, a in by_name.items()} for k, by_name in kinds.items()}
    return State(side, step, params, Moments(step - 1, arrays))


def bits(state: State) -> dict[str, tuple[str, bytes]]:
    assert state.moments is not None
    arrays = {"params": state.params} | state.moments.arrays
    return {
        f"{kind} {name}": (str(array.dtype), array.tobytes())
        for kind, by_name in arrays.items()
        for name, array in by_name.items()
    }


@pytest.mark.parametrize("side", ["jax", "torch"])
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_what_is_written_is_read_to_the_bit(side: Side, precision: str, tmp_path: Path):
    config = Config(model=MODEL, train=TrainConfig(precision=precision))
    state = made(side, config)
    checkpoint = Checkpoint(tmp_path, side, 7, None)
    write_state(checkpoint.state, state, config)()
    read = read_state(checkpoint, config)
    assert (read.side, read.step, read.moments.count) == (side, 7, 6)
    assert bits(read) == bits(state)
    assert {dtype for dtype, _ in bits(read).values()} == {"float64" if precision == "float64" else "float32"}
    weights = read_state(checkpoint, config, optimizer=False)
    assert weights.moments is None
    assert all(np.array_equal(value, state.params[name]) for name, value in weights.params.items())


def test_an_optimizer_that_does_not_count_is_at_its_step(tmp_path: Path):
    config = Config(model=MODEL, optim=OptimConfig(name="sgd"))
    for side in ("jax", "torch"):
        checkpoint = Checkpoint(tmp_path / side, side, 7, None)
        write_state(checkpoint.state, made(side, config), config)()
        assert read_state(checkpoint, config).moments.count == 7


def test_a_checkpoint_of_another_step_or_framework_is_refused(tmp_path: Path):
    config = Config(model=MODEL)
    checkpoint = Checkpoint(tmp_path, "torch", 7, None)
    write_state(checkpoint.state, made("torch", config), config)()
    with pytest.raises(UserError, match="found the state of step 7, expected that of step 8"):
        read_state(replace(checkpoint, step=8), config)
    with pytest.raises(UserError, match="found framework 'mlx', expected jax or torch"):
        read_state(replace(checkpoint, framework="mlx"), config)


def test_a_state_of_another_model_is_told_by_name():
    config = Config(model=MODEL)
    state = made("torch", config)
    wider = replace(config, model=replace(config.model, ffn_dim=8))
    with pytest.raises(UserError, match=r"mlp.up_proj.weight is \[7, 25\], expected \[8, 25\]"):
        state.to("jax", wider)
    assert bits(state.to("jax", config).to("torch", config)) == bits(state)
