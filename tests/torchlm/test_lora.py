"""Adapted layers are their formula; merged weights give the same model; only the adapters are trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcore.config import Config, LoraConfig, ModelConfig, TrainConfig
from lmcore.model.lora import is_adapter
from torchlm.engine import Engine
from torchlm.lora import LoraBiasedLinear, LoraLinear, add_adapters, merge
from torchlm.model import Block, Decoder

LORA = LoraConfig(rank=2, alpha=5.0, targets=["q_proj", "down_proj"])
MODEL = ModelConfig(vocab_size=13, dim=8, n_layers=2, n_heads=2, ffn_dim=12, max_seq_len=8, bias=True, lora=LORA)
CONFIG = Config(model=MODEL, train=TrainConfig(steps=4, batch_size=2, device="cpu", cpu_devices=1))
TOKENS = np.random.default_rng(0).integers(13, size=(2, 9)).astype(np.int32)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_its_formula(bias: bool):
    rng = np.random.default_rng(0)
    x, w, a, b, offset = (rng.normal(size=shape) for shape in ((2, 3, 4), (4, 5), (4, 2), (2, 5), (5,)))
    layer = (LoraBiasedLinear if bias else LoraLinear)(4, 5, LORA).double()
    for module, matrix in ((layer, w), (layer.lora_A, a), (layer.lora_B, b)):
        module.weight.data = torch.from_numpy(matrix.T)
    if bias:
        layer.bias.data = torch.from_numpy(offset)
    found = layer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, x @ w + 2.5 * x @ a @ b + (offset if bias else 0), rtol=0, atol=1e-13)


def test_merged_weights_give_the_same_logits_and_without_adapters_no_class_of_theirs_is_there():
    config = replace(MODEL, lora=None)
    adapted, merged, without = add_adapters(Decoder(MODEL)), add_adapters(Decoder(config)), Decoder(config)
    rng = np.random.default_rng(0)
    for p in adapted.parameters():
        p.data = torch.from_numpy(rng.normal(size=p.shape) / 3).float()
    params = dict(adapted.named_parameters())
    merged.load_state_dict(merge(params, MODEL))
    without.load_state_dict({name: p for name, p in params.items() if not is_adapter(name)})
    with torch.no_grad():
        logits, same, other = (model(torch.from_numpy(TOKENS[:, :8])) for model in (adapted, merged, without))
    torch.testing.assert_close(logits, same, rtol=0, atol=2e-5)
    assert (logits - other).abs().max() > 0.01
    assert {type(block) for block in merged.layers} == {Block}
    assert merge(params, config) is params


@pytest.mark.parametrize("cores", [1, 2])
def test_an_update_changes_the_adapters_alone_and_a_checkpoint_has_no_more(cores: int, tmp_path: Path):
    config = replace(CONFIG, train=replace(CONFIG.train, cpu_devices=cores))
    engine, base = Engine(config), Engine(replace(CONFIG, model=replace(MODEL, lora=None)))
    base.init()
    base.save(tmp_path / "base")()
    engine.load_base(tmp_path / "base")
    engine.init()
    before = {name: p.detach().clone() for name, p in engine.state.model.named_parameters()}
    for _ in range(2):  # B is zero at first, and so is A's first gradient
        engine.train_step(TOKENS, 0.1)
    after = dict(engine.state.model.named_parameters())
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if is_adapter(name)} == set(engine.state.params)
    assert {name for name, p in after.items() if p.grad is not None} == changed, "no memory for other gradients"
    assert all(torch.equal(after[name], p) for name, p in base.state.params.items())
    assert engine.state.optimizer is not None
    assert len(engine.state.optimizer.state) == len(changed)
    engine.save(tmp_path / "state")()
    expected = float(engine.train_step(TOKENS, 0.1)["loss"])
    resumed = Engine(config)
    resumed.load_base(tmp_path / "base")
    resumed.restore(tmp_path / "state")
    assert float(resumed.train_step(TOKENS, 0.1)["loss"]) == expected


@pytest.mark.parametrize("masks", ["native", "threefry"])
def test_dropout_is_of_the_adapters_and_in_training_alone(masks: str):
    train = replace(CONFIG.train, dropout_masks=masks)
    models = (replace(MODEL, lora=replace(LORA, dropout=d)) for d in (0.5, 0.0))
    wet, dry = (Engine(replace(CONFIG, model=model, train=train)) for model in models)
    for engine in (wet, dry):
        engine.init()
        assert float(engine.train_step(TOKENS, 0.1)["loss"]) > 0
    losses = [[float(e.train_step(TOKENS, 0.1)["loss"]) for e in (wet, dry)] for _ in range(2)]
    assert all(one != other for one, other in losses)
    wet.state.model.load_state_dict(dry.state.model.state_dict())
    x, y = TOKENS[:, :-1], TOKENS[:, 1:]
    assert float(wet.eval_step(x, y)[0]) == float(dry.eval_step(x, y)[0])


def test_without_adapters_all_weights_come_from_the_base_and_the_optimizer_is_new(tmp_path: Path):
    plain = replace(CONFIG, model=replace(MODEL, lora=None))
    base, other = Engine(plain), Engine(replace(plain, train=replace(CONFIG.train, seed=1)))
    base.init()
    base.train_step(TOKENS, 0.1)
    base.save(tmp_path / "base")()
    other.load_base(tmp_path / "base")
    other.init()
    expected, found = ({name: p.numpy().tobytes() for name, p in e.state.params.items()} for e in (base, other))
    assert found == expected
    assert int(other.state.step) == 0
