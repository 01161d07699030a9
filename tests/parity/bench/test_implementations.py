"""Implementations by name: the shared weights, with an optimizer only where they train."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import Config
from lmcore.model.init import initial_weight
from parity.backends import framework_settings
from parity.bench.base import SHOWN, GeneratingImplementation
from parity.bench.implementations import make_implementation


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def test_a_twin_trains_from_the_shared_weights(config: Config):
    torchlm = make_implementation("torchlm", config, "train")
    assert torchlm.parameters == 2 * (20 * 20 * 2 + 20 * 10 * 2 + 3 * 20 * 64 + 2 * 20) + 101 * 20 + 20
    embedding = torchlm.engine.state.params["embed_tokens.weight"].numpy()
    shared = initial_weight(config.train.seed, "embed_tokens.weight", (101, 20), config.model)
    np.testing.assert_array_equal(embedding, shared)
    batch = np.random.default_rng(0).integers(101, size=(6, 25), dtype=np.int32)
    losses = [float(torchlm.step(batch, 1e-2)) for _ in range(3)]
    assert losses[0] == pytest.approx(np.log(101), abs=0.2)
    assert losses[0] > losses[1] > losses[2]


def test_to_generate_there_is_no_optimizer_and_both_calls_are_timed(config: Config):
    config = replace(config, model=replace(config.model, vocab_size=SHOWN + 5))
    torchlm = make_implementation("torchlm", config, "generate")
    assert isinstance(torchlm, GeneratingImplementation)
    assert torchlm.engine.state.optimizer is None
    prompts = np.arange(14, dtype=np.int32).reshape(2, 7)
    assert torchlm.logits(prompts).shape == (2, SHOWN)
    assert min(torchlm.generate(prompts)) > 0


@pytest.mark.parametrize("twin", ["jaxlm", "torchlm"])
def test_the_name_says_whether_a_twin_decodes_with_int8_weights(config: Config, twin: str):
    prompts = np.arange(14, dtype=np.int32).reshape(2, 7)
    full, int8 = (make_implementation(name, config, "generate") for name in (twin, f"{twin}-int8"))
    assert 1e-4 < np.abs(full.logits(prompts) - int8.logits(prompts)).max() < 0.1
    assert min(int8.generate(prompts)) > 0


def test_the_name_says_whether_a_twin_is_compiled(config: Config):
    compiled = replace(config, train=replace(config.train, compile=True))
    assert not make_implementation("torchlm", compiled, "train").engine.config.train.compile


def test_a_bare_matmul_counts_its_own_flops(config: Config):
    matmul = make_implementation("matmul", config, "train")
    assert matmul.step_flops == 2 * 2048**3
    assert not isinstance(matmul, GeneratingImplementation)
    matmul.step(np.empty(0), 0.0)
    row, column = matmul.factor[5].double(), matmul.factor[:, 7].double()
    assert float(matmul.out[5, 7]) == pytest.approx(float(row @ column), abs=1e-3)
