"""The ladder: identical models climb it, in every type and odd shape; its command says what it found."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxlm.train
import torchlm.engine
import torchlm.mlps
import torchlm.model
from lmcore.config import Config, ModelConfig, OptimConfig, TrainConfig
from parity.backends import framework_settings, make_pair
from parity.backends.base import Pair, check_config
from parity.check.command import check, main
from parity.check.ladder import climb
from parity.check.rungs.base import Options, training_batches
from parity.check.selftest.mutants import odd_config, shaken
from parity.convert.conversion import convert

TINY = [
    *("--model.dim", "24", "--model.n_layers", "2", "--model.n_heads", "2", "--model.max_seq_len", "24"),
    *("--tokenizer.kind", "bytes", "--train.batch_size", "4", "--train.steps", "20", "--optim.warmup_steps", "2"),
]


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


@pytest.fixture(scope="module")
def runs(text: Path) -> dict[str, Path]:
    """One trained model, as a run of each twin and as a Hugging Face folder."""
    folder = text.parent
    data = ["--data.files", str(text), "--data.dir", str(folder / "data"), "--train.device", "cpu"]
    every = ["--train.steps", "3", "--sample.max_tokens", "1", "--run_dir", str(folder / "jax")]
    with framework_settings():
        assert jaxlm.train.main([*TINY, *data, *every]) == 0
    convert(folder / "jax", "torch", folder / "torch")
    convert(folder / "jax", "hf", folder / "hf")
    return {kind: folder / kind for kind in ("jax", "torch", "hf")}


def tokens(vocab_size: int, count: int = 4000) -> np.ndarray:
    return np.random.default_rng(1).integers(vocab_size, size=count).astype(np.int32)


def shallow() -> Config:
    """The odd model with one layer, which compiles in a third of the time."""
    config = odd_config()
    return replace(config, model=replace(config.model, n_layers=1))


def failures(pair: Pair, rungs: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8), steps: int = 5) -> list[str]:
    results = list(climb(pair, rungs, Options(steps=steps)))
    assert {r.rung for r in results} == set(rungs)
    return [f"rung {r.rung}: {r.what}: {r.where}: {r.max_rel} {r.note}" for r in results if not r.ok]


def shaken_pair(config: Config, scale: float = 8.0) -> Pair:
    fresh = make_pair(config, tokens(config.model.vocab_size))
    return fresh.with_weights(shaken(fresh.start, scale=scale))


# The command.


@pytest.mark.parametrize("rungs", ["0-6", pytest.param("0-11", marks=pytest.mark.slow)])
def test_the_command_proves_and_reports(rungs: str, text: Path, tmp_path: Path, capsys):
    short = ["--model.n_layers", "1", "--dtype", "float64", "--steps", "4", "--rungs", rungs]
    out = ["--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html")]
    assert main([*TINY, *short, "--data.files", str(text), *out]) == 0
    said = capsys.readouterr().out
    assert "The two are the same model" in said
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["ok"] is True
    assert {r["rung"] for r in read["results"]} == set(range(int(rungs[2:]) + 1))
    assert {r["verdict"] for r in read["results"]} <= {"pass", "skipped"}, "no context beyond 1,024 tokens"
    assert read["facts"]["jax"] == jax.__version__
    assert "The two are the same model" in (tmp_path / "r.html").read_text()


def test_the_command_names_the_first_divergent_layer(text: Path, tmp_path: Path, capsys):
    real = torchlm.mlps.GatedMLP.forward

    def faulty(self, x):
        y = real(self, x)
        return y * 1.001 if self is faulty.layer else y

    init = torchlm.model.Block.__init__

    def remember(self, config):
        init(self, config)
        faulty.layer = self.mlp  # the last one made stays

    with (
        mock.patch.object(torchlm.mlps.GatedMLP, "forward", faulty),
        mock.patch.object(torchlm.model.Block, "__init__", remember),
    ):
        code = main([*TINY, "--data.files", str(text), "--dtype", "float32", "--rungs", "3-5"])
    assert code == 1
    assert "They differ first in layers.1 after MLP (rung 3, float32" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "float8"], "--dtype: found 'float8'"),
        (["--rungs", "3", "12"], "--rungs: found '12'"),
        (["--rungs", "x-3"], "--rungs: found 'x-3'"),
        (["--rungs", "6-2"], "--rungs: found '6-2'"),
        (["--device", "tpu"], "--device: found 'tpu'"),
        (["--device", "mps/cpu"], "--device: found 'mps/cpu', expected auto, cpu, cuda or mps, or JAX/TORCH"),
        (["--backends", "jax", "jax"], "--backends: found 'jax jax', expected two of jax, torch"),
        (["--steps", "1"], "--steps: found 1"),
        (["--json", "no/such/folder/r.json"], "--json"),
        (["--report", "."], "--report: '.' is a folder, expected a file to write; name one in it"),
        (["no/such/run"], "no/such/run: found nothing"),
        (["runs/x", "--model.dim", "64"], "model.dim: runs/x brings its own config"),
        (["--witness", "vllm"], "--witness: found 'vllm', expected all, or any of ctranslate2, mlx"),
        (["--witness", "all", "--rungs", "1-8"], "--witness: found --rungs without 9 too, expected rung 9"),
        (["--no-such-option", "1"], "no such field"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(arguments: list[str], said: str, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("kind", ["jax", "torch", "hf"])
def test_runs_of_both_twins_and_hugging_face_folders_are_checked(runs: dict[str, Path], text: Path, kind: str):
    report = check(runs[kind], dtypes=["float64"], rungs=[1, 2, 3, 4, 9], files=[str(text)])
    assert report, str(report)
    assert {"hf": "Hugging Face", "jax": "jax checkpoint, step 3", "torch": "torch checkpoint, step 3"}[kind] in (
        report.subject
    )
    assert len(report.results) == 2 + 2 + 1 + 5 + 1


def test_a_check_leaves_the_settings_of_the_process(text: Path):
    check(config=Config(model=ModelConfig(dim=8, n_heads=1, n_layers=1, max_seq_len=16)), rungs=[2], files=[str(text)])
    assert not jax.config.jax_enable_x64
    assert torch.get_float32_matmul_precision() == "highest"


# What the ladder says of equal models.


@pytest.mark.parametrize(("dtype", "rungs"), [("float32", (1, 2, 3, 4, 5, 6)), ("bfloat16", (2, 3, 4))])
def test_equal_models_climb_in_lower_types(dtype: str, rungs: tuple[int, ...]):
    config = shallow()
    config = replace(config, train=replace(config.train, precision=dtype))
    assert failures(shaken_pair(config, scale=3.0), rungs) == []


def test_identical_models_pass():
    """On the rungs above those that the command climbs in its test."""
    assert _passes(seed=0, config=shallow(), rungs=(7, 8)) == []


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("adafactor", "lion", "sgd")]


@pytest.mark.parametrize("name", ["muon", *SLOW])
def test_every_optimizer_climbs(name: str):
    config = shallow()
    config = replace(config, optim=replace(config.optim, name=name))
    assert failures(shaken_pair(config), rungs=(6,)) == []


@pytest.mark.slow
def test_identical_models_pass_twenty_times_in_twenty_seeds():
    assert [failed for seed in range(20) for failed in _passes(seed, odd_config())] == []


def _passes(seed: int, config: Config, rungs: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)) -> list[str]:
    config = replace(config, train=replace(config.train, seed=seed))
    return failures(make_pair(config, tokens(config.model.vocab_size)), rungs, steps=10)


@st.composite
def odd_shapes(draw: st.DrawFn) -> tuple[dict, dict]:
    """Fields of model and optimizer."""
    n_heads = draw(st.integers(1, 8))
    model = {
        "vocab_size": draw(st.integers(5, 70)),
        "dim": draw(st.integers(1, 24)),
        "n_layers": draw(st.integers(1, 4)),
        "n_heads": n_heads,
        "n_kv_heads": draw(st.sampled_from([k for k in range(1, n_heads + 1) if n_heads % k == 0])),
        "head_dim": 2 * draw(st.integers(1, 16)),
        "ffn_dim": draw(st.integers(1, 40)),
        "max_seq_len": draw(st.integers(2, 97)),
        "tie_embeddings": draw(st.booleans()),
    }
    return model, {"clip": draw(st.sampled_from([0.0, 0.5])), "beta2": draw(st.sampled_from([0.95, 0.999]))}


def _check_shape(shape: tuple[dict, dict], scale: float) -> None:
    model, optim = shape
    config = Config(model=ModelConfig(**model), optim=OptimConfig(**optim), train=TrainConfig(steps=20))
    with framework_settings():
        assert failures(shaken_pair(check_config(config, "float64"), scale), rungs=(1, 2, 3, 4, 5, 6)) == []


SHAPES = {"suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@settings(max_examples=1, **SHAPES)
@given(odd_shapes(), st.sampled_from([1.0, 10.0]))
def test_odd_shapes_climb(shape: tuple[dict, dict], scale: float):
    _check_shape(shape, scale)


@pytest.mark.slow
@settings(max_examples=25, **SHAPES)
@given(odd_shapes(), st.sampled_from([1.0, 10.0]))
def test_many_odd_shapes_climb(shape: tuple[dict, dict], scale: float):
    _check_shape(shape, scale)


@pytest.mark.slow
def test_real_text_climbs(lm_data: Path):
    files = sorted(str(path) for path in (lm_data / "tinyshakespeare").iterdir() if path.suffix in (".txt", ".parquet"))
    report = check(files=files[:1], steps=20)
    assert report, str(report)


# What the ladder is made of.


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_updates_by_muon_are_held_to_rounding_and_a_wrong_one_is_not_excused(dtype):
    """Newton–Schulz makes rounding large in float32; in float64 the least norm, which optax adds, would show."""
    config = replace(shallow(), optim=replace(shallow().optim, name="muon", lr=3e-3))
    pair = make_pair(check_config(config, dtype), tokens(config.model.vocab_size))
    lines = [line for line in climb(pair, [7], Options(steps=6, draws=1)) if not line.curves]
    assert [line.what for line in lines if not line.ok] == []
    real = torchlm.engine.apply_updates

    def faulty(optimizer, lr, scaler=None):
        real(optimizer, lr * 1.001, scaler)

    with mock.patch.object(torchlm.engine, "apply_updates", faulty):
        lines = {line.what.partition(": ")[2]: line for line in climb(pair, [7], Options(steps=6, draws=1))}
    assert lines["updates"].verdict == "FAIL"


def test_listening_changes_nothing():
    pair = shaken_pair(odd_config())
    rows = pair.rows(2, 11)
    for twin in pair:
        pair.loaded(twin)
        heard = twin.activations(rows)
        assert next(iter(heard)) == "embedding"
        assert list(heard)[-1] == "final norm"
        assert len(heard) == 2 + 15 * 3
        head = pair.start["embed_tokens.weight"]
        np.testing.assert_allclose(heard["final norm"] @ head.T, twin.logits(rows), rtol=1e-12, atol=1e-12)
    pair.loaded(pair.port)
    assert torchlm.model.causal_attention.__module__ == "torchlm.fast.attention"
    assert not any(module._forward_hooks for module in pair.port.engine.state.model.modules())


def test_given_gradients_replace_a_twins_own():
    pair = shaken_pair(shallow())
    batch = training_batches(pair, 1)[0]
    given = {name: np.full(value.shape, 1e-3) for name, value in pair.start.items()}
    for twin in pair:
        own = pair.loaded(twin).step(batch, 0.1)
        replaced = pair.loaded(twin).step(batch, 0.1, given)
        assert np.array_equal(own.grads["norm.weight"], replaced.grads["norm.weight"]), "what the engine made is told"
        assert np.ptp(replaced.moments["mean"]["norm.weight"]) == 0
        assert np.ptp(own.moments["mean"]["norm.weight"]) > 0


def test_optaxs_bias_correction_is_the_only_difference_at_a_high_beta():
    config = shallow()
    optim = replace(config.optim, beta2=0.999, lr=1.0, warmup_steps=0, weight_decay=0.0)
    config = replace(config, optim=optim, train=replace(config.train, precision="float32"))
    lines = list(climb(shaken_pair(config), [6]))
    assert [line.verdict for line in lines] == ["pass"] * 3
    raw = float(lines[0].note.split()[-1])
    assert raw > lines[0].max_rel
