"""Gemma, as transformers makes it, is the same model in both twins."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.convert.families.comparing import SIZES, assert_same_model


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"head_dim": 8}])
def test_it_is_the_same_model_here_and_back(fields: dict[str, Any], tmp_path: Path):
    assert_same_model("gemma", SIZES | fields, tmp_path)
