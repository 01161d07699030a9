"""The fields that families share: rotary positions, layer types, and the messages of wrong ones."""

from typing import Any

import pytest

from lmcore.config import ModelConfig, RopeScaling
from parity.convert.families.base import Fields
from parity.convert.families.common import layer_types, read_layers, read_rope, scale, write_rope

MODEL = ModelConfig(vocab_size=11, dim=24, n_layers=3, n_heads=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_types": ["full_attention"]}, "expected num_hidden_layers = 2 of them"),
        ({"layer_types": ["chunked", "chunked"]}, "expected a list of full_attention and sliding_attention"),
        ({"layer_types": 3}, "layer_types: found 3"),
    ],
)
def test_wrong_layer_types_are_named(settings: dict[str, Any], message: str):
    fields = Fields({"num_hidden_layers": 2} | settings)
    read_layers(fields, ["full"], 4)
    assert message in fields.problems[0]


def test_layer_types_are_reduced_to_their_period():
    fields = Fields({"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2})
    assert read_layers(fields, [], 4) == {"layer_types": ["sliding", "full"], "sliding_window": 4}
    assert read_layers(fields, [], None) == {"layer_types": ["full"]}
    model = ModelConfig(n_layers=3, layer_types=["sliding", "nope"], sliding_window=2)
    assert layer_types(model) == ["sliding_attention", "full_attention", "sliding_attention"]


def test_scaling_is_read_as_it_is_written():
    for kind in ("llama3", "linear", "dynamic", "yarn"):
        scaling = RopeScaling(type=kind, factor=3.0)
        written = write_rope(ModelConfig(rope_scaling=scaling, rope_theta=7.0))
        found = read_rope(fields := Fields(written))
        assert fields.problems == []
        assert (found["rope_theta"], RopeScaling(**found["rope_scaling"])) == (7.0, scaling)


def test_a_part_of_a_head_is_rotated():
    sizes = {"hidden_size": 24, "num_attention_heads": 3}
    for stated in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        assert read_rope(Fields(sizes | stated), partial=True)["rotary_dim"] == 4
        read_rope(whole := Fields(sizes | stated))
        assert whole.problems == ["partial_rotary_factor: found 0.5, expected 1"]
    assert "rotary_dim" not in read_rope(Fields(sizes), partial=True)


def test_a_family_has_its_own_kinds_of_scaling():
    fields = Fields({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9}})
    read_rope(fields, types=("default",))
    assert fields.problems == ["rope_scaling.rope_type: found 'yarn', expected one of default"]


def test_the_usual_scale_is_none():
    assert scale(8**-0.5, 8) == 0
    assert scale(0.3, 8) == 0.3
