"""The tensors of a family's file: named as there, each part read alone, and every mistake named."""

from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import ModelConfig
from lmcore.errors import UserError
from parity.convert.families import FAMILIES
from parity.convert.families.tensors import from_family, to_family
from parity.convert.names import table
from parity.convert.tensors import Tensors

MODEL = ModelConfig(vocab_size=11, dim=24, n_layers=2, n_heads=3, ffn_dim=20, rotary_dim=4)
NEOX = replace(MODEL, norm="layernorm", mlp="gelu", bias=True, tie_embeddings=False)


def weights(model: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {row.hf: rng.standard_normal(row.shape_in("hf")).astype(np.float32) for row in table(model)}


@pytest.mark.parametrize(("name", "model"), [("phi3", MODEL), ("gpt_neox", NEOX), ("llama", MODEL)])
def test_tensors_come_back_bit_by_bit(name: str, model: ModelConfig):
    given = weights(model)
    there = to_family(given, FAMILIES[name], model)
    back = from_family(there, FAMILIES[name], model)
    assert list(back) == list(given)
    assert all(stored.shape == there[name].shape for name, stored in there.stored.items())
    for each in given:
        np.testing.assert_array_equal(back[each], given[each])


def test_rotated_features_come_first_in_a_family():
    given = weights(MODEL)
    fused = to_family(given, FAMILIES["phi3"], MODEL)["model.layers.0.self_attn.qkv_proj.weight"]
    ours = given["model.layers.0.self_attn.q_proj.weight"]
    # Of 8 features ours rotates 0 with 4 and 1 with 5; a family 0 with 2 and 1 with 3.
    np.testing.assert_array_equal(fused[:8], ours[[0, 1, 4, 5, 2, 3, 6, 7]])
    values = given["model.layers.0.self_attn.v_proj.weight"]
    np.testing.assert_array_equal(fused[-24:], values)


def test_what_does_not_fit_is_named_as_in_the_file():
    family = FAMILIES["gpt_neox"]
    there = dict(to_family(weights(NEOX), family, NEOX))
    del there["gpt_neox.layers.1.attention.dense.bias"]
    there["gpt_neox.layers.0.attention.query_key_value.bias"] = np.zeros(9, np.float32)
    there["other"] = np.zeros(2, np.float32)
    with pytest.raises(UserError) as caught:
        from_family(Tensors.of(there), family, NEOX)
    for message in (
        "other [2] is in no row",
        "gpt_neox.layers.1.attention.dense.bias [24] is missing",
        "gpt_neox.layers.0.attention.query_key_value.bias is [9], expected [72]",
    ):
        assert message in str(caught.value)
