"""Phi-3, as transformers makes it, is the same model in both twins."""

from pathlib import Path

import pytest

from tests.parity.convert.families.comparing import SIZES, assert_same_model

FIELDS = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 2 / 3}, "num_hidden_layers": 2}


@pytest.mark.slow
def test_it_is_the_same_model_here_and_back(tmp_path: Path):
    assert_same_model("phi3", SIZES | FIELDS, tmp_path)


@pytest.mark.slow
def test_with_a_window(tmp_path: Path):
    assert_same_model("phi3", SIZES | {"sliding_window": 7}, tmp_path)
