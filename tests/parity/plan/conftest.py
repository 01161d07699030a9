"""A model that compiles in seconds, and its shapes."""

from dataclasses import replace
from typing import Any

import pytest

from lmcore.config import Config, ModelConfig, ParallelConfig, TrainConfig
from lmcore.run.mesh import MeshShape
from parity.plan.shapes import Shapes, shapes_of

TINY = Config(
    model=ModelConfig(
        vocab_size=300,
        dim=32,
        n_layers=3,
        n_heads=4,
        ffn_dim=64,
        max_seq_len=16,
        scan_layers=True,
        tie_embeddings=False,
    ),
    train=TrainConfig(batch_size=16),
)


@pytest.fixture(scope="session")
def tiny() -> Config:
    return TINY


@pytest.fixture(scope="session")
def shapes() -> Shapes:
    return shapes_of(TINY)


@pytest.fixture(scope="session")
def changed() -> Any:
    """Return the config with other fields of its train group, on a mesh."""

    def change(config: Config, mesh: MeshShape = MeshShape(), sequence: bool = False, **train: Any) -> Config:  # noqa: B008
        parallel = ParallelConfig(data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor, sequence=sequence)
        return replace(config, train=replace(config.train, **train), parallel=parallel)

    return change
