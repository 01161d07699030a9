"""The train step against its definition: accumulation, devices, remat and precision change nothing they should not."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxlm.engine import Engine
from lmcore.config import Config, ModelConfig, TrainConfig

MODEL = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)
TRAIN = TrainConfig(batch_size=8, steps=10)


def engine_after(steps: int, config: Config, lr: float = 1e-2) -> tuple[Engine, list[float]]:
    engine = Engine(config)
    engine.init()
    rng = np.random.default_rng(0)
    shape = config.train.batch_size, config.train.seq_len + 1
    losses = []
    for _ in range(steps):
        batch = rng.integers(0, config.model.vocab_size, shape, dtype=np.int32)
        losses.append(float(engine.train_step(batch, lr)["loss"]))
    return engine, losses


def furthest(one: Engine, other: Engine) -> float:
    return max(float(jnp.max(jnp.abs(one.state.params[n] - other.state.params[n]))) for n in one.state.params)


def test_accumulation_changes_nothing_but_rounding():
    whole, losses = engine_after(3, Config(model=MODEL, train=TRAIN))
    parts, part_losses = engine_after(3, Config(model=MODEL, train=replace(TRAIN, grad_accum=4)))
    np.testing.assert_allclose(part_losses, losses, rtol=1e-6)
    assert furthest(whole, parts) < 2e-5
    other, _ = engine_after(3, Config(model=MODEL, train=replace(TRAIN, seed=1)))
    assert furthest(whole, other) > 1e-2
