"""Every number of the calibration can be off by the largest δ, and is felt where its rung looks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity.arrays import Arrays
from parity.backends.base import Pair, check_config
from parity.backends.torch import TorchTwin
from parity.check.rungs.base import training_batches
from parity.check.rungs.sampling import OPTIONS
from parity.check.selftest.calibrate import HEALTHY, KNOBS, PRECISIONS, _changed, _seeded, _tokens
from parity.check.selftest.mutants import odd_config

FIRST = {
    "rope_theta": "layers.0 q rotated",
    "loss of each token": "losses",
    "beta1": "update 2",
    "beta2": "update 2",
    "lr from update 6 on": "update 6",
    "temperature": "temperature 0.7",
    "top_p": "top_p 0.8",
    "min_p": "min_p 0.1",
    "restored first moment": "restored",
}
"""Number -> what is felt first; of all others the first update."""


def computed(pair: Pair, rung: int, folder: Path) -> Arrays:
    """What a rung compares, by a new twin."""
    twin, tokens = TorchTwin(pair.config), pair.rows(2, 5)
    batches = training_batches(pair, 6)
    twin.load(pair.start)
    if rung == 3:
        return twin.activations(tokens)
    if rung == 4:
        return {"losses": twin.token_losses(twin.logits(tokens[:, :-1]), tokens[:, 1:])}
    if rung in (5, 11):
        return {"update 1": twin.step(batches[0], 0.01).grads["norm.weight"]}
    if rung == 8:
        logits = np.linspace(-4, 4, 37)[np.random.default_rng(0).permutation(37)]
        uniforms = (np.arange(256) + 0.5) / 256
        return {name: twin.choose(np.tile(logits, (256, 1)), uniforms, options) for name, options in OPTIONS.items()}
    if rung == 10:
        twin.step(batches[0], 0.01)
        twin.engine.save(folder)()
        twin.engine.restore(folder)
        return {"restored": twin.step(batches[1], 0.01).moments["mean"]["norm.weight"]}
    count = 6 if rung == 7 else 2
    return {f"update {n + 1}": twin.step(batches[n], 0.01).params["embed_tokens.weight"] for n in range(count)}


@pytest.mark.parametrize("name", KNOBS)
def test_every_number_can_be_off_by_the_largest_and_is_felt(name: str, tiny_pair: Callable[..., Pair], tmp_path: Path):
    rung, plant = KNOBS[name]
    optim = {"eps": 1e-3, "beta2": odd_config().optim.beta2, "weight_decay": 0.3}
    pair = tiny_pair(optim=optim, train={"cpu_devices": 2 if rung == 11 else 1})
    healthy = computed(pair, rung, tmp_path / "healthy")
    with plant(0.1)():
        faulty = computed(pair, rung, tmp_path / "faulty")
    felt = [key for key in healthy if not np.allclose(healthy[key], faulty[key], rtol=1e-7, atol=1e-9)]
    assert felt[0] == FIRST.get(name, "update 1")


def test_no_change_is_no_fault(tiny_pair: Callable[..., Pair], tmp_path: Path):
    pair = tiny_pair()
    for name in ("lr", "beta2", "top_p"):
        rung, plant = KNOBS[name]
        with plant(0.0)():
            faulty = computed(pair, rung, tmp_path)
        healthy = computed(pair, rung, tmp_path)
        assert all(np.array_equal(healthy[key], faulty[key]) for key in healthy), name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_healthy_combination_is_a_config(precision: str):
    configs = [check_config(_changed(odd_config(), changes), precision) for changes in HEALTHY.values()]
    assert all(one != other for number, one in enumerate(configs) for other in configs[:number])


def test_half_of_the_healthy_pairs_are_trained_on_a_text_that_can_be_learned(tiny_pair: Callable[..., Pair]):
    first = tiny_pair()
    first.tokens = _tokens(first.config)
    followed = [first.tokens[1:][first.tokens[:-1] == token] for token in range(37)]
    likely = np.mean([np.bincount(after).max() / len(after) for after in followed])
    assert likely == pytest.approx(0.7, abs=0.05), "three in ten tokens are drawn at random"
    fresh, trained = _seeded(first, 2), _seeded(first, 1)
    assert fresh.start["norm.weight"].tolist() == [1.0] * 12
    assert np.ptp(trained.start["norm.weight"]) > 0
    assert (fresh.fresh_process, _seeded(first, 0).fresh_process) == (False, True)
