"""What is timed computes the same: planted faults are caught before."""

from typing import Any

import pytest

from lmcore.config import Config
from parity.bench.modes import Agreement, Differ, generation, training
from parity.bench.rounds import Options, Process

TWO = Options(rounds=1, turn_steps=1, batches=(2,), prompt_tokens=7, alone=False)


def planted(monkeypatch: pytest.MonkeyPatch, group: str, field: str, value: float) -> None:
    """Give torchlm's process another value of one field."""
    order = Process.order

    def other(self: Process, do: str, **arguments: Any) -> None:
        if do == "make" and self.implementation == "torchlm":
            arguments["config"][group][field] = value
        order(self, do, **arguments)

    monkeypatch.setattr(Process, "order", other)


def test_a_wrong_rotary_base_is_caught_before_generation_is_timed(config: Config, monkeypatch: pytest.MonkeyPatch):
    planted(monkeypatch, "model", "rope_theta", 500.0)
    with pytest.raises(Differ, match=r"logits after a prompt in float32: torchlm and jaxlm differ by \S+e-"):
        generation(config, ["jaxlm", "torchlm"], TWO)


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
