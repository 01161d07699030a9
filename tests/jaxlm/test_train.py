"""The commands as a user runs them: train, interrupt, resume, evaluate, generate, and every mistake in one line."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import evaluate, generate, train
from lmcore.config import load
from lmcore.config.cli import parse
from lmcore.data.prepare import prepare
from lmcore.run.checkpoints import find_checkpoint, list_checkpoints
from lmcore.run.trackers import read_metrics

TINY = [
    "--model.dim=16",
    "--model.n_layers=1",
    "--model.n_heads=2",
    "--model.max_seq_len=24",
    "--model.dropout=0.1",
    "--data.stories=60",
    "--tokenizer.vocab_size=300",
    "--train.batch_size=4",
    "--train.steps=24",
    "--log.every=1",
    "--eval.every=8",
    "--eval.windows=4",
    "--checkpoint.every=8",
    "--sample.every=12",
    "--sample.max_tokens=20",
]


def options(run: Path, *more: str) -> list[str]:
    return [*TINY, f"--run_dir={run}", f"--data.dir={run.parent / 'data'}", *more]


def rows_without_rate(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of 24 steps."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert train.main(options(folder)) == 0
    return folder


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "tokenizer.json", "metrics.jsonl", "loss.png", "samples", "checkpoints"}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    config = load(run / "config.yaml")
    assert config.model.vocab_size == 300
    assert config.model.head_dim == 8
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert [row["step"] for row in rows if "valid_loss" in row] == [8, 16, 24]
    assert rows[-1]["tokens"] == 24 * 4 * 24
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert {path.stem for path in (run / "samples").iterdir()} == {"sample-000012", "sample-000024"}


def test_checkpoints_kept_are_the_latest_and_the_best(run: Path) -> None:
    kept = list_checkpoints(run)
    losses = {row["step"]: row["valid_loss"] for row in read_metrics(run / "metrics.jsonl") if "valid_loss" in row}
    assert {c.step for c in kept} == {16, 24, min(losses, key=losses.__getitem__)}
    assert {c.step: c.valid_loss for c in kept}.items() <= losses.items()
    assert find_checkpoint(run).valid_loss == min(losses.values())


def test_a_finished_run_that_is_resumed_only_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    assert train.main(["--run_dir", str(run), "--train.resume=auto"]) == 0
    assert "resuming from step 24" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


def test_changed_text_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    stopped = options(tmp_path / "run", f"--data.files={text}", "--train.steps=2", "--tokenizer.kind=bytes")
    text.write_text("Once upon a time there was a cat. " * 200)
    assert train.main(stopped) == 0
    text.write_text("Once upon a time there was a dog. " * 200)
    assert train.main(["--run_dir", str(tmp_path / "run"), "--train.resume=auto", "--train.steps=4"]) == 2
    assert "the text has changed since" in capsys.readouterr().err
    for more in ([], ["--data.max_documents=1"]):
        assert evaluate.main([str(tmp_path / "run"), *more]) == 2
        assert "training text has changed since" in capsys.readouterr().err
    text.write_text("Once upon a time there was a cat. " * 200)
    assert evaluate.main([str(tmp_path / "run")]) == 0
    assert train.main(["--run_dir", str(tmp_path / "run"), "--train.resume=auto", "--train.steps=4"]) == 0


MISTAKES = {
    "an existing run": (
        [],
        "run_dir: {run} already has a run; resume it with --train.resume auto, or name another folder",
    ),
    "another model": (["--train.resume=auto", "--model.dim=32"], "model.dim was 16 and is 32"),
    "a typo": (["--model.dmi=3"], "--model.dmi: no such field; did you mean model.dim?"),
    "no such file": (["--run_dir={run}-new", "--data.files=nowhere/*.txt"], "nowhere/*.txt"),
    "too few embeddings": (["--run_dir={run}-new", "--model.vocab_size=200"], "model.vocab_size: found 200"),
    "too little text": (["--run_dir={run}-new", "--data.stories=2", "--model.max_seq_len=9999"], "train.seq_len"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, message = MISTAKES[name]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    argv = [word.format(run=run) for word in more]
    assert train.main(options(run, *argv) if "--train.resume=auto" not in argv else [f"--run_dir={run}", *argv]) == 2
    error = capsys.readouterr().err
    assert message.format(run=run) in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_divergence_is_told_and_leaves_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(options(tmp_path / "run", "--optim.lr=1e30", "--optim.clip=0", "--optim.warmup_steps=0")) == 1
    error = capsys.readouterr().err
    assert re.search(
        r"the loss became nan by step \d+, which was not saved; no checkpoint had been saved; "
        r"try a lower optim.lr than 1e\+30 or optim.clip 1.0$",
        error,
    )
    assert error.count("\n") == 1


def test_evaluation_repeats_the_loss_of_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "--windows=4"]) == 0
    best = find_checkpoint(run)
    out = capsys.readouterr().out
    assert f"loss           {best.valid_loss:.4f} nats per token" in out
    assert evaluate.main([str(run / "checkpoints" / "step_00000016"), "--windows=4"]) == 0
    assert "step 16" in capsys.readouterr().out


def test_evaluation_reads_other_text(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a cat.\n" * 20)
    assert evaluate.main([str(run), "--data.files", str(text)]) == 0
    assert str(text) in capsys.readouterr().out
    assert evaluate.main([str(tmp_path)]) == 2
    assert "found no checkpoint" in capsys.readouterr().err


def test_generation_repeats_itself_from_one_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*more: str) -> str:
        assert generate.main([str(run), "--max_tokens=30", *more]) == 0
        return capsys.readouterr().out

    first = text("--prompt", "One day")
    assert first.startswith("One day")
    assert text("--prompt", "One day") == first
    assert text("--prompt", "One day", "--seed=1") != first
    assert text("--prompt", "One day", "--temperature=0") == text("--prompt", "One day", "--temperature=0", "--seed=1")
    several = text("--prompt", "One day", "", "The cat sat on the mat and looked at the moon " * 9)
    assert several.startswith(f"--- 1 ---\n{first}")
    assert "--- 3 ---\nThe cat" in several


def test_the_prompt_loop_answers_until_the_input_ends(run: Path) -> None:
    command = [sys.executable, "-m", "jaxlm.generate", str(run), "--interactive", "--max_tokens=8"]
    done = subprocess.run(command, input=b"One day\n\nA\xff\n", capture_output=True, timeout=120, check=True)
    out = done.stdout.decode()
    assert out.count("> ") == 4
    assert "> One day" in out
    assert "> A\ufffd" in out


@pytest.mark.parametrize("damage", ["cut", "cut short", "missing"])
def test_a_damaged_checkpoint_is_one_line(run: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for params in copy.glob("checkpoints/*/state/params"):
        if damage == "missing":
            shutil.rmtree(params)
        for file in params.glob("d/*"):
            os.truncate(file, 10 if damage == "cut short" else 1000)
    command = [sys.executable, "-m", "jaxlm.generate", str(copy), "--prompt", "a"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "/state/params/" in line
    assert "is missing" in line if damage == "missing" else "is damaged" in line
    assert "every checkpoint of" in line


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    words = shlex.join([sys.executable, "-m", "jaxlm.train", *options(tmp_path / "run", "--train.steps=2")])
    assert prepare(parse(options(tmp_path / "run"), prog="", description="")).train.documents > 0  # before the limit
    untraced = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    limited = f"ulimit -f 20; exec {words}"
    done = subprocess.run(limited, shell=True, text=True, capture_output=True, timeout=120, env=untraced)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: checkpoint: that of step 2 could not be written (")


def test_help_is_quick_because_it_loads_no_framework() -> None:
    code = "import sys, jaxlm.train; sys.argv = ['x', '--help']\ntry: jaxlm.train.main()\nexcept SystemExit: pass\n"
    code += "print(json.dumps(sorted({'jax', 'flax', 'numpy', 'tokenizers', 'matplotlib'} & set(sys.modules))))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", "import json; " + code], env=environment, text=True, capture_output=True, check=True
    )
    assert "--model.dim" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []
