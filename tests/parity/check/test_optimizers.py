"""Every optimizer means the same in both twins, goes on to the bit, and goes on in the other framework."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import jaxlm.optim
import torchlm.optim
from jaxlm.engine import Engine as JaxEngine
from lmcore.config import Config, ModelConfig, OptimConfig, TrainConfig
from lmcore.run.checkpoints import Checkpoint
from parity.convert.moments import Moments, zero_moments
from parity.convert.states import read_state, write_state
from torchlm.engine import Engine as TorchEngine

NAMES = ("adamw", "adafactor", "muon", "lion", "sgd")
MODEL = ModelConfig(vocab_size=31, dim=12, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=20, max_seq_len=9)
SHAPES = {
    "embed_tokens.weight": (7, 5),
    "layers.0.up_proj.kernel": (5, 8),
    "layers.0.down_proj.kernel": (8, 5),
    "layers.0.o_proj.kernel": (5, 5),
    "layers.0.norm.weight": (5,),
    "norm.weight": (5,),
}
"""In jaxlm's layout; one kernel longer than wide, one wider than long, one square."""
Values = dict[str, np.ndarray]


@pytest.fixture
def float64() -> Iterator[None]:
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def drawn(seed: int, scale: float = 1.0) -> Values:
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape) for name, shape in SHAPES.items()}


def turned(values: Values) -> Values:
    """From jaxlm's layout to torchlm's, or back."""
    return {name: value.T.copy() if name.endswith("kernel") else value for name, value in values.items()}


def gradients(count: int) -> list[Values]:
    """With a row that no token ever reached."""
    drawings = [drawn(seed, 0.1) for seed in range(1, count + 1)]
    for grads in drawings:
        grads["embed_tokens.weight"][3] = 0
    return drawings


def in_jax(optim: OptimConfig, rates: list[float]) -> Values:
    params = {name: jnp.asarray(value) for name, value in drawn(0).items()}
    optimizer = jaxlm.optim.make_optimizer(optim)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for lr, grads in zip(jnp.array(rates), gradients(len(rates)), strict=True):
        directions, state = update({n: jnp.asarray(g) for n, g in grads.items()}, state, params, lr=lr)
        params = jaxlm.optim.apply_updates(params, directions, lr)
    return {name: np.asarray(value) for name, value in params.items()}


def in_torch(optim: OptimConfig, rates: list[float]) -> Values:
    params = {name: nn.Parameter(torch.from_numpy(value.copy())) for name, value in turned(drawn(0)).items()}
    optimizer = torchlm.optim.make_optimizer(optim, params)
    for lr, grads in zip(rates, gradients(len(rates)), strict=True):
        for name, grad in turned(grads).items():
            params[name].grad = torch.from_numpy(grad.copy())
        torchlm.optim.apply_updates(optimizer, lr)
    return turned({name: p.detach().numpy() for name, p in params.items()})


def apart(one: Values, other: Values) -> float:
    """Largest difference, relative to the largest value of the tensor."""
    return max(float(np.abs(one[name] - other[name]).max() / np.abs(one[name]).max()) for name in one)


FAULTS: dict[str, list[dict[str, Any]]] = {
    "adamw": [{"beta1": 0.91}, {"beta2": 0.96}, {"eps": 1e-6}, {"weight_decay": 0.31}],
    "adafactor": [{"weight_decay": 0.31}],
    "muon": [{"momentum": 0.9}, {"beta1": 0.91}, {"beta2": 0.96}, {"eps": 1e-6}, {"weight_decay": 0.31}],
    "lion": [{"beta1": 0.1}, {"beta2": 0.1}, {"weight_decay": 0.31}],
    "sgd": [{"momentum": 0.9}, {"weight_decay": 0.31}],
}
"""The fields that each optimizer reads, each a little off."""


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_both_libraries_mean_the_same(name: str):
    optim, rates = OptimConfig(name=name, weight_decay=0.3), [0.9, 0.7, 0.8]  # torch's Adafactor slows the last two
    jax_params, torch_params = in_jax(optim, rates), in_torch(optim, rates)
    assert apart(jax_params, torch_params) < 1e-12
    assert apart(jax_params, drawn(0)) > 1e-2
    for fault in FAULTS[name]:
        assert apart(in_torch(replace(optim, **fault), rates), torch_params) > 1e-8, fault
    others = [in_torch(replace(optim, name=other), rates) for other in NAMES if other != name]
    assert min(apart(other, torch_params) for other in others) > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(name: str):
    still, decayed = (OptimConfig(name=name, weight_decay=decay) for decay in (0.0, 0.3))
    for run in (in_jax, in_torch):
        one, other = run(still, [0.1]), run(decayed, [0.1])
        for parameter, start in drawn(0).items():
            expected = one[parameter] - (0.03 * start if start.ndim == 2 else 0)
            np.testing.assert_allclose(other[parameter], expected, rtol=0, atol=1e-14)


def test_muon_takes_the_matrices_of_the_blocks():
    config = Config(model=replace(MODEL, tie_embeddings=False), optim=OptimConfig(name="muon"))
    parameters = dict(TorchEngine(config).model.named_parameters())
    taken = {name for name, yes in torchlm.optim.muon_mask(parameters).items() if yes}
    assert taken == {n for n in parameters if n.startswith("layers.") and n.endswith("_proj.weight")}
    assert len(taken) == 7
    shapes = JaxEngine(config).model.shapes
    assert {n.replace("kernel", "weight") for n, yes in jaxlm.optim.muon_mask(shapes).items() if yes} == taken
    kept = zero_moments(config, "jax", np.dtype("f4")).arrays
    assert set(kept["momentum"]).isdisjoint(kept["mean"])
    assert set(kept["momentum"]) | set(kept["mean"]) == set(shapes)


def batch(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, MODEL.vocab_size, (4, 10), dtype=np.int32)


def losses(engine: Any, first: int, last: int, lr: float) -> list[float]:
    return [float(engine.train_step(batch(step), lr)["loss"]) for step in range(first, last)]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_run_goes_on_to_the_bit_and_in_the_other_framework(name: str, tmp_path: Path):
    train = TrainConfig(batch_size=4, steps=10, device="cpu", cpu_devices=1)
    config = Config(model=MODEL, optim=OptimConfig(name=name, weight_decay=0.3), train=train)
    engines, lr, later = {"jax": JaxEngine(config), "torch": TorchEngine(config)}, 0.02, {}
    for framework, engine in engines.items():
        engine.init()
        losses(engine, 0, 3, lr)
        engine.save(tmp_path / framework / "state")()
        later[framework] = losses(engine, 3, 6, lr)
        engine.restore(tmp_path / framework / "state")
        assert losses(engine, 3, 6, lr) == later[framework]
    for source, target in (("jax", "torch"), ("torch", "jax")):
        state = read_state(Checkpoint(tmp_path / source, source, 3, None), config)
        there = state.to(target, config)
        write_state(tmp_path / f"{source}-{target}" / "state", there, config)()
        engine = engines[target]
        engine.restore(tmp_path / f"{source}-{target}" / "state")
        np.testing.assert_allclose(losses(engine, 3, 6, lr), later[source], rtol=1e-5)
        back = read_state(Checkpoint(tmp_path / f"{source}-{target}", target, 3, None), config).to(source, config)
        assert same(back.moments, state.moments)
        half = {kind: {n: a / 2 for n, a in arrays.items()} for kind, arrays in there.moments.arrays.items()}
        write_state(tmp_path / "half" / source / "state", replace(there, moments=Moments(3, half)), config)()
        engine.restore(tmp_path / "half" / source / "state")
        assert np.abs(np.array(losses(engine, 3, 6, lr)) - later[source]).max() > 1e-4


def same(one: Moments, other: Moments) -> bool:
    assert one.count == other.count == 3
    assert one.arrays.keys() == other.arrays.keys()
    return all(
        np.array_equal(array, other.arrays[kind][name]) and array.any()
        for kind, arrays in one.arrays.items()
        for name, array in arrays.items()
    )
