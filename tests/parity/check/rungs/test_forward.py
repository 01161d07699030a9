"""Rungs 3 and 4: the first activation that differs is named, logits and losses are compared as their types allow."""

from collections.abc import Callable
from unittest import mock

import numpy as np

from parity.arrays import Arrays
from parity.backends.base import Pair
from parity.check.rungs.base import Options, in_short_documents
from parity.check.rungs.forward import activations, outputs
from parity.check.selftest.faults import documents, patch


def test_the_first_activation_in_order_of_computation_is_named(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    heard = type(pair.port).activations

    def faulty(self, tokens: np.ndarray) -> Arrays:
        found = heard(self, tokens)
        return {n: 3 * a if n == "final norm" else a + 1e-9 if n == "layers.0 v" else a for n, a in found.items()}

    def lost(self, tokens: np.ndarray) -> Arrays:
        return {name: array for name, array in heard(self, tokens).items() if name != "layers.0 q"}

    with mock.patch.object(type(pair.port), "activations", faulty):
        (line,) = activations(pair, Options())
    assert (line.verdict, line.first, line.max_rel) == ("FAIL", "layers.0 v", 2 / 3)
    with mock.patch.object(type(pair.port), "activations", lost):
        (line,) = activations(tiny_pair(), Options())
    assert (line.first, line.where) == ("layers.0 q", "layers.0 q is missing on the second")
    assert list(line.differences).index(next(d for d in line.differences if d.name == "layers.0 q")) == 2


def test_a_short_and_a_full_length_and_ignored_targets_are_compared(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    lines = list(outputs(pair, Options()))
    assert {line.verdict for line in lines} == {"pass"}
    assert [line.what for line in lines[:2]] == ["logits, 3 × 7 tokens", "logits, 1 × 24 tokens"]
    counted = lines[-1].differences[0]
    assert counted.left == 24 + 12 + 1, "of three rows of 24 targets, all, half and one count"
    evaluate = type(pair.port).evaluate
    with mock.patch.object(type(pair.port), "evaluate", lambda self, x, y: (evaluate(self, x, y)[0], y.size)):
        *others, line = outputs(tiny_pair(), Options())
    assert [one.verdict for one in (*others[-1:], line)] == ["pass", "FAIL"]


def test_in_sixteen_bits_logits_are_compared_as_distributions(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair(train={"precision": "bfloat16"})
    short, full, *losses = outputs(pair, Options())
    assert (short.verdict, full.verdict) == ("pass", "pass")
    assert full.limit.startswith("KL ")
    assert [line.verdict for line in losses] == ["pass", "reported", "pass"], "token losses are float32"
    logits = type(pair.port).logits
    again = tiny_pair(train={"precision": "bfloat16"})
    with mock.patch.object(type(pair.port), "logits", lambda self, tokens: 2 * logits(self, tokens)):
        line = next(iter(outputs(again, Options())))
    assert line.verdict == "FAIL"


def test_documents_are_compared_with_each_by_itself(tiny_pair: Callable[..., Pair]):
    """A mask that both twins lack differs between neither: only this line sees it."""

    def lines() -> dict[str, str]:
        pair = tiny_pair(data={"document_mask": True})
        pair.tokens = in_short_documents(pair.tokens)
        return {line.what: line.verdict for line in (*activations(pair, Options()), *outputs(pair, Options()))}

    healthy = lines()
    assert set(healthy.values()) == {"pass"}
    with patch("torchlm.model.causal_attention", documents.unmasked)():
        assert {what for what, verdict in lines().items() if verdict == "FAIL"} == {
            "documents of a sequence, each by itself"
        }
    assert "documents of a sequence, each by itself" in healthy
