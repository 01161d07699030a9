"""Rung 0: a twin that answers differently when asked again, and the answers of a fresh process."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from safetensors.numpy import load_file, save_file

from lmcore import config as configs
from parity.backends.base import Pair
from parity.check.rungs.base import Options, training_batches
from parity.check.rungs.repeat import answers, main, repeat


def test_a_first_call_that_is_off_is_blamed_on_its_framework(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair()
    assert [line.verdict for line in repeat(pair, Options())] == ["pass"] * 2
    logits, calls = type(pair.port).logits, []

    def faulty(self, tokens: np.ndarray) -> np.ndarray:
        calls.append(None)
        return logits(self, tokens) * (1 + 1e-15 * (len(calls) == 1))

    with mock.patch.object(type(pair.port), "logits", faulty):
        healthy, line = repeat(tiny_pair(), Options())
    assert healthy.ok
    assert (line.verdict, line.what, line.first) == ("FAIL", "Other, asked again", "Other's logits")


def test_a_fresh_process_reads_its_inputs_and_writes_the_same_answers(tiny_pair: Callable[..., Pair], tmp_path: Path):
    pair = tiny_pair()
    tokens, batch = pair.rows(2, 9), training_batches(pair, 1)[0]
    expected = answers(pair.reference, pair.start, tokens, batch, 0.01)
    assert {"logits", "summed loss", "gradient of norm.weight", "updated norm.weight"} <= set(expected)
    configs.save(pair.config, tmp_path / "torch.yaml")
    inputs = {"tokens": tokens, "batch": batch, "lr": np.array(0.01)}
    save_file(inputs | {f"start.{n}": a for n, a in pair.start.items()}, tmp_path / "inputs.safetensors")
    assert main([str(tmp_path), "torch"]) == 0
    found = load_file(tmp_path / "torch.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in expected.items()}
