"""Every YAML in configs/ is a valid run whose model takes shape, without a byte allocated for it."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxlm.functional import Model
from lmcore.ablation.plan import read_plan, trials
from lmcore.config import Config
from lmcore.config.cli import parse
from lmcore.run.mesh import MeshShape, check_mesh, mesh_shape
from lmcore.run.opening import with_vocabulary
from parity.plan.hardware import read_target
from parity.plan.memory import device_memory
from parity.plan.meshes import estimate
from parity.plan.report import sums
from parity.plan.shapes import shapes_of
from parity.plan.traffic import exchanges
from parity.plan.worker import compile_step

ABLATIONS = Path(__file__).parent.parent / "configs" / "ablations.yaml"
CONFIGS = sorted(path for path in ABLATIONS.parent.glob("*.yaml") if path != ABLATIONS)
TRIALS = [trial for trial in trials(read_plan(ABLATIONS), Path("runs")) if trial.seed == 0]


def read(path: Path) -> Config:
    return parse(["--config", str(path)], prog="test", description="")


@pytest.mark.parametrize(
    "config",
    [*map(read, CONFIGS), *(t.config for t in TRIALS)],
    ids=[p.stem for p in CONFIGS] + [t.entry for t in TRIALS],
)
def test_config_makes_a_model(config: Config) -> None:
    config = with_vocabulary(config, config.tokenizer.vocab_size)
    model = Model(config)
    tokens = jax.ShapeDtypeStruct((2, config.train.seq_len), jnp.int32)
    logits = jax.eval_shape(lambda p, t: model(p)(t), model.shapes, tokens)
    assert logits.shape == (2, config.train.seq_len, config.model.vocab_size)
    assert logits.dtype == jnp.float32


def test_quickstart_is_the_default() -> None:
    default = parse([], prog="test", description="")
    assert read(CONFIGS[0].with_name("quickstart.yaml")) == default
    assert replace(default, run_dir=None) == Config()
    assert read(CONFIGS[0].with_name("tinystories.yaml")) != default


SIZES = {
    "shakespeare_char": (66, 0.81e6),
    "shakespeare_bpe": (1280, 659e3),
    "chat": (1024, 0.94e6),
    "classic": (66, 4.02e6),
    "tinystories": (32000, 15.2e6),
    "tinystories_small": (4096, 2.56e6),
    "wikitext103": (10000, 18.31e6),
    "openwebtext_sample": (16384, 17e6),
    "openwebtext_125m": (50304, 125e6),
    "gpt2_small": (50257, 125e6),
    "llama_1b": (128256, 1.24e9),
    "llama_8b": (128256, 8.04e9),
}
"""Recipe -> size of its vocabulary, and the most parameters that it may have: that figure, to within a fiftieth."""


@pytest.mark.parametrize("name", SIZES)
def test_recipe_has_the_size_that_it_names(name: str) -> None:
    vocab_size, most = SIZES[name]
    config = with_vocabulary(read(CONFIGS[0].with_name(f"{name}.yaml")), vocab_size)
    assert 0.98 * most < Model(config).parameter_count <= most


def test_every_recipe_has_its_size_tested_and_takes_local_files() -> None:
    assert {path.stem for path in CONFIGS} == SIZES.keys() | {"quickstart"}
    for path in CONFIGS:
        config = parse(["--config", str(path), "--data.files", "a.txt"], prog="test", description="")
        assert config.data.files == ["a.txt"]


LARGE = [
    (name, devices, target)
    for name in ("llama_1b", "llama_8b")
    for devices, target in ((8, "cuda:h100"), (256, "tpu:v5e"))
]


def on_devices(name: str, devices: int) -> tuple[Config, MeshShape]:
    """Return a config with the options that its comments give for a number of devices, and its mesh."""
    path = CONFIGS[0].with_name(f"{name}.yaml")
    options = re.search(rf"# .*{path.name} (--.*?) +on {devices} devices", path.read_text(encoding="utf-8"))
    assert options or devices == 8
    config = parse(["--config", str(path), *(options[1].split() if options else [])], prog="", description="")
    return with_vocabulary(config, SIZES[name][0]), mesh_shape(config.parallel, devices)


@pytest.mark.parametrize(("name", "devices", "target"), LARGE)
def test_a_large_recipe_fits_on_8_and_256_devices(name: str, devices: int, target: str) -> None:
    config, mesh = on_devices(name, devices)
    check_mesh(config, mesh)
    assert (mesh.fsdp, config.train.batch_size) == (devices, 256)
    assert estimate(config, shapes_of(config), mesh, read_target(target, devices)).fits
    small, _ = on_devices(name, 8)
    for fewer in (1, 2, 4):
        check_mesh(small, mesh_shape(small.parallel, fewer))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices", "target"), LARGE)
def test_a_large_recipe_compiles_for_8_and_256_devices(name: str, devices: int, target: str) -> None:
    config, mesh = on_devices(name, devices)
    shapes, compiled = shapes_of(config), compile_step(config, mesh)
    assert compiled.state == device_memory(config, shapes, mesh).state
    counted, formula = sums(compiled.collectives), sums(exchanges(config, shapes, mesh, compiled_for_cpu=True))
    assert counted == pytest.approx(formula, rel=1e-4)
