"""The table of optimizers is what both twins' libraries keep."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import lmcore.optim.table
from lmcore import config as configs
from lmcore.config import ModelConfig, OptimConfig, TrainConfig
from lmcore.optim.table import OPTIMIZERS, kinds_of
from parity.backends import framework_settings, make_pair
from parity.backends.base import check_config
from parity.convert.moments import KINDS, zero_moments


def test_a_name_without_a_row_is_an_error_at_import(tmp_path: Path):
    source = Path(lmcore.optim.table.__file__).read_text(encoding="utf-8")
    (tmp_path / "table.py").write_text(source.replace('"sgd"]', '"sgd", "sophia"]'), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"OPTIMIZERS: found .*, expected .*sophia"):
        runpy.run_path(str(tmp_path / "table.py"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_twins_keep_what_the_table_says(name: str):
    model = ModelConfig(vocab_size=11, dim=8, n_layers=1, n_heads=2, max_seq_len=8)
    config = configs.Config(model=model, optim=OptimConfig(name=name), train=TrainConfig(steps=4))
    with framework_settings():
        pair = make_pair(check_config(config, "float32"), np.arange(100, dtype=np.int32) % 11)
        expected = zero_moments(config, "jax", np.dtype(np.float32)).arrays
        for twin in pair:
            step = pair.loaded(twin).step(pair.rows(4, 9), 1e-3)
            assert {kind: set(arrays) for kind, arrays in step.moments.items()} == {
                kind: set(arrays) for kind, arrays in expected.items()
            }
    assert expected.keys() <= KINDS.keys()


def test_the_rest_of_muon_is_adamw():
    assert kinds_of("muon", "layers.0.mlp.up_proj.kernel", 2) == ("momentum",)
    assert kinds_of("muon", "embed_tokens.weight", 2) == ("mean", "square")
    assert kinds_of("muon", "norm.weight", 1) == ("mean", "square")
