"""The commands, from an empty folder to text: a run that was stopped and resumed is the unbroken run, to the bit."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from torchlm import evaluate, generate, train
from torchlm.engine import Engine

OPTIONS = {
    "model.dim": 20,
    "model.n_layers": 2,
    "model.n_heads": 5,
    "model.n_kv_heads": 1,
    "model.head_dim": 6,
    "model.max_seq_len": 17,
    "model.dropout": 0.1,
    "data.stories": 30,
    "tokenizer.kind": "bytes",
    "train.device": "cpu",
    "train.steps": 8,
    "train.batch_size": 4,
    "train.grad_accum": 2,
    "log.every": 1,
    "eval.windows": 8,
    "checkpoint.every": 4,
    "sample.max_tokens": 12,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def run(folder: Path, data: Path, **changed: object) -> int:
    options = OPTIONS | {"data.dir": data, "run_dir": folder} | {n.replace("__", "."): v for n, v in changed.items()}
    return train.main([f"--{name}={value}" for name, value in options.items()])


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows}


def state(folder: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, the optimizer's too."""
    files = (folder / "checkpoints" / "step_00000008" / "state").rglob("*.safetensors")
    return {f"{path.parent.name}.{n}": t.numpy().tobytes() for path in files for n, t in load_file(path).items()}


def test_a_stopped_and_resumed_run_is_the_unbroken_run_to_the_bit(tmp_path: Path, data: Path, monkeypatch):
    assert run(tmp_path / "whole", data) == 0
    step = Engine.train_step

    def stopping(self: Engine, batch, lr):
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, lr)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "train_step", stopping)
        assert run(tmp_path / "broken", data) == 128 + signal.SIGTERM
    assert sorted(losses(tmp_path / "broken")) == [1, 2, 3]
    assert run(tmp_path / "broken", data, train__resume="auto") == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert state(tmp_path / "broken") == state(tmp_path / "whole")
    assert run(tmp_path / "other", data, train__seed=1) == 0
    assert state(tmp_path / "other") != state(tmp_path / "whole")


def test_a_run_is_evaluated_and_writes(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path / "run", data) == 0
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "run"), "--windows", "8"]) == 0
    best = min(
        json.loads(line).get("valid_loss", 99.0)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    )
    assert re.search(rf"loss +{best:.4f} nats", capsys.readouterr().out)
    assert generate.main([str(tmp_path / "run"), "--prompt", "Ada", "--max_tokens", "9", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("Ada")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train__precision": "float16"}, "train.precision: found 'float16'"),
        ({"train__device": "mps"}, "train.device: found 'mps'"),
    ],
)
def test_what_the_machine_cannot_do_is_one_line(tmp_path: Path, data: Path, capsys, changed: dict, message: str):
    assert run(tmp_path / "run", data, **changed) == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()
