"""Leaves have the names of their places, in any container, and outputs are matched by them."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from parity.ports.trees import matched, named_leaves, projection, rebuilt

Point = namedtuple("Point", "x y")
ONE = np.ones(2)


@dataclass
class Output:
    logits: object
    loss: object = None


def test_containers_name_their_leaves_and_what_is_no_array_is_left_out():
    tree = {"a": (ONE, [ONE]), "b": Point(1.5, None), "c": Output(ONE, {}), "d": object(), 3: True}
    found = named_leaves(tree)
    assert list(found) == ["output['a'][0]", "output['a'][1][0]", "output['b'].x", "output['c'].logits", "output[3]"]
    assert found["output['a'][0]"] is ONE
    assert found["output['b'].x"] == 1.5
    assert list(named_leaves(ONE)) == ["output"]


def test_arguments_are_rebuilt_with_their_arrays_changed():
    seen = []

    def change(name: str, array: np.ndarray) -> np.ndarray:
        seen.append(name)
        return array + 1

    found = rebuilt(({"x": ONE}, None, [ONE, 3]), change)
    np.testing.assert_equal(found, ({"x": ONE + 1}, None, [ONE + 1, 3]))
    assert seen == ["input[0]['x']", "input[2][0]"]


def test_outputs_are_matched_by_name_and_a_bare_one_with_the_first():
    assert matched(["output"], ["output"], None) == {"output": ("output", "output")}
    several = ["output['logits']", "output['hidden']"]
    assert matched(["output"], several, None) == {"output": ("output", several[0])}
    assert matched(several, ["output"], None) == {several[0]: (several[0], "output")}
    assert list(matched(several[:1], several, None)) == several, "one that is missing stays in the table"
    assert matched(several, several[::-1], ["hidden"]) == {several[1]: (several[1], several[1])}


def test_the_weights_of_a_loss_depend_on_the_name_and_not_on_the_order():
    np.testing.assert_array_equal(projection("a", (2, 3)), projection("a", (2, 3)))
    assert not np.array_equal(projection("a", (2, 3)), projection("b", (2, 3)))
    assert projection("a", ()) == 1
