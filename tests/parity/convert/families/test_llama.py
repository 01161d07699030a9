"""Llama, as transformers makes it, is the same model in both twins."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.convert.families.comparing import SIZES, assert_same_model

YARN = {"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0, "original_max_position_embeddings": 16}
FIELDS: list[dict[str, Any]] = [
    {},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e3}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e3}},
    {"rope_parameters": YARN},
    {"rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.5, "truncate": False}},
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", FIELDS)
def test_it_is_the_same_model_here_and_back(fields: dict[str, Any], tmp_path: Path):
    assert_same_model("llama", SIZES | fields, tmp_path)
