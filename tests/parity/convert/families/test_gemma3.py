"""Gemma 3, as transformers makes it, is the same model in both twins."""

from pathlib import Path

import pytest

from tests.parity.convert.families.comparing import SIZES, assert_same_model

FIELDS = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5, "num_hidden_layers": 6}


@pytest.mark.slow
def test_it_is_the_same_model_here_and_back(tmp_path: Path):
    assert_same_model("gemma3_text", SIZES | FIELDS, tmp_path)
