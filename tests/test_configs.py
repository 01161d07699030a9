"""Every YAML in configs/ is a valid run whose model takes shape, without a byte allocated for it."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxlm.functional import Model
from lmcore.ablation import read_plan, trials
from lmcore.cli import parse
from lmcore.config import Config
from lmcore.trainer import with_vocabulary

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


def test_tinystories_has_about_fifteen_million_parameters() -> None:
    config = read(CONFIGS[0].with_name("tinystories.yaml"))
    assert Model(with_vocabulary(config, 32000)).parameter_count == 15_191_712
