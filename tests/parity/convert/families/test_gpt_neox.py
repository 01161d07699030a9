"""GPT-NeoX, as transformers makes it, is the same model in both twins."""

from pathlib import Path

import pytest

from tests.parity.convert.families.comparing import SIZES, assert_same_model

FIELDS = {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
}


def test_it_is_the_same_model_here_and_back(tmp_path: Path):
    assert_same_model("gpt_neox", SIZES | FIELDS, tmp_path)


@pytest.mark.slow
def test_without_parallel_branches(tmp_path: Path):
    assert_same_model("gpt_neox", SIZES | FIELDS | {"use_parallel_residual": False, "hidden_act": "relu"}, tmp_path)
