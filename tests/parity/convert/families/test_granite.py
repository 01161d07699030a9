"""Granite, as transformers makes it, is the same model in both twins."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.convert.families.comparing import SIZES, assert_same_model

FACTORS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 13.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [FACTORS])
def test_it_is_the_same_model_here_and_back(fields: dict[str, Any], tmp_path: Path):
    assert_same_model("granite", SIZES | fields, tmp_path)
