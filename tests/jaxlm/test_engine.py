"""The train step against its definition; what should change nothing (accumulation, devices, remat) changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.engine import Engine, TrainState, lower_train_step, train_step
from jaxlm.loss import IGNORED, loss_sum
from lmcore.config import Config, ModelConfig, OptimConfig, TrainConfig
from lmcore.run.engine import Engine as EngineProtocol

MODEL = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)
TRAIN = TrainConfig(batch_size=8, steps=10)


def start(model: ModelConfig = MODEL, optim: OptimConfig | None = None, **train: Any) -> Engine:
    engine = Engine(Config(model=model, optim=optim or OptimConfig(), train=replace(TRAIN, **train)))
    engine.init()
    return engine


def batch(step: int, rows: int = 8) -> np.ndarray:
    return np.random.default_rng(step).integers(0, MODEL.vocab_size, (rows, 8), dtype=np.int32)


def train(engine: Engine, steps: int, lr: float = 1e-2) -> list[float]:
    return [float(engine.train_step(batch(step), lr)["loss"]) for step in range(steps)]


def furthest(one: Engine, other: Engine) -> float:
    return max(float(jnp.max(jnp.abs(p - other.state.params[name]))) for name, p in one.state.params.items())


def test_the_engine_is_what_the_loop_expects() -> None:
    assert isinstance(start(), EngineProtocol)


def test_accumulation_changes_nothing_but_rounding() -> None:
    whole, parts = start(), start(grad_accum=4)
    np.testing.assert_allclose(train(parts, 3), train(whole, 3), rtol=1e-6)
    assert furthest(whole, parts) < 2e-5
    other = start(seed=1)
    train(other, 3)
    assert furthest(whole, other) > 1e-2


def test_the_number_of_devices_changes_nothing_but_rounding() -> None:
    two, one = start(), start(cpu_devices=1)
    assert (two.mesh.size, one.mesh.size) == (2, 1)
    np.testing.assert_allclose(train(one, 3), train(two, 3), rtol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_step_lowered_from_shapes_is_the_one_that_trains(scan_layers: bool) -> None:
    engine = start(replace(MODEL, scan_layers=scan_layers), grad_accum=2)
    seen = []
    engine._train_step = lambda *args, step=engine._train_step: seen.append(step.lower(*args).as_text()) or step(*args)
    engine.train_step(batch(0), 1e-2)
    assert lower_train_step(engine.config, engine.mesh).as_text() == seen[0]
    other = replace(engine.config, optim=OptimConfig(clip=0.5))
    assert lower_train_step(other, engine.mesh).as_text() != seen[0]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "adafactor", "lion", "sgd")]


@pytest.mark.parametrize("name", ["adamw", *SLOW])
def test_layers_in_a_loop_train_as_layers_apart(name: str, tmp_path: Path) -> None:
    with jax.enable_x64(True):
        apart, looped = (
            start(replace(MODEL, scan_layers=scan), OptimConfig(name=name), precision="float64")
            for scan in (False, True)
        )
        assert looped.held.params["layers.*.mlp.up_proj.kernel"].shape == (2, 20, 24)
        np.testing.assert_allclose(train(looped, 3), train(apart, 3), rtol=1e-12)
        assert jax.tree.structure(looped.state) == jax.tree.structure(apart.state)
        for one, other in zip(jax.tree.leaves(looped.state), jax.tree.leaves(apart.state), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-13)
        looped.save(tmp_path / "state")()
        apart.restore(tmp_path / "state")
        assert furthest(apart, looped) == 0
        np.testing.assert_allclose(train(looped, 2), train(apart, 2), rtol=1e-12)


def test_a_deeper_model_in_a_loop_is_no_larger_program() -> None:
    def kernels(n_layers: int, scan_layers: bool) -> int:
        engine = start(replace(MODEL, n_layers=n_layers, scan_layers=scan_layers), OptimConfig(name="sgd"))

        tokens = jnp.asarray(batch(0))[None]

        def step(params: Any, opt_state: Any) -> Any:
            state, _ = train_step(engine.model, TrainState(jnp.int32(0), params, opt_state), tokens, jnp.float32(1e-2))
            return state.params, state.opt_state

        lowered = jax.jit(step).lower(engine.held.params, engine.held.opt_state)
        return lowered.compile().as_text().count("fusion(")

    assert kernels(5, scan_layers=True) == kernels(3, scan_layers=True)
    assert kernels(3, scan_layers=False) > 2 * kernels(1, scan_layers=False)


def test_first_loss_is_that_of_guessing() -> None:
    assert abs(train(start(), 1)[0] - np.log(61)) < 0.05


def test_training_learns_a_repeating_text() -> None:
    engine = start(optim=OptimConfig(weight_decay=0.0))
    rows = (np.arange(8)[:, None] + np.arange(8)[None]).astype(np.int32) % 61
    losses = [float(engine.train_step(rows, 1e-2)["loss"]) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]


def test_one_update_is_adamw_by_its_formula() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, on gradients clipped as torch does."""
    optim = OptimConfig(beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3, clip=0.05)
    with jax.enable_x64(True):
        engine = start(optim=optim, precision="float64")
        model, theta = engine.model, {n: np.array(p) for n, p in engine.state.params.items()}
        mean = {n: np.zeros_like(p) for n, p in theta.items()}
        square = {n: np.zeros_like(p) for n, p in theta.items()}

        @jax.jit
        @jax.value_and_grad
        def mean_loss(params: Any, tokens: jax.Array) -> jax.Array:
            return loss_sum(model(params), tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].size

        for step in range(3):
            loss, grads = mean_loss({n: jnp.asarray(p) for n, p in theta.items()}, jnp.asarray(batch(step)))
            norm = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
            metrics = engine.train_step(batch(step), 0.01)
            np.testing.assert_allclose([metrics["loss"], metrics["grad_norm"]], [loss, norm], rtol=1e-12)
            assert norm > 2 * optim.clip
            for n, g in grads.items():
                clipped = np.array(g) * optim.clip / (norm + 1e-6)
                mean[n] = 0.8 * mean[n] + 0.2 * clipped
                square[n] = 0.9 * square[n] + 0.1 * clipped**2
                direction = mean[n] / (1 - 0.8 ** (step + 1)) / (np.sqrt(square[n] / (1 - 0.9 ** (step + 1))) + 1e-3)
                decay = 0.3 * theta[n] if theta[n].ndim > 1 else 0
                theta[n] = theta[n] - 0.01 * (direction + decay)
                # optax computes 1 − βᵗ in float32: a known difference of up to 1e-7, not rounding.
                np.testing.assert_allclose(engine.state.params[n], theta[n], rtol=1e-6, atol=1e-8)


def test_evaluation_counts_only_real_targets() -> None:
    engine = start()
    tokens, targets = batch(0)[:, :-1], batch(0)[:, 1:].copy()
    total, count = engine.eval_step(tokens, targets)
    assert int(count) == 56
    targets[3:] = IGNORED
    tokens[3:] = 0
    fewer, fewer_count = engine.eval_step(tokens, targets)
    alone, _ = engine.eval_step(tokens[:3], targets[:3])  # three rows cannot be split over two devices
    assert int(fewer_count) == 21
    np.testing.assert_allclose(fewer, alone, rtol=1e-6)
    assert abs(float(total) - float(fewer)) > 1


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_restored_engine_goes_on_to_the_bit(tmp_path: Path, precision: str) -> None:
    model = replace(MODEL, dropout=0.1)
    unbroken = start(model, precision=precision)
    train(unbroken, 2)
    finish = unbroken.save(tmp_path / "state")
    later = [float(unbroken.train_step(batch(step), 1e-2)["loss"]) for step in (2, 3, 4)]  # while it is being written
    finish()
    resumed = Engine(unbroken.config)
    resumed.restore(tmp_path / "state")
    assert [float(resumed.train_step(batch(step), 1e-2)["loss"]) for step in (2, 3, 4)] == later
    assert furthest(unbroken, resumed) == 0
    fresh = start(model, precision=precision)
    assert [float(fresh.train_step(batch(step), 1e-2)["loss"]) for step in (2, 3, 4)] != later


def test_bfloat16_trains_like_float32() -> None:
    wide, narrow = train(start(), 3), train(start(precision="bfloat16"), 3)
    assert narrow != wide
    np.testing.assert_allclose(narrow, wide, rtol=3e-3)


def test_the_score_of_each_target_adds_up_to_the_loss() -> None:
    engine = start()
    tokens, targets = batch(3, rows=3)[:, :-1], batch(3, rows=3)[:, 1:].copy()
    targets[1, 2:] = IGNORED
    logprobs, likeliest = engine.score(tokens, targets)
    assert logprobs.shape == likeliest.shape == targets.shape
    assert float(engine.eval_step(tokens, targets)[0]) == pytest.approx(-logprobs.sum(), rel=1e-6)
    assert not logprobs[1, 2:].any()
    decoder = engine.model(engine.state.params)
    best = np.asarray(jnp.argmax(decoder.logits(decoder.hidden(jnp.asarray(tokens))), axis=-1), np.int32)
    assert engine.score(tokens, best)[1].all()
    assert not engine.score(tokens, (best + 1) % MODEL.vocab_size)[1].any()
