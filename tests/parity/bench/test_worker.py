"""A worker alone in its process: orders by name, the same batches for all, what the process holds."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from lmcore.config import Config
from parity.backends import framework_settings
from parity.bench.worker import Worker


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def test_orders_are_obeyed_by_name_and_train_on_the_batches_that_follow(config: Config):
    def worker() -> Worker:
        made = Worker()
        facts = made.obey({"do": "make", "implementation": "torchlm", "mode": "train", "config": asdict(config)})
        assert (facts["device"], facts["parameters"]) == (made.implementation.device, made.implementation.parameters)
        assert facts["start_bytes"] > 0
        assert facts["idle_seconds"] >= 0
        return made

    whole = worker().obey({"do": "train", "step": 0, "count": 3, "warm": 1})
    parts = worker()
    first = parts.obey({"do": "train", "step": 0, "count": 1})
    rest = parts.obey({"do": "train", "step": 1, "count": 2})
    assert whole["losses"] == first["losses"] + rest["losses"], "the first is not timed, but is an update"
    assert whole["seconds"] > 0
    memory = parts.obey({"do": "memory"})
    assert memory["device_bytes"] is None
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        parts.obey({"do": "fly"})


def test_prompts_are_the_same_for_every_implementation(config: Config):
    worker = Worker()
    worker.obey({"do": "make", "implementation": "torchlm", "mode": "generate", "config": asdict(config)})
    order = {"sequences": 2, "length": 5}
    one, again = (worker.obey({"do": "logits"} | order)["logits"] for _ in range(2))
    assert one == again
    prompts = np.random.default_rng([config.train.seed, 2]).integers(101, size=(2, 5), dtype=np.int32)
    assert one == worker.implementation.logits(prompts).ravel().tolist()


def test_a_mistake_is_answered_and_the_worker_goes_on(config: Config):
    wrong = asdict(config)
    wrong["train"]["precision"] = "int8"
    order = {"do": "make", "implementation": "torchlm", "mode": "train", "config": wrong}
    orders = "\n".join(map(json.dumps, (order, {"do": "settle"})))
    command = [sys.executable, "-m", "parity.bench.worker"]
    done = subprocess.run(command, input=orders, capture_output=True, text=True, check=True)
    mistake, settled = map(json.loads, done.stdout.splitlines())
    assert mistake["mistake"].startswith("train.precision: found 'int8'")
    assert set(settled) == {"idle_seconds", "idle_cpu_seconds"}
