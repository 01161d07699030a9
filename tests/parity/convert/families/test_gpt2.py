"""GPT-2, as transformers makes it, is the same model in both twins."""

from pathlib import Path

import pytest

from tests.parity.convert.families.comparing import assert_same_model

FIELDS = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 96, "n_inner": None}


@pytest.mark.slow
def test_it_is_the_same_model_here_and_back(tmp_path: Path):
    assert_same_model("gpt2", FIELDS, tmp_path)
