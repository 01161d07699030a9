"""An engine that is small enough to compute by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.config import Config, SampleConfig, TrainConfig


class Miniature:
    """A model of one weight, the nats that every token costs: 8 at first, halved by an update. It writes `!` only."""

    framework, package = "jax", "jaxlm"
    parameter_count, device_name, peak_flops = 1, "paper", None

    @staticmethod
    def check_machine(train: TrainConfig) -> None:
        """Any will do."""

    def __init__(self, config: Config):
        self.config = config
        self.shapes: set[tuple[int, ...]] = set()
        """Of the batches that were evaluated."""

    def init(self) -> None:
        self.nats = 8.0

    def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
        loss, self.nats = self.nats, self.nats / 2
        return {"loss": loss, "grad_norm": 1.0}

    def eval_step(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        self.shapes.add(tokens.shape)
        count = int((targets >= 0).sum())
        return self.nats * count, count

    def is_finite(self) -> bool:
        return bool(np.isfinite(self.nats))

    def save(self, folder: Path) -> Callable[[], None]:
        folder.mkdir()
        (folder / "weight").write_text(str(self.nats))
        return lambda: None

    def restore(self, folder: Path, optimizer: bool = True) -> None:
        self.nats = float((folder / "weight").read_text())

    def generator(self, options: SampleConfig) -> "Miniature":
        return self

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> None:
        """Remember nothing."""

    def extend(self, state: None, uniforms: np.ndarray) -> tuple[np.ndarray, None]:
        return np.full(uniforms.shape, ord("!"), np.int32), None

    def has_nan(self, state: None) -> bool:
        return False


@pytest.fixture
def miniature() -> type[Miniature]:
    return Miniature
