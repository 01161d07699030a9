"""A run on a mesh is the run of one device, and its state is spread over all of them."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlm.engine import Engine
from jaxlm.sharding import batch_sharding
from lmcore.config import Config, ModelConfig, ParallelConfig, SampleConfig, TrainConfig
from lmcore.generate.prompting import write_tokens

MODEL = ModelConfig(vocab_size=40, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=24, max_seq_len=16)
TRAIN = TrainConfig(batch_size=8, precision="float64", device="cpu")
CONFIG = Config(model=MODEL, train=TRAIN, parallel=ParallelConfig(data=1))
BATCHES = np.random.default_rng(0).integers(40, size=(3, 8, 17)).astype(np.int32)
MESHES = {
    "fsdp": ParallelConfig(data=1, fsdp=2),
    "tensor": ParallelConfig(data=1, tensor=2),
    "sequence": ParallelConfig(data=1, tensor=2, sequence=True),
}


def varied(model: dict | None = None, optimizer: str = "adamw", **train: object) -> Config:
    return replace(
        CONFIG,
        model=replace(MODEL, **(model or {})),
        optim=replace(CONFIG.optim, name=optimizer),
        train=replace(TRAIN, **train),
    )


def trained(config: Config) -> tuple[list[dict[str, float]], Engine]:
    """Metrics of three steps and of an evaluation of an odd number of rows, and the engine."""
    engine = Engine(config)
    engine.init()
    rows = [{n: float(v) for n, v in engine.train_step(batch, 1e-2).items()} for batch in BATCHES]
    loss, count = engine.eval_step(BATCHES[0, :7, :-1], BATCHES[0, :7, 1:])
    return [*rows, {"loss": float(loss), "count": float(count)}], engine


VARIED = {
    "Llama": CONFIG,
    "in a loop, with Muon": varied({"scan_layers": True}, "muon"),
    "dropout, remat, accumulation": varied({"dropout": 0.2}, remat=True, grad_accum=2),
    "a vocabulary that is odd, Adafactor": varied({"vocab_size": 41, "tie_embeddings": False}, "adafactor"),
    "biases, learned positions": varied({"bias": True, "position": "learned", "norm": "layernorm"}),
    "Lion": varied(optimizer="lion"),
}


@pytest.fixture(scope="module")
def alone() -> Callable[[str], tuple[list[dict[str, float]], Engine]]:
    """The run of one device of each variant, once."""
    return cache(lambda name: trained(VARIED[name]))


QUICK = [
    ("Llama", "sequence"),
    ("in a loop, with Muon", "fsdp"),
    ("dropout, remat, accumulation", "tensor"),
]
SLOW = [(name, mesh) for name in VARIED for mesh in MESHES if (name, mesh) not in QUICK]
PAIRS = [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)]


@pytest.mark.parametrize(("name", "mesh"), PAIRS)
def test_a_run_on_a_mesh_is_the_run_of_one_device(name: str, mesh: str, alone: Callable):
    expected, one = alone(name)
    found, engine = trained(replace(VARIED[name], parallel=MESHES[mesh]))
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-12, abs=0)
    assert engine.mesh.size == 2
    states = [jax.tree.leaves((e.state.params, e.state.opt_state)) for e in (engine, one)]
    for value, other in zip(*states, strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mesh", MESHES)
def test_initial_weights_have_the_same_bits(mesh: str):
    engines = [Engine(replace(CONFIG, parallel=parallel)) for parallel in (MESHES[mesh], ParallelConfig(data=1))]
    for engine in engines:
        engine.init()
    for name, value in engines[0].state.params.items():
        np.testing.assert_array_equal(value, engines[1].state.params[name])


@pytest.mark.parametrize("scan", [False, True])
def test_each_device_holds_half_of_every_matrix_and_of_its_moments(scan: bool):
    config = varied({"scan_layers": scan})
    for mesh in ("fsdp", "tensor"):
        _, engine = trained(replace(config, parallel=MESHES[mesh]))
        for leaf in jax.tree.leaves(engine.held):
            if leaf.ndim - scan >= 2 or (leaf.ndim == 2 and leaf.shape[0] == 40):
                assert leaf.addressable_shards[0].data.size * 2 == leaf.size, leaf.shape


def collectives(config: Config) -> set[tuple[str, int]]:
    """Kind and number of dimensions of each collective of the train step."""
    engine = Engine(config)
    engine.init()
    tokens = jax.device_put(BATCHES[:1], batch_sharding(engine.mesh, 1))
    with jax.set_mesh(engine.mesh):
        text = engine._train_step.lower(engine.held, tokens, 1e-2).compile().as_text()
    found = re.findall(r"= (\(?\w+\[[\d,]*\].*?) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text)
    return {
        (kind, max(shape.count(",") + 1 for shape in re.findall(r"\[([\d,]*)\]", shapes))) for shapes, kind in found
    }


def test_fsdp_gathers_weights_and_no_activations():
    assert ("all-gather", 2) in collectives(replace(CONFIG, parallel=MESHES["fsdp"]))
    assert {rank for _, rank in collectives(replace(CONFIG, parallel=MESHES["fsdp"]))} <= {1, 2}


def test_tensor_parallelism_sums_activations_and_gathers_nothing():
    assert {kind for kind, _ in collectives(replace(CONFIG, parallel=MESHES["tensor"]))} == {"all-reduce"}


def test_a_checkpoint_of_a_mesh_is_restored_on_any_other(tmp_path: Path):
    _, engine = trained(replace(CONFIG, parallel=MESHES["fsdp"]))
    engine.save(tmp_path / "state")()
    for parallel in (MESHES["sequence"], ParallelConfig(data=1), ParallelConfig(data=2)):
        other = Engine(replace(CONFIG, parallel=parallel))
        other.restore(tmp_path / "state")
        for value, saved in zip(jax.tree.leaves(other.state), jax.tree.leaves(engine.state), strict=True):
            np.testing.assert_array_equal(value, saved)


def test_text_is_generated_from_a_mesh():
    prompts, options = [[1, 2, 3]], SampleConfig(max_tokens=5, temperature=0)
    texts = []
    for parallel in (MESHES["tensor"], ParallelConfig(data=1)):
        _, engine = trained(replace(CONFIG, parallel=parallel))
        written = write_tokens(engine.generator(options), prompts, options, context=16, pad=0)
        texts.append(np.concatenate(list(written), axis=1).tolist())
    assert texts[0] == texts[1]
