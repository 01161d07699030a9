"""Ablations as a user runs them, in both packages: real runs, a divergence, a failure, Ctrl-C, and going on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxlm.ablate
import torchlm.ablate
from lmcore.run.checkpoints import list_checkpoints
from lmcore.run.trackers import read_metrics

FILE = """
base:
  model: {dim: 16, n_layers: 1, n_heads: 2, max_seq_len: 16}
  data: {stories: 40}
  tokenizer: {kind: bytes}
  train: {steps: 6, batch_size: 4}
  eval: {every: 3, windows: 4}
  checkpoint: {every: 2}
  log: {every: 1}
  sample: {max_tokens: 2}
seeds: [3]
changes:
"""


def study(folder: Path, *changes: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(FILE + "".join(f"  {change}\n" for change in changes))
    return path


def options(path: Path, *more: str) -> list[str]:
    return [str(path), "--out", str(path.parent / "out"), f"--data.dir={path.parent / 'data'}", *more]


@pytest.mark.parametrize("package", ["jaxlm", pytest.param("torchlm", marks=pytest.mark.slow)])
def test_an_ablation_runs_and_one_that_diverges_or_fails_stops_no_other(
    package: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = study(tmp_path, "explodes: {optim.lr: 1e30, optim.clip: 0}", "no device: {train.device: mps}")
    command = {"jaxlm": jaxlm.ablate, "torchlm": torchlm.ablate}[package]
    assert command.main(options(path, "--jobs", "2", "--optim.warmup_steps=0")) == 1
    out, err = capfd.readouterr()
    assert "[3/3]" not in out
    assert "error: no device, seed 3: train.device: found 'mps'" in err
    assert err.count("\n") == 1
    rows = {name: read_metrics(tmp_path / f"out/runs/{name}-seed-3/metrics.jsonl") for name in ("base", "explodes")}
    assert [row["step"] for row in rows["base"]] == [1, 2, 3, 4, 5, 6]
    assert rows["base"][0]["loss"] == rows["explodes"][0]["loss"]  # the same weights, the same batch
    table = (tmp_path / "out/report.md").read_text()
    assert (
        f"| base |  | {16 * 257 + 4 * 256 + 3 * 16 * 64 + 3 * 16:,} | {rows['base'][-1]['valid_loss']:.4f} |" in table
    )
    assert "1 of 1, by step 2" in table
    assert "no; 1 failed" in table
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("metrics.jsonl")}
    assert (
        command.main(options(study(tmp_path, "explodes: {optim.lr: 1e30, optim.clip: 0}"), "--optim.warmup_steps=0"))
        == 0
    )
    assert "2 runs, 2 of them done" in capfd.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before  # nothing was run again, the divergence included


def test_an_interrupted_ablation_saves_says_how_to_go_on_and_does(tmp_path: Path):
    path = study(tmp_path, "no clipping: {optim.clip: 0}")
    words = options(path, "--train.steps=3000", "--eval.every=0", "--checkpoint.every=0")
    command = [sys.executable, "-m", "torchlm.ablate", *words]
    metrics = tmp_path / "out/runs/base-seed-3/metrics.jsonl"
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert f"stopped with 0 of 2 runs done; resume with: python -m torchlm.ablate {path}" in out
    [saved] = list_checkpoints(metrics.parent)
    assert 0 < saved.step < 3000
    assert not (tmp_path / "out/runs/no-clipping-seed-3").exists()
    steps = saved.step + 2
    again = options(path, f"--train.steps={steps}", "--eval.every=0", "--checkpoint.every=0")
    done = subprocess.run([*command[:3], *again], text=True, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.count("was 3000")) == (2, 1)  # another length is another ablation
    assert "train.steps was 3000" in done.stderr
    # The base goes on where it stopped: what it logged before is there, and its log says so.
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while read_metrics(metrics)[-1]["step"] <= saved.step + 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert f"resuming from step {saved.step}" in metrics.parent.with_name("base-seed-3.log").read_text()
    assert [row["step"] for row in read_metrics(metrics)][:2] == [1, 2]


def test_mistakes_are_one_line_and_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for changes, more, message in (
        (["a: {model.dmi: 3}"], [], "study.yaml: a: model.dmi: no such field"),
        (["a: {data.files: [none.txt]}"], [], "a, seed 3: data.files: found no file for 'none.txt'"),
        (["a: {model.vocab_size: 9}"], [], "a, seed 3: model.vocab_size: found 9"),
        (["a: {optim.clip: 0}"], ["--model.n_heads=3"], "study.yaml: base: model.dim: found 16, expected a multiple"),
        (["a: {optim.clip: 0}"], ["--model.dmi=3"], "--model.dmi: no such field; did you mean model.dim?"),
        (["a: {optim.clip: 0}"], ["--jobs=0"], "--jobs: found 0"),
        (["a: {optim.clip: 0}"], [f"--out={__file__}"], "test_runner.py is a file, expected a folder; name another"),
    ):
        assert jaxlm.ablate.main(options(study(tmp_path, *changes), *more)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert jaxlm.ablate.main([str(tmp_path / "none.yaml")]) == 2
    assert "FILE: found no file" in capsys.readouterr().err
