"""A tiny pair of twins, both in torch: the ladder names no framework, and nothing needs to be compiled."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.config import Config, ModelConfig, OptimConfig, TrainConfig
from parity.backends import BACKENDS, framework_settings
from parity.backends.base import Pair, check_config
from parity.backends.torch import TorchTwin
from parity.check.selftest.mutants import shaken

OTHER = replace(BACKENDS["torch"], framework="other", label="Other", title="Other", twin=f"{__name__}:OtherTwin")
MODEL = ModelConfig(vocab_size=37, dim=12, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=20, max_seq_len=24)


class OtherTwin(TorchTwin):
    """The port of the pair; a test that plants a fault plants it here."""

    backend = OTHER


@pytest.fixture
def tiny_config() -> Config:
    optim = OptimConfig(lr=1e-2, warmup_steps=2, weight_decay=0.1, clip=0.7)
    train = TrainConfig(steps=20, batch_size=4, grad_accum=2, seq_len=11, device="cpu")
    return check_config(Config(model=MODEL, optim=optim, train=train), "float64")


@pytest.fixture
def tiny_pair(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pair]]:
    """Makes a pair of torch twins with weights in which nothing hides; fields of model, optim and train can differ."""
    monkeypatch.setitem(BACKENDS, "other", OTHER)

    def made(**changes: dict[str, Any]) -> Pair:
        config = tiny_config
        for group, fields in changes.items():
            config = replace(config, **{group: replace(getattr(config, group), **fields)})
        reference, port = TorchTwin(config), OtherTwin(config)
        start = reference.initial()
        tokens = np.random.default_rng(1).integers(config.model.vocab_size, size=2000).astype(np.int32)
        pair = Pair(reference, port, config, start, tokens, fresh=True).with_weights(shaken(start, scale=4.0))
        pair.fresh_process = False
        return pair

    with framework_settings():
        yield made


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. She said: five dozen liquor jugs!\n" * 40)
    return path
