"""A tiny config, and measures and reports with given samples."""

from collections.abc import Callable
from typing import Any

import pytest

from lmcore.config import Config, ModelConfig, OptimConfig, SampleConfig, TrainConfig
from parity.bench.report import Measure, Report


@pytest.fixture
def config() -> Config:
    return Config(
        model=ModelConfig(vocab_size=101, dim=20, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=24),
        train=TrainConfig(batch_size=6, grad_accum=2, device="cpu"),
        optim=OptimConfig(lr=1e-2),
        sample=SampleConfig(max_tokens=20),
    )


@pytest.fixture
def measure() -> Callable[..., Measure]:
    """Makes a measure of training from its samples."""

    def made(implementation: str, seconds: list[float], **facts: Any) -> Measure:
        facts = {"steps": 2, "step_flops": 6e9, "first_seconds": 3.0, "peak": 1e12, "device": "GPU"} | facts
        kind: dict[str, Any] = {"mode": "train", "dtype": "bfloat16", "what": "train 2 × 4", "unit": "tokens/s"}
        return Measure(
            **kind, implementation=implementation, amount=16.0, seconds=seconds, cpu_seconds=seconds, facts=facts
        )

    return made


@pytest.fixture
def report() -> Callable[..., Report]:
    """Makes a report of measures."""

    def made(*measures: Measure) -> Report:
        said: dict[str, Any] = {"settings": {}, "machine": {"processor": "<one> & two"}, "versions": {}, "flags": {}}
        return Report(
            command="python -m parity.bench", date="2026-11-24T02:00:00+00:00", measures=list(measures), **said
        )

    return made
