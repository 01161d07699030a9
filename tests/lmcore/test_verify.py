"""The command says of every set of files whether it is what was written, with an exit code for scripts."""

import re
from pathlib import Path

import pytest

from lmcore import verify
from lmcore.config import Config, DataConfig, TokenizerConfig, save
from lmcore.data.prepare import prepare
from lmcore.files import write_sums
from lmcore.run.saving import Checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints, and its text in `data`."""
    data = DataConfig(stories=3, dir=str(tmp_path / "data"))
    config = Config(run_dir=str(tmp_path / "run"), data=data, tokenizer=TokenizerConfig(kind="bytes"))
    prepared = prepare(config, lambda line: None)
    folder = tmp_path / "run"
    folder.mkdir()
    save(config, folder / "config.yaml")
    for name in ("meta.json", "tokenizer.json"):
        (folder / name).write_bytes((prepared.folder / name).read_bytes())
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    saving = Checkpoints(folder, "jax", keep=2)
    for step in (1, 2):
        saving.save(step, 1.0, lambda state: lambda: (state.mkdir(), (state / "weights").write_text("whole"))[0])
    saving.wait()
    saving.close()
    (folder / "huggingface").mkdir()
    (folder / "huggingface" / "config.json").write_text("{}\n\n\n")
    write_sums(folder / "huggingface")
    return folder


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [re.sub(r" +", " ", line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_that_is_what_was_written(run: Path, capsys):
    assert verify.main([str(run), str(run.parent / "data")]) == 0
    [data] = [path for path in (run.parent / "data").iterdir() if path.is_dir()]
    names = ["config.yaml", "meta.json", "tokenizer.json", "metrics.jsonl"]
    names += ["huggingface", "checkpoints/step_00000001", "checkpoints/step_00000002"]
    assert lines(capsys) == [*(f"good {run / name}" for name in names), f"good {data}"]
    assert verify.main([str(run / "checkpoints" / "step_00000001")]) == 0
    assert verify.main([str(data)]) == 0


@pytest.mark.parametrize(
    "name",
    [
        *("run/config.yaml", "run/meta.json", "run/tokenizer.json", "run/metrics.jsonl"),
        *("run/checkpoints/step_00000001/checkpoint.json", "run/checkpoints/step_00000002/state/weights"),
        *("run/huggingface/config.json", "run/huggingface/SHA256SUMS"),
        *("data/*/train.bin", "data/*/valid.bin", "data/*/tokenizer.json", "data/*/meta.json"),
    ],
)
def test_every_file_counts(run: Path, capsys, name: str):
    [path] = run.parent.glob(name)
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert verify.main([str(run), str(run.parent / "data")]) == 1
    wrong = [line for line in lines(capsys) if not line.startswith("good ")]
    assert len(wrong) >= 1
    assert all(line.startswith("damaged ") for line in wrong)
    assert any(str(path) in line for line in wrong)


def test_files_of_an_older_version_are_neither_good_nor_damaged(run: Path, capsys):
    path = run / "checkpoints" / "step_00000001" / "checkpoint.json"
    path.write_text('{"framework": "jax", "step": 1, "valid_loss": null}')
    assert verify.main([str(path.parent)]) == 0
    assert lines(capsys) == [f"no checksums {path.parent}"]


def test_what_cannot_be_verified_is_one_line(tmp_path: Path, capsys):
    assert verify.main([str(tmp_path / "none")]) == 2
    assert verify.main([str(tmp_path)]) == 2
    none, empty = capsys.readouterr().err.splitlines()
    assert none.startswith(f"error: {tmp_path / 'none'}: no such folder, expected a run, a checkpoint, an export, a")
    assert empty.startswith(f"error: {tmp_path}: found none of these, expected a run")
