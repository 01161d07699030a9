"""The train step against its definition: accumulation, remat and precision change nothing they should not."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcore.config import Config, ModelConfig, TrainConfig
from lmcore.run.engine import Engine as Protocol
from torchlm import device
from torchlm.engine import Engine

MODEL = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)
TRAIN = TrainConfig(batch_size=8, steps=10, device="cpu")


def batch(config: Config, step: int) -> np.ndarray:
    shape = config.train.batch_size, config.train.seq_len + 1
    return np.random.default_rng(step).integers(0, config.model.vocab_size, shape, dtype=np.int32)


def train(engine: Engine, first: int, steps: int, lr: float = 1e-2) -> list[float]:
    metrics = [engine.train_step(batch(engine.config, step), lr) for step in range(first, first + steps)]
    return [float(row["loss"]) for row in metrics]


def engine_after(steps: int, config: Config) -> tuple[Engine, list[float]]:
    engine = Engine(config)
    engine.init()
    return engine, train(engine, 0, steps)


def furthest(one: Engine, other: Engine) -> float:
    return max(float((p - other.state.params[n]).abs().max()) for n, p in one.state.params.items())


def test_the_engine_is_what_the_loop_asks_for():
    engine, _ = engine_after(0, Config(model=MODEL, train=TRAIN))
    assert isinstance(engine, Protocol)
    assert not isinstance(engine.model, Protocol)


def test_accumulation_changes_nothing_but_rounding():
    whole, losses = engine_after(3, Config(model=MODEL, train=TRAIN))
    parts, part_losses = engine_after(3, Config(model=MODEL, train=replace(TRAIN, grad_accum=4)))
    np.testing.assert_allclose(part_losses, losses, rtol=1e-6)
    assert furthest(whole, parts) < 2e-5
    other, _ = engine_after(3, Config(model=MODEL, train=replace(TRAIN, seed=1)))
    assert furthest(whole, other) > 1e-2


@pytest.mark.parametrize(("cores", "parts"), [(2, 2), (3, 2), (8, 8)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_number_of_parts_changes_nothing_but_rounding(cores: int, parts: int, tied: bool):
    model = replace(MODEL, tie_embeddings=tied)
    train = replace(TRAIN, precision="float64", grad_accum=1)
    whole, losses = engine_after(3, Config(model=model, train=replace(train, cpu_devices=1)))
    split, split_losses = engine_after(3, Config(model=model, train=replace(train, cpu_devices=cores)))
    assert (whole._loss_sum.parts, split._loss_sum.parts) == (1, parts)
    np.testing.assert_allclose(split_losses, losses, rtol=1e-13)
    assert furthest(whole, split) < 1e-9
    other, _ = engine_after(3, Config(model=model, train=replace(train, cpu_devices=cores, seed=1)))
    assert furthest(whole, other) > 1e-2


def test_remat_changes_nothing_even_with_dropout():
    model = replace(MODEL, dropout=0.3)
    plain, losses = engine_after(3, Config(model=model, train=TRAIN))
    remat, remat_losses = engine_after(3, Config(model=model, train=replace(TRAIN, remat=True)))
    assert losses == remat_losses
    assert furthest(plain, remat) == 0
    assert losses != engine_after(3, Config(model=MODEL, train=TRAIN))[1]


def test_evaluation_draws_no_dropout_and_counts_only_real_targets():
    engine, _ = engine_after(1, Config(model=replace(MODEL, dropout=0.5), train=TRAIN))
    rows = batch(engine.config, 0)
    tokens, targets = rows[:, :-1], rows[:, 1:].copy()
    targets[3:] = -1
    loss, count = engine.eval_step(tokens, targets)
    again, _ = engine.eval_step(tokens[:3], targets[:3])
    assert int(count) == 3 * 7
    assert float(loss) == pytest.approx(float(again), rel=1e-6)
    assert float(engine.eval_step(tokens, rows[:, 1:])[0]) > float(loss) * 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_a_restored_run_goes_on_to_the_bit(precision: str, tmp_path: Path):
    model = replace(MODEL, dropout=0.2)
    config = Config(model=model, train=replace(TRAIN, precision=precision, grad_accum=2))
    engine, _ = engine_after(3, config)
    finish = engine.save(tmp_path / "state")
    unbroken = train(engine, 3, 3)  # while it is not yet written: the state was copied
    finish()
    resumed = Engine(config)
    resumed.restore(tmp_path / "state")
    assert train(resumed, 3, 3) == unbroken
    assert furthest(engine, resumed) == 0
    weights_only = Engine(config)
    weights_only.init()
    weights_only.state.model.load_state_dict(resumed.state.params)
    assert train(weights_only, 6, 3) != train(resumed, 6, 3)


def test_weights_alone_evaluate_like_the_whole_state(tmp_path: Path):
    engine, _ = engine_after(2, Config(model=MODEL, train=TRAIN))
    engine.save(tmp_path / "state")()
    reader = Engine(engine.config)
    reader.restore(tmp_path / "state", optimizer=False)
    rows = batch(engine.config, 0)
    assert torch.equal(reader.eval_step(rows[:, :-1], rows[:, 1:])[0], engine.eval_step(rows[:, :-1], rows[:, 1:])[0])


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_float16_skips_what_its_scaler_rejects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonfinite: str):
    monkeypatch.setitem(device.PRECISIONS, "cpu", ("float32", "float16"))  # torch's scaler works there for one test
    config = Config(model=MODEL, train=replace(TRAIN, precision="float16", cpu_devices=1))
    config = replace(config, optim=replace(config.optim, nonfinite=nonfinite))
    engine, _ = engine_after(2, config)
    before = {name: p.clone() for name, p in engine.state.params.items()}
    scale = engine.state.scaler.get_scale()
    engine.state.scaler.load_state_dict(engine.state.scaler.state_dict() | {"scale": 2.0**80})
    metrics = engine.train_step(batch(config, 2), 1e-2)
    assert bool(metrics["skipped"])
    assert np.isfinite(float(metrics["loss"]))
    assert all(torch.equal(p, before[name]) for name, p in engine.state.params.items())
    assert engine.state.scaler.get_scale() == 2.0**79
    engine.state.scaler.load_state_dict(engine.state.scaler.state_dict() | {"scale": scale})
    engine.save(tmp_path / "state")()
    resumed = Engine(config)
    resumed.restore(tmp_path / "state")
    assert train(engine, 3, 3) == train(resumed, 3, 3)
    assert not bool(resumed.train_step(batch(config, 6), 1e-2)["skipped"])
    assert resumed.state.scaler.state_dict()["_growth_tracker"] == 4
    assert furthest(engine, resumed) > 0  # one step ahead: the comparison sees a difference


COMPILED = """
import json, sys
from torch._dynamo.utils import counters
from tests.torchlm.test_engine import *
model = replace(MODEL, n_layers=3, scan_layers=sys.argv[1] == "True")
plain, losses = engine_after(3, Config(model=model, train=replace(TRAIN, grad_accum=2)))
compiled, compiled_losses = engine_after(3, Config(model=model, train=replace(TRAIN, grad_accum=2, compile=True)))
operations = counters["stats"]["calls_captured"]
print(json.dumps([losses, compiled_losses, furthest(plain, compiled), operations]))
"""


@pytest.mark.slow
def test_compilation_changes_nothing_but_rounding_and_one_block_serves_all_layers():
    # In processes of their own: the compiler does not follow the checks of shapes that the tests put into everything.
    root, captured = Path(__file__).parents[2], {}
    for scan_layers in (False, True):
        command = [sys.executable, "-c", COMPILED, str(scan_layers)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        losses, compiled_losses, apart, captured[scan_layers] = json.loads(done.stdout)
        np.testing.assert_allclose(compiled_losses, losses, rtol=1e-6)
        assert 0 < apart < 2e-5
    assert captured[True] < captured[False] / 2


def test_the_score_of_each_target_adds_up_to_the_loss():
    engine, _ = engine_after(1, Config(model=MODEL, train=TRAIN))
    rows = batch(engine.config, 3)[:3]
    tokens, targets = rows[:, :-1], rows[:, 1:].copy()
    targets[1, 2:] = -1
    logprobs, likeliest = engine.score(tokens, targets)
    assert logprobs.shape == likeliest.shape == targets.shape
    assert float(engine.eval_step(tokens, targets)[0]) == pytest.approx(-logprobs.sum(), rel=1e-6)
    assert not logprobs[1, 2:].any()
    best = engine.state.model(torch.from_numpy(tokens)).argmax(dim=-1).numpy().astype(np.int32)
    assert engine.score(tokens, best)[1].all()
    assert not engine.score(tokens, (best + 1) % MODEL.vocab_size)[1].any()
