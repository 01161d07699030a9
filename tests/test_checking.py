"""The packages' annotations are checked at every call: types, shapes, and axes that two arguments share."""

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float

from lmcore.config import ModelConfig
from lmcore.model.init import initial_weight
from tests.checking import checked


def test_what_the_packages_define_is_checked():
    with pytest.raises(BeartypeCallHintParamViolation, match="parameter dim='8'"):
        ModelConfig(dim="8")  # type: ignore[arg-type]
    assert ModelConfig(norm_eps=1).norm_eps == 1, "an int is a float"
    with pytest.raises(BeartypeCallHintParamViolation, match=r"parameter seed=1\.5"):
        initial_weight(1.5, "norm.weight", (3,), ModelConfig())  # type: ignore[arg-type]


def test_axes_of_one_name_are_of_one_size():
    @checked
    def product(a: Float[np.ndarray, "m k"], b: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "m n"]:
        return a @ b if len(a) > 1 else b

    assert product(np.ones((2, 3)), np.ones((3, 4))).shape == (2, 4)
    with pytest.raises(BeartypeCallHintParamViolation):
        product(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(BeartypeCallHintReturnViolation):
        product(np.ones((1, 3)), np.ones((3, 4)))
