"""`train.init_from`: both twins start from the weights of any source, with a new optimizer, and take the same steps."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxlm.train
import torchlm.train
from lmcore import config as configs
from lmcore.run.checkpoints import list_checkpoints
from lmcore.run.trackers import read_metrics
from parity.convert.conversion import convert

TRAIN = {"jax": jaxlm.train.main, "torch": torchlm.train.main}
SHAPE = ["--model.dim=8", "--model.n_layers=2", "--model.n_heads=2", "--model.max_seq_len=16"]
TEXT = [
    *("--train.batch_size=2", "--log.every=1", "--sample.max_tokens=1", "--eval.windows=2"),
    "--train.precision=float64",
]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and one trained model as a run of each twin and as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("room")
    (folder / "text.txt").write_text("a tale of a cat and a dog " * 30)
    words = [*SHAPE, *TEXT, "--tokenizer.kind=bytes", "--train.steps=4", "--optim.lr=0.03"]
    assert torchlm.train.main([f"--run_dir={folder / 'torch'}", *of(folder), *words]) == 0
    for to in ("jax", "hf"):
        convert(folder / "torch", to, folder / to)
    return folder


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def of(room: Path) -> list[str]:
    return [f"--data.files={room / 'text.txt'}", f"--data.dir={room / 'data'}"]


def losses(run: Path) -> np.ndarray:
    return np.array([row["loss"] for row in read_metrics(run / "metrics.jsonl")])


@pytest.mark.parametrize("source", ["jax", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torch", "hf"))])
def test_both_twins_start_from_one_source_and_take_the_same_steps(source: str, room: Path, tmp_path: Path):
    curves = {}
    for framework, main in TRAIN.items():
        run = tmp_path / framework
        words = [f"--train.init_from={room / source}", "--train.seed=3", "--train.steps=3"]
        assert main([f"--run_dir={run}", *of(room), *TEXT, *words]) == 0
        curves[framework] = losses(run)
    np.testing.assert_allclose(curves["jax"], curves["torch"], rtol=0, atol=1e-12)
    before = losses(room / "torch")
    assert curves["jax"][0] < before[0] - 0.1, "it starts where the source has ended, not at initial weights"
    start = list_checkpoints(tmp_path / "jax")[0]
    assert start.step == 0


@pytest.mark.parametrize("again", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_goes_on_without_its_source(again: bool, room: Path, tmp_path: Path, capsys: Any):
    """By the command that began it, or by the config in its folder."""
    source, data, run = tmp_path / "source", tmp_path / "data", tmp_path / "run"
    shutil.copytree(room / "torch", source)
    words = [f"--run_dir={run}", f"--data.files={room / 'text.txt'}", f"--data.dir={data}", *TEXT, "--train.steps=2"]
    named = [f"--train.init_from={source}", "--model.dropout=0.1", "--train.dropout_masks=threefry"]
    assert TRAIN["torch"]([*words, *named]) == 0
    whole = losses(run)
    facts = json.loads((run / "run.json").read_text())
    assert set(facts["init_from"]) == {"SHA256SUMS", "model.safetensors", "tokenizer.json"}
    saved = configs.load(run / "config.yaml")
    assert (saved.train.init_from, saved.model.dropout) == (str(source), 0.1)
    shutil.rmtree(source)
    shutil.rmtree(data)
    for folder in (run / "checkpoints").glob("step_*[1-9]"):
        shutil.rmtree(folder)  # as if it had been killed at its first step
    resumed = [*words, *named] if again else [f"--run_dir={run}"]
    assert TRAIN["torch"]([*resumed, "--train.resume=auto"]) == 0
    assert np.array_equal(losses(run), whole)
    capsys.readouterr()
    assert TRAIN["torch"]([*words, f"--train.init_from={room / 'hf'}", "--train.resume=auto"]) == 2
    assert "train.init_from was" in capsys.readouterr().err


def test_mistakes_are_one_line_and_leave_no_run(room: Path, tmp_path: Path, capsys: Any):
    run = tmp_path / "run"
    words = [f"--run_dir={run}", *of(room), *TEXT]
    for more, message in (
        ([f"--train.init_from={room / 'torch'}", "--model.n_layers=4"], "error: model.n_layers: found 4, expected 2, "),
        ([f"--train.init_from={tmp_path / 'no'}"], "error: train.init_from: found nothing at "),
        ([f"--train.init_from={room / 'data'}"], "error: train.init_from: "),
    ):
        capsys.readouterr()
        assert TRAIN["torch"]([*words, *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith(message), said
        assert said.count("\n") == 1
    assert not run.exists()
