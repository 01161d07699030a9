"""Requests reach the processes whole, and what fails in one of them is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmcore.config import Config, ParallelConfig, TrainConfig
from lmcore.errors import UserError
from parity.check.mesh.jobs import Job, Outcome, Request, launch

CONFIG = Config(train=TrainConfig(batch_size=4, device="cpu"), parallel=ParallelConfig(data=1, fsdp=2))


def request_of(folder: Path, config: Config = CONFIG) -> Request:
    jobs = [Job(config=config, folder=folder / "one"), Job(config=config, folder=folder, restore=folder / "x", start=1)]
    return Request(package="jaxlm", jobs=jobs, text=np.arange(400, dtype=np.int32) % 50, fault="jax: some")


def test_a_request_is_read_as_it_was_written(tmp_path: Path):
    made = request_of(tmp_path)
    made.save(tmp_path)
    read = Request.load(tmp_path)
    assert list(read.jobs) == list(made.jobs)
    assert (read.package, read.fault) == ("jaxlm", "jax: some")
    np.testing.assert_array_equal(read.text, made.text)


def test_metrics_come_back(tmp_path: Path):
    outcome = Outcome("jax", tmp_path)
    outcome.write({"loss": [1.5, 1.25]})
    np.testing.assert_array_equal(outcome.metrics()["loss"], [1.5, 1.25])
    assert outcome.checkpoint(3).state == tmp_path / "step_3" / "state"


def test_a_config_that_a_process_refuses_is_a_mistake_of_the_user(tmp_path: Path):
    wrong = replace(CONFIG, model=replace(CONFIG.model, vocab_size=50), parallel=ParallelConfig(data=1, fsdp=7))
    made = replace(request_of(tmp_path, wrong), fault=None)
    with pytest.raises(UserError, match=r"^parallel.fsdp: found 7, expected a divisor of model.dim = 128$"):
        launch(made, 1)


def test_any_other_failure_shows_its_traceback(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"process 0 of 1 ended with code 1:\n(.|\n)*StopIteration"):
        launch(request_of(tmp_path), 1)  # there is no such fault
