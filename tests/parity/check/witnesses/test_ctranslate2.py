"""CTranslate2 computes our logits from the export, and other ones from another model."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lmcore.errors import UserError
from tests.parity.check.witnesses.conftest import MODEL, MODELS


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if name != "llama3"])
def test_its_logits_are_ours(model: str, compare: Callable[..., float]):
    assert compare("ctranslate2", model) < 3e-6


@pytest.mark.slow
def test_a_model_that_it_does_not_compute_is_refused(compare: Callable[..., float]):
    with pytest.raises(UserError, match=r"^model.rope_scaling: ctranslate2 computes without it"):
        compare("ctranslate2", "llama3")


@pytest.mark.slow
def test_a_difference_shows(compare: Callable[..., float]):
    assert compare("ctranslate2", "tied", replace(MODEL, norm_eps=0.01)) > 1e-4
