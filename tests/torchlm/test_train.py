"""The commands, from an empty folder to text: a run that was stopped and resumed is the unbroken run, to the bit."""

import json
import os
import re
import signal
import sys
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


def test_a_run_is_used_on_another_device_and_in_another_precision(tmp_path: Path, data: Path, capsys):
    assert run(tmp_path / "run", data) == 0
    config = tmp_path / "run" / "config.yaml"
    stamp, _, text = config.read_text().partition("\n")
    text = text.replace("device: cpu", "device: mps")
    config.write_text(f"{stamp}\n{text}")
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "run")]) == 2
    assert "config.yaml: has changed since it was written" in capsys.readouterr().err
    config.write_text(text)  # as that line says
    for more in ([], ["--device", "cpu", "--precision", "float64"]):
        assert evaluate.main([str(tmp_path / "run"), *more]) == 0
        assert generate.main([str(tmp_path / "run"), "--prompt", "😀", *more]) == 0
    out = capsys.readouterr().out
    first, again = map(float, re.findall(r"loss +(\S+) nats", out))
    assert first == pytest.approx(again, abs=2e-4)
    assert out.count("😀") == 2
    assert evaluate.main([str(tmp_path / "run"), "--device", "mps"]) == 2
    assert "error: --device: found 'mps'" in capsys.readouterr().err


def test_text_that_the_characters_do_not_hold_is_noted(tmp_path: Path, data: Path, capsys):
    assert run(tmp_path / "run", data, tokenizer__kind="chars") == 0
    (tmp_path / "text.txt").write_text("Once 😀😀 upon")
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "run")]) == 0
    assert "note:" not in capsys.readouterr().out
    assert evaluate.main([str(tmp_path / "run"), "--data.files", str(tmp_path / "text.txt")]) == 0
    assert "note: 2 tokens of the text are unknown tokens" in capsys.readouterr().out


def test_a_run_stopped_before_its_first_evaluation_is_its_latest_checkpoint_and_may_end_there(
    tmp_path: Path, data: Path, monkeypatch, capsys
):
    step = Engine.train_step

    def stopping(self: Engine, batch, lr):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, lr)

    folder = tmp_path / "run"
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "train_step", stopping)
            assert run(folder, data, train__resume="auto") == 128 + signal.SIGINT
    assert evaluate.main([str(folder)]) == 0
    assert "step_00000002 (step 2)" in capsys.readouterr().out
    for _ in range(2):
        assert run(folder, data, train__resume="auto", train__steps=2, optim__warmup_steps=0) == 0
        out = capsys.readouterr().out
        assert re.search(r"steps +2 ", out)
        assert re.search(r"validation loss +–", out)
        (folder / "metrics.jsonl").unlink()


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_written(tmp_path: Path, data: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if there were none
    assert run(tmp_path / "run", data, log__tensorboard="true") == 2
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, data: Path, capsys):
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", data) == 2
    assert f"error: run_dir: {tmp_path / 'file'} is a file, expected a folder" in capsys.readouterr().err


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
