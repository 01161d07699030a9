"""A third framework is a backend in the dictionary: it climbs the ladder, and its faults are caught under its name."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import torchlm.model
from lmcore.config import Config
from parity.backends import BACKENDS, PAIR, framework_settings, make_pair, make_twin
from parity.backends.base import Backend, Pair, Twin
from parity.backends.torch import TorchTwin
from parity.check.ladder import climb
from parity.check.result import Result
from parity.check.rungs.base import Options
from parity.check.selftest.mutants import odd_config, shaken

ROOT = Path(__file__).parents[3]
THIRD = replace(BACKENDS["torch"], framework="third", label="Third", title="Third", twin=f"{__name__}:ThirdTwin")


class ThirdTwin(TorchTwin):
    """What a new framework writes, here on top of another's."""

    backend = THIRD


@pytest.fixture(autouse=True)
def third(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(BACKENDS, "third", THIRD)
    with framework_settings():
        yield


def config() -> Config:
    """The odd model with one layer, which compiles in a third of the time."""
    odd = odd_config()
    return replace(odd, model=replace(odd.model, n_layers=1))


def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(config().model.vocab_size, size=4000).astype(np.int32)


def pair(**devices: Any) -> Pair:
    fresh = make_pair(config(), tokens(), devices=devices)
    assert [twin.backend.framework for twin in fresh] == list(devices)
    return fresh


def lines(pair: Pair, rungs: Any) -> list[Result]:
    return list(climb(pair, rungs, Options(steps=6, draws=1)))


def failures(results: list[Result]) -> list[str]:
    return [f"rung {r.rung}: {r.what}: {r.where}" for r in results if not r.ok]


@pytest.mark.slow
def test_a_third_backend_climbs_under_its_own_label():
    fresh = pair(jax="cpu", third="cpu")
    assert isinstance(fresh.port, Twin)
    assert isinstance(fresh.port.backend, Backend)
    assert failures(lines(fresh, [2])) == [], "its own initial weights"
    results = lines(fresh.with_weights(shaken(fresh.start)), range(1, 9))
    assert failures(results) == []
    assert {r.rung for r in results} == set(range(1, 9))
    texts = " ".join([r.what for r in results] + [d.name for r in results for d in r.differences])
    for text in (
        "batch 0 in Third",
        "(Third)",
        "Third, cache against full forward",
        "JAX against Third, from the cache",
    ):
        assert text in texts
    assert "torch, " not in texts
    assert list(results[[bool(r.curves) for r in results].index(True)].curves)[:2] == ["jax", "third"]


def test_any_backend_can_be_the_reference():
    """torch's exact 1 − β^t against optax's rounded one: the known gap has the other sign."""
    optim = replace(config().optim, beta2=0.999, lr=1.0, warmup_steps=0, weight_decay=0.0)
    float32 = replace(config(), optim=optim, train=replace(config().train, precision="float32"))
    fresh = make_pair(float32, tokens(), devices={"third": "cpu", "jax": "cpu"})
    results = lines(fresh.with_weights(shaken(fresh.start)), [6])
    assert failures(results) == []
    assert "but for optax's 1 − β^t in float32" in results[0].note
    assert float(results[0].note.split()[-1]) > 3 * results[0].max_rel, "the wrong sign would double it"


def test_a_fault_in_a_third_backend_is_caught_and_named():
    healthy, norm, received = pair(jax="cpu", third="cpu"), torchlm.model.RMSNorm.forward, ThirdTwin.received

    def results(rung: int) -> list[Result]:
        return lines(healthy.with_twins(healthy.reference, make_twin("third", healthy.port.config)), [rung])

    with mock.patch.object(torchlm.model.RMSNorm, "forward", lambda self, x: norm(self, x + 0.01)):
        [line] = results(3)
    assert (line.verdict, line.first) == ("FAIL", "layers.0 norm 1")
    with mock.patch.object(ThirdTwin, "received", lambda self, batch: np.roll(received(self, batch), 1)):
        ids, _ = results(1)
    assert (ids.verdict, ids.first) == ("FAIL", "batch 0 in Third")


def test_a_pair_is_of_two_frameworks():
    twin = pair(third="cpu", torch="cpu")
    with pytest.raises(AssertionError, match="cached by framework"):
        Pair(twin.port, twin.port, twin.config, twin.start, twin.tokens, fresh=False)


def test_no_rung_names_a_framework():
    files = [*(ROOT / "parity/check/rungs").glob("*.py"), *(ROOT / "parity/report").glob("*.py")]
    assert len(files) > 12
    named = [
        f"{path.name}: {name}"
        for path in files
        for name in (".jax", '"jax"', '"torch"', "JaxTwin", "TorchTwin", "jaxlm", "torchlm")
        if name in path.read_text(encoding="utf-8")
    ]
    assert named == []
    assert list(PAIR) == ["jax", "torch"]
