"""Derived numbers follow what they are derived from, through replacing and saving; given ones stay."""

from dataclasses import replace
from pathlib import Path

import pytest

from lmcore.config import Config, differences, load, save
from lmcore.config.values import Derived, explicit
from tests.lmcore.config.every_field import DEFAULTS, RESOLVED


def test_a_derived_number_counts_as_not_given():
    assert Derived(7) == 7
    assert explicit(Derived(7)) == 0
    assert explicit(7) == 7


DERIVING = {
    "train.steps": {"optim.warmup_steps"},
    "train.batch_size": {"eval.batch_size"},
    "train.grad_accum": {"eval.batch_size"},
    "model.max_seq_len": {"train.seq_len"},
    "model.dim": {"model.head_dim", "model.rotary_dim", "model.ffn_dim"},
    "model.n_heads": {"model.head_dim", "model.rotary_dim", "model.n_kv_heads"},
    "model.mlp": {"model.ffn_dim"},
}


@pytest.mark.parametrize("name", DERIVING)
def test_what_is_derived_follows_through_replacing_and_saving_and_what_is_given_stays(name: str, tmp_path: Path):
    values = {"train.steps": 40, "model.dim": 96, "model.n_heads": 2, "model.mlp": "gelu", "train.grad_accum": 2}
    group, field = name.split(".")
    value = values.get(name, 512)

    def after(config: Config) -> set[str]:
        save(config, tmp_path / "config.yaml")
        config = load(tmp_path / "config.yaml")
        new = replace(config, **{group: replace(getattr(config, group), **{field: value})})
        return set(differences(config, new))

    assert after(DEFAULTS) == {name} | DERIVING[name]
    if name != "model.n_heads":  # the given heads' width or number forbid others
        assert after(RESOLVED) == {name}
