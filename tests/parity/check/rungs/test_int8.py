"""Rung 8, int8 weights: equal twins pass; other values, scales or ways to compute with them are found."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest

from lmcore.config import LoraConfig
from parity.backends.base import Pair
from parity.check.rungs.int8 import int8
from parity.check.selftest.faults.decoding import per_tensor
from torchlm import quantized
from torchlm.fast import decoding


def verdicts(pair: Pair) -> list[str]:
    return [line.verdict for line in int8(pair)]


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"lora": LoraConfig(rank=2)}])
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_equal_twins_pass(tiny_pair: Callable[..., Pair], changes: dict, precision: str):
    lines = list(int8(tiny_pair(model=changes, train={"precision": precision})))
    assert [line.verdict for line in lines] == ["pass"] * 4
    assert lines[0].what == "int8 values and scales of 8 layers"


def in_port(pair: Pair, patch: mock._patch) -> list[str]:
    """Verdicts with a fault in the port: the reference has answered before it is planted."""
    assert verdicts(pair) == ["pass"] * 4
    pair.answers["other"] = {}
    with patch:
        return verdicts(pair)


def test_one_scale_for_a_whole_matrix_is_found(tiny_pair: Callable[..., Pair]):
    faulty = mock.patch.object(decoding, "quantized_layers", per_tensor(decoding.quantized_layers))
    assert in_port(tiny_pair(), faulty) == ["FAIL", "pass", "pass", "FAIL"]


def test_values_without_their_scales_are_found(tiny_pair: Callable[..., Pair]):
    matmul = quantized.int8_linear
    faulty = mock.patch.object(quantized, "int8_linear", lambda x, values, scales: matmul(x, values, scales * 1.01))
    assert in_port(tiny_pair(), faulty) == ["pass", "pass", "FAIL", "FAIL"]


def test_a_layer_that_a_twin_lacks_is_found(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    list(int8(pair))
    pair.answers["other"]["int8 layers"].pop("lm_head")
    first = next(int8(pair))
    assert (first.verdict, first.first) == ("FAIL", "lm_head, values")


def test_a_layer_of_other_bits_is_found(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    list(int8(pair))
    layers = pair.answers["other"]["int8 layers"]
    layers["lm_head"] = layers["lm_head"]._replace(scales=np.nextafter(layers["lm_head"].scales, np.float32(1)))
    assert next(int8(pair)).first == "lm_head, scales"
