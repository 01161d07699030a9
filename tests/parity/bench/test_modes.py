"""What is timed computes the same: planted faults are caught before."""

from typing import Any

import pytest

from lmcore.config import Config
from parity.bench.modes import TOLERANCE, Agreement, Differ, generation, training
from parity.bench.rounds import Options, Process

TWO = Options(rounds=1, turn_steps=1, batches=(2,), prompt_tokens=7, alone=False)


def planted(
    monkeypatch: pytest.MonkeyPatch, group: str, field: str, value: float, implementation: str = "torchlm"
) -> None:
    """Give the process of torchlm, or of another implementation, another value of one field."""
    order = Process.order

    def other(self: Process, do: str, **arguments: Any) -> None:
        if do == "make" and self.implementation == implementation:
            arguments["config"][group][field] = value
        order(self, do, **arguments)

    monkeypatch.setattr(Process, "order", other)


def test_a_wrong_rotary_base_is_caught_before_generation_is_timed(config: Config, monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch, "model", "rope_theta", 500.0)
    with pytest.raises(Differ, match=r"logits after a prompt in float32: torchlm and jaxlm differ by \S+e-"):
        generation(config, ["jaxlm", "torchlm"], TWO)


def test_int8_weights_are_compared_with_each_other_and_with_full_ones(config: Config, monkeypatch: pytest.MonkeyPatch):
    names = ["torchlm", "jaxlm-int8", "torchlm-int8"]
    measures = {m.implementation: m for m in generation(config, names, TWO) if m.what.startswith("decode")}
    full, *int8 = (measures[name].facts for name in names)
    assert full["difference"] == 0
    assert all(TOLERANCE["float32"] < facts["difference"] < 0.02 for facts in int8)
    assert [facts["weight_bytes"] * 4 for facts in int8] == [full["weight_bytes"]] * 2
    planted(monkeypatch, "model", "rope_theta", 500.0, "torchlm-int8")
    message = "logits after a prompt with int8 weights in float32: torchlm-int8 and jaxlm-int8 differ"
    with pytest.raises(Differ, match=message):
        generation(config, names, TWO)


def test_full_weights_may_be_compared_with_rounded_ones_and_no_others():
    agreement = Agreement("logits", "float32")
    agreement.check("torchlm-int8", [8.0, 7.9], rounding=0.02)
    assert agreement.check("torchlm", [8.0, 7.8]) == pytest.approx(0.0125)
    assert agreement.check("llama.cpp-q8_0", [8.0, 7.6], rounding=0.02) == pytest.approx(0.0375)
    with pytest.raises(Differ, match="allowed 2e-02"):
        agreement.check("torchlm", [8.0, 7.6])


def test_a_wrong_update_is_caught_before_training_is_timed(config: Config, monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch, "optim", "beta1", 0.8)  # the first update is the same for every beta
    with pytest.raises(Differ, match="losses of the first updates in float32: torchlm and jaxlm differ"):
        training(config, ["jaxlm", "torchlm"], TWO)


@pytest.mark.parametrize("found", [[8.0, 7.9002], [8.0, float("nan")]])
def test_beyond_the_tolerance_is_not_the_same(found: list[float]):
    agreement = Agreement("losses", "float32")
    assert agreement.check("one", [8.0, 7.9]) == 0
    assert agreement.check("two", [8.0, 7.90001]) == pytest.approx(1.25e-6, rel=1e-3)
    with pytest.raises(Differ) as caught:
        agreement.check("three", found)
    assert caught.value.exit_code == 1
