"""A model whose programs are small, and a length that no other of its sizes is a multiple of."""

from typing import Any

import jax
import pytest

from lmcore.config import Config, from_dict


@pytest.fixture
def bfloat16() -> Any:
    """As the engine's settings: matmuls in the precision of their factors."""
    with jax.default_matmul_precision(None):
        yield


def config_of(model: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **groups: Any) -> Config:
    """Return a config with two small layers, bfloat16 and 384 tokens, changed as asked."""
    small = {"vocab_size": 320, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 160}
    steps = {"batch_size": 4, "precision": "bfloat16"}
    values = {"model": small | {"max_seq_len": 384} | (model or {}), "train": steps | (train or {}), **groups}
    return from_dict(Config, values)


@pytest.fixture(scope="session")
def changed() -> Any:
    return config_of
