"""An engine that is small enough to compute by hand, and a run folder."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore import config as configs
from lmcore.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)
from lmcore.data import tokenizer as tokenizers
from lmcore.run.processes import ALONE, Processes
from lmcore.run.saving import Checkpoints
from tests.lmcore.run.folders import CONFIG, write


class Miniature:
    """A model of one weight, the nats that every token costs: 8 at first, halved by an update. It writes `!` only."""

    framework, package = "jax", "jaxlm"
    parameter_count, device_name, peak_flops = 1, "paper", None

    @staticmethod
    def check_machine(config: Config, processes: Processes = ALONE) -> None:
        """Any will do."""

    @staticmethod
    def joined(config: Config) -> nullcontext[Processes]:
        return nullcontext(ALONE)

    def __init__(self, config: Config, processes: Processes = ALONE):
        self.config, self.shard = config, (processes.rank, processes.count)
        self.shapes: set[tuple[int, ...]] = set()
        """Of the batches that were evaluated."""

    def init(self, weights: Any = None) -> None:
        self.nats = 8.0

    def load_base(self, folder: Path) -> None:
        """It has no adapters."""

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
def config(tmp_path: Path) -> Config:
    (tmp_path / "text.txt").write_text("a tale of a cat " * 10)
    return Config(
        run_dir=str(tmp_path / "run"),
        model=ModelConfig(max_seq_len=4),
        data=DataConfig(files=[str(tmp_path / "text.txt")], dir=str(tmp_path / "data")),
        tokenizer=TokenizerConfig(kind="bytes"),
        train=TrainConfig(steps=5, batch_size=2),
        log=LogConfig(every=2),
        eval=EvalConfig(every=3),
        checkpoint=CheckpointConfig(every=4),
        sample=SampleConfig(prompt="a", max_tokens=3),
    )


@pytest.fixture
def miniature() -> type[Miniature]:
    return Miniature


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two checkpoints, the first of which is better."""
    folder = tmp_path / "run"
    folder.mkdir()
    configs.save(replace(CONFIG, run_dir=str(folder)), folder / "config.yaml")
    tokenizers.train(TokenizerConfig(kind="bytes"), []).save(folder / "tokenizer.json")
    saving = Checkpoints(folder, "jax", keep=2)
    saving.save(10, 1.0, write)
    saving.save(20, 2.0, write)
    saving.wait()
    saving.close()
    return folder
