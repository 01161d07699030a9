"""llama.cpp computes our logits from the export, and other ones from another model."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.parity.check.witnesses.conftest import MODEL, MODELS


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_its_logits_are_ours(model: str, compare: Callable[..., float]):
    assert compare("llama.cpp", model) < 3e-6


@pytest.mark.slow
def test_a_difference_shows(compare: Callable[..., float]):
    assert compare("llama.cpp", "tied", replace(MODEL, norm_eps=0.01)) > 1e-4
