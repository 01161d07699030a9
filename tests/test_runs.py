"""What a run of either twin refuses, saves and says: refusals first, no NaN kept, any folder's name, no plot needed."""

import importlib
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.data.prepare import HEADER
from lmcore.report import plots
from lmcore.run.checkpoints import list_checkpoints
from tests.tiny import TINY

OPTIONS = {
    **TINY,
    "data.dir": "data",
    "train.steps": 2,
    "eval.every": 1,
    "checkpoint.every": 1,
    "sample.max_tokens": 1,
}


@pytest.fixture(params=["jaxlm", "torchlm"])
def package(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return request.param


def command(package: str, name: str) -> Callable[[list[str]], int]:
    return importlib.import_module(f"{package}.{name}").main


def train(package: str, run_dir: str, **changed: object) -> int:
    options = OPTIONS | {"run_dir": run_dir} | {name.replace("__", "."): value for name, value in changed.items()}
    return command(package, "train")([f"--{name}={value}" for name, value in options.items()])


def test_a_folder_of_any_name_is_trained_resumed_evaluated_and_has_readable_files(package: str, capsys):
    name = "my [run]*?/r[1] it's"
    assert train(package, name) == 0
    assert train(package, name, train__resume="auto", train__steps=3) == 0
    assert command(package, "evaluate")([name]) == 0
    assert "step_0000000" in capsys.readouterr().out
    assert [c.step for c in list_checkpoints(Path(name))][-1] == 3
    umask = os.umask(0)
    os.umask(umask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in Path().rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize("damage", ["params", "optimizer", "loss"])
def test_a_state_that_is_not_finite_is_never_saved(package: str, capsys, monkeypatch, damage: str):
    engine = importlib.import_module(f"{package}.engine").Engine
    step, count = engine.train_step, 0

    def breaking(self: Any, batch: Any, lr: float) -> Any:
        nonlocal count
        metrics = step(self, batch, lr)
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            if damage == "loss":
                return metrics | {"loss": np.float32("nan")}
            break_state(self, damage)
        return metrics

    monkeypatch.setattr(engine, "train_step", breaking)
    assert train(package, "run", train__steps=4, log__every=4, eval__every=0) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    what = {  # an evaluation sees parameters first
        "params": "the validation loss became (inf|nan)",
        "optimizer": "the parameters or the optimizer state became infinite or NaN",
        "loss": "the loss became nan",
    }[damage]
    last = r"run/checkpoints/step_00000001; try a lower optim.lr than 0.003 or a smaller optim.clip than 1.0"
    assert re.fullmatch(rf"error: {what} by step 2, which was not saved; the last good checkpoint is {last}", error)
    assert [checkpoint.step for checkpoint in list_checkpoints(Path("run"))] == [1]


def break_state(engine: Any, part: str) -> None:
    if engine.framework == "torch":
        values = next(iter(engine.state.params.values()))
        values = values if part == "params" else next(iter(engine.state.optimizer.state.values()))["exp_avg_sq"]
        values.view(-1)[0] = float("inf")
        return
    import dataclasses

    import jax

    field = "params" if part == "params" else "opt_state"
    leaves, tree = jax.tree.flatten(getattr(engine.state, field))
    leaves[-1] = leaves[-1] * float("nan")
    engine.state = dataclasses.replace(engine.state, **{field: jax.tree.unflatten(tree, leaves)})


def test_a_saved_state_that_is_not_finite_is_set_aside(package: str, capsys, monkeypatch):
    engine = importlib.import_module(f"{package}.engine").Engine
    finite = engine.is_finite
    with monkeypatch.context() as patch:  # as an older version saved it
        patch.setattr(engine, "is_finite", lambda self: True)
        save = engine.save

        def breaking(self: Any, folder: Path) -> Any:
            if folder.parent.name.startswith("step_00000002"):
                break_state(self, "params")
            return save(self, folder)

        patch.setattr(engine, "save", breaking)
        assert train(package, "run") == 0
    assert engine.is_finite is finite
    assert train(package, "run", train__resume="auto", train__steps=3) == 0
    err = capsys.readouterr().err
    assert "step_00000002: its state is not finite; renamed to step_00000002.damaged, resuming from step 1" in err
    assert [checkpoint.step for checkpoint in list_checkpoints(Path("run"))][-1] == 3


def test_a_plot_never_fails_a_run(package: str, capsys, monkeypatch):
    def failing(*_: object, **__: object) -> None:
        raise ValueError("no\nfonts")

    monkeypatch.setattr(plots, "new_plot", failing)
    assert train(package, "run") == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line == "note: run/loss.png could not be drawn (ValueError: no fonts); everything else is in order"


def test_a_matplotlib_backend_that_does_not_exist_fails_no_run(tmp_path: Path):
    options = [f"--{name}={value}" for name, value in (OPTIONS | {"run_dir": "run"}).items()]
    environment = os.environ | {"MPLBACKEND": "nonsense", "PYTHONPATH": str(Path(plots.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "torchlm.train", *options],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("note: run/loss.png could not be drawn (")


def test_what_can_be_refused_is_refused_before_text_is_prepared(package: str, tmp_path: Path, capsys, monkeypatch):
    Path("text.txt").write_text("Once upon a time. " * 99)
    text = {"data__files": "text.txt"}
    assert train(package, "run", **text) == 0
    assert train(package, "other", data__dir="data2", model__vocab_size=300) == 0
    Path("file").touch()
    Path("text.txt").write_text("Once upon a place. " * 99)
    capsys.readouterr()
    resume = {"train__resume": "auto"}
    for run_dir, changed, message in (
        ("run", {}, "already has a run; resume it with --train.resume auto"),
        ("run", {**text, **resume}, "the text has changed since run was started"),
        ("run", {**text, **resume, "model__dim": 16}, "model.dim was 8 and is 16"),
        ("run", {**resume, "train__seed": 3}, "train.seed was 0 and is 3"),
        ("file", {}, "run_dir: file is a file, expected a folder; name another folder"),
        ("file/below", {}, "/file is a file, expected a folder; name another folder"),
        ("new", {"train__device": "mps"}, "train.device: found 'mps'"),
        ("new", {"log__tensorboard": "true"}, "tensorboardX is not installed"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "tensorboardX", None)
            assert train(package, run_dir, data__dir="fresh", **changed) == 2, message
        [error] = capsys.readouterr().err.splitlines()
        assert message in error
        assert not Path("fresh").exists(), message
        assert not Path("new").exists()
    assert train(package, "other", data__dir="data2", **resume, train__steps=3) == 0, "its vocabulary is its own"
    Path("text.txt").write_text("Once upon a time. " * 99)
    assert train(package, "run", **text, **resume, data__dir="fresh", train__steps=3) == 0
    assert (Path("run") / HEADER).exists()


def test_too_little_validation_text_is_refused_before_a_run_folder_is_made(package: str, capsys):
    Path("text.txt").write_text("Once upon a time. " * 99)
    Path("valid.txt").write_text("")
    assert train(package, "run", data__files="text.txt", data__valid_files="valid.txt") == 2
    assert not Path("run").exists()


def test_a_framework_that_is_not_installed_is_refused_before_anything_is_written(package: str, capsys, monkeypatch):
    for name in [name for name in sys.modules if name == f"{package}.engine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, {"jaxlm": "jax", "torchlm": "torch"}[package], None)
    assert train(package, "run") in (1, 2)
    assert "is not installed" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_user_may_go_on_with_the_printed_command_whatever_the_folders_name(package: str, capsys, monkeypatch):
    import shlex

    engine = importlib.import_module(f"{package}.engine").Engine
    step = engine.train_step

    def stopping(self: Any, batch: Any, lr: float) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, lr)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_step", stopping)
        assert train(package, "my $run 'x'") == 128 + signal.SIGTERM
    [told] = re.findall(r"resume with: (.*)", capsys.readouterr().out)
    words = shlex.split(told)
    assert words[:3] == ["python", "-m", f"{package}.train"]
    assert command(package, "train")(words[3:]) == 0
