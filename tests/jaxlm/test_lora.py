"""Adapted layers are their formula; merged weights give the same model; only the adapters are trained."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.engine import Engine
from jaxlm.functional import Model
from jaxlm.lora import LoraBiasedLinear, LoraLinear, merge
from jaxlm.model import Block
from lmcore.config import Config, LoraConfig, ModelConfig, TrainConfig
from lmcore.model.lora import is_adapter
from tests.jaxlm.compiled import Compiled

LORA = LoraConfig(rank=2, alpha=5.0, targets=["q_proj", "down_proj"])
MODEL = ModelConfig(vocab_size=13, dim=8, n_layers=2, n_heads=2, ffn_dim=12, max_seq_len=8, bias=True, lora=LORA)
CONFIG = Config(model=MODEL, train=TrainConfig(steps=4, batch_size=2, device="cpu", cpu_devices=1))
TOKENS = np.random.default_rng(0).integers(13, size=(2, 9)).astype(np.int32)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_its_formula(bias: bool) -> None:
    rng = np.random.default_rng(0)
    x, w, a, b, offset = (rng.normal(size=shape) for shape in ((2, 3, 4), (4, 5), (4, 2), (2, 5), (5,)))
    with jax.enable_x64(True):
        layer = (LoraBiasedLinear if bias else LoraLinear)(4, 5, jnp.dtype("float64"), LORA)
        layer.kernel, layer.lora_A.kernel, layer.lora_B.kernel = (nnx.Param(jnp.asarray(m)) for m in (w, a, b))
        if bias:
            layer.bias = nnx.Param(jnp.asarray(offset))
        found = np.asarray(layer(jnp.asarray(x)))
    np.testing.assert_allclose(found, x @ w + 2.5 * x @ a @ b + (offset if bias else 0), rtol=0, atol=1e-13)


def test_merged_weights_give_the_same_logits_and_without_adapters_no_class_of_theirs_is_there() -> None:
    model, plain = Model(CONFIG), Model(replace(CONFIG, model=replace(MODEL, lora=None)))
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=leaf.shape) / 3, jnp.float32) for name, leaf in model.shapes.items()}
    merged, tokens = plain(merge(params, MODEL)), jnp.asarray(TOKENS[:, :8])
    without = plain({name: p for name, p in params.items() if not is_adapter(name)})
    found, same, other = (Compiled(decoder)(tokens) for decoder in (model(params), merged, without))
    np.testing.assert_allclose(found, same, rtol=0, atol=2e-5)
    assert np.abs(found - other).max() > 0.01
    assert {type(block) for block in merged.layers} == {Block}
    assert merge(params, replace(MODEL, lora=None)) is params


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_update_changes_the_adapters_alone_and_a_checkpoint_has_no_more(scan: bool, tmp_path: Path) -> None:
    config = replace(CONFIG, model=replace(MODEL, scan_layers=scan))
    engine, base = Engine(config), Engine(replace(CONFIG, model=replace(MODEL, lora=None)))
    base.init()
    base.save(tmp_path / "base")()
    engine.load_base(tmp_path / "base")
    engine.init()
    before = jax.tree.map(np.asarray, engine.state.weights)
    for _ in range(2):  # B is zero at first, and so is A's first gradient
        engine.train_step(TOKENS, 0.1)
    after = engine.state
    changed = {name for name, value in after.weights.items() if not np.array_equal(value, before[name])}
    assert changed == {name for name in before if is_adapter(name)} == set(after.params)
    assert {name: np.asarray(p).tobytes() for name, p in base.state.params.items()} == {
        name: np.asarray(p).tobytes() for name, p in after.frozen.items()
    }
    moments = [leaf.shape for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(changed)
    engine.save(tmp_path / "state")()
    expected = np.asarray(engine.train_step(TOKENS, 0.1)["loss"])
    resumed = Engine(config)
    resumed.load_base(tmp_path / "base")
    resumed.restore(tmp_path / "state")
    assert np.asarray(resumed.train_step(TOKENS, 0.1)["loss"]) == expected


def test_dropout_is_of_the_adapters_and_in_training_alone() -> None:
    wet, dry = (Engine(replace(CONFIG, model=replace(MODEL, lora=replace(LORA, dropout=d)))) for d in (0.5, 0.0))
    for engine in (wet, dry):
        engine.init()
        assert float(engine.train_step(TOKENS, 0.1)["loss"]) > 0
    losses = [[float(e.train_step(TOKENS, 0.1)["loss"]) for e in (wet, dry)] for _ in range(2)]
    assert all(one != other for one, other in losses)
    wet.state = replace(dry.state, opt_state=wet.state.opt_state)
    x, y = TOKENS[:, :-1], TOKENS[:, 1:]
    assert float(wet.eval_step(x, y)[0]) == float(dry.eval_step(x, y)[0])


def test_without_adapters_all_weights_come_from_the_base_and_the_optimizer_is_new(tmp_path: Path) -> None:
    plain = replace(CONFIG, model=replace(MODEL, lora=None))
    base, other = Engine(plain), Engine(replace(plain, train=replace(CONFIG.train, seed=1)))
    base.init()
    base.train_step(TOKENS, 0.1)
    base.save(tmp_path / "base")()
    other.load_base(tmp_path / "base")
    other.init()
    expected, found = ({name: np.asarray(p).tobytes() for name, p in e.state.params.items()} for e in (base, other))
    assert found == expected
    assert int(other.state.step) == 0
