"""transformers' Llama beside the twins: the same weights, loss and update, by its own code."""

from collections.abc import Iterator

import numpy as np
import pytest

from lmcore.config import Config
from parity.backends import framework_settings
from parity.bench.implementations import make_implementation
from parity.bench.peers.hf import Clock


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def test_its_first_updates_are_those_of_a_twin(config: Config):
    theirs, ours = (make_implementation(name, config, "train") for name in ("transformers", "torchlm"))
    assert theirs.parameters == ours.parameters
    assert theirs.step_flops == ours.step_flops
    batch = np.random.default_rng(0).integers(101, size=(6, 25), dtype=np.int32)
    losses = [[float(one.step(batch, 1e-2)) for _ in range(3)] for one in (theirs, ours)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][0] - losses[0][2] > 0.1, "an update that does nothing would agree too"


def test_as_many_tokens_are_generated_as_asked_for(config: Config, monkeypatch: pytest.MonkeyPatch):
    shown: list[int] = []
    put = Clock.put
    monkeypatch.setattr(Clock, "put", lambda self, value: (shown.append(value.numel()), put(self, value)))
    model = make_implementation("transformers", config, "generate")
    prompts = np.arange(7, dtype=np.int32).reshape(1, 7)
    assert min(model.generate(prompts)) > 0
    assert shown[-21:] == [7] + [1] * 20, "the prompt, then one token after the other"
