"""One process does all jobs of a request, from the start or from a state."""

from pathlib import Path

import numpy as np

from lmcore.config import Config, ModelConfig, TrainConfig
from parity.check.mesh.jobs import STEPS, Job, Request
from parity.check.mesh.worker import main

MODEL = ModelConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, max_seq_len=16)
CONFIG = Config(model=MODEL, train=TrainConfig(batch_size=4, device="cpu", precision="float64", cpu_devices=1))


def test_a_run_from_a_state_is_the_rest_of_the_whole_run(tmp_path: Path):
    whole = Job(config=CONFIG, folder=tmp_path / "whole")
    rest = Job(config=CONFIG, folder=tmp_path / "rest", restore=whole.outcome("torch").checkpoint(1).state, start=1)
    text = np.random.default_rng(0).integers(40, size=400).astype(np.int32)
    Request(package="torchlm", jobs=[whole, rest], text=text).save(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert sorted(path.name for path in whole.folder.glob("step_*")) == ["step_0", "step_1", f"step_{STEPS}"]
    one, other = whole.outcome("torch").metrics(), rest.outcome("torch").metrics()
    assert len(one["loss"]) == STEPS
    np.testing.assert_array_equal(one["loss"][1:], other["loss"])
    np.testing.assert_array_equal(one["valid_loss"], other["valid_loss"])
