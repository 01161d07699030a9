"""The shapes of a plan are those of the model, each layer counted."""

import math

from jaxlm.functional import Model
from lmcore.config import Config
from parity.plan.shapes import Shapes


def test_the_weights_are_all_parameters(tiny: Config, shapes: Shapes) -> None:
    assert sum(math.prod(weight.shape) * weight.count for weight in shapes.weights) == Model(tiny).parameter_count
    assert {weight.count for weight in shapes.weights} == {1, tiny.model.n_layers}
    assert (shapes.wide, shapes.narrow) == (4, 4)
