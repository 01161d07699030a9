"""Proves that what is logged can be read back, and that a killed and resumed run reads as one unbroken run."""

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
from matplotlib.image import imsave
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from lmcore.config import Config, LogConfig
from lmcore.errors import UserError
from lmcore.run.trackers import JsonlTracker, TensorBoardTracker, WandbTracker, open_trackers, read_metrics
from tests.lmcore.run.folders import limited
from torchlm import train


def row(step: int, loss: float = 2.5) -> dict[str, int | float]:
    return {"step": step, "tokens": step * 4096, "loss": loss, "lr": 1e-3}


def strict(line: str) -> dict:
    """Parse JSON as a strict reader does: NaN and Infinity are refused."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(line, parse_constant=refuse)


def test_metrics_come_back_as_logged(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", None)
    rows = [row(10, 1 / 3), row(20) | {"valid_loss": 2.75}]
    for each in rows:
        tracker.log(each)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows  # before close: every row is flushed
    tracker.close()


def test_non_finite_values_are_null_to_strict_readers_and_nan_to_ours(tmp_path: Path):
    with pytest.raises(ValueError, match="NaN"):
        strict('{"loss": NaN}')
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log(row(10, math.nan))
    tracker.log(row(20, -math.inf))
    tracker.close()
    assert [strict(line)["loss"] for line in path.read_text().splitlines()] == [None, None]
    assert [math.isnan(each["loss"]) for each in read_metrics(path)] == [True, True]


def test_a_resumed_run_reads_as_one_unbroken_run(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    for step in (10, 20, 30, 40):
        tracker.log(row(step, math.nan if step == 10 else 2.5))
        tracker.text(step, "sample", f"at {step}")
    tracker.close()
    for name in ("notes-000099.txt", "sample-99.txt"):
        (tmp_path / "samples" / name).write_text("the user's own")
    with path.open("a") as file:
        file.write('{"step": 50, "tok')  # killed while writing
    assert [each["step"] for each in read_metrics(path)] == [10, 20, 30, 40]
    tracker = JsonlTracker(path, 20)
    tracker.log(row(30))
    tracker.close()
    assert [strict(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]
    samples = ["notes-000099.txt", "sample-000010.txt", "sample-000020.txt", "sample-99.txt"]
    assert sorted(sample.name for sample in tmp_path.glob("samples/*")) == samples
    assert {entry.name for entry in tmp_path.iterdir()} == {"metrics.jsonl", "samples"}  # no part file is left


def test_resuming_at_step_zero_and_a_new_run_both_start_empty(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for resume_step in (0, None):
        path.write_text(json.dumps(row(10)) + "\n")
        JsonlTracker(path, resume_step).close()
        assert path.read_text() == ""


def test_a_last_row_without_newline_is_kept_on_its_own_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(10)))
    tracker = JsonlTracker(path, 10)
    tracker.log(row(20))
    tracker.close()
    assert read_metrics(path) == [row(10), row(20)]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "lo',
        "[1]",
        '{"loss": 2.0}',
        "",
        '{"step": "1"}',
        '{"step": 1.5}',
        '{"step": 1, "loss": []}',
        "[" * 9999,
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(row(1))}\n{line}\n{json.dumps(row(2))}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is"):
        read_metrics(path)


def test_missing_metrics_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        read_metrics(tmp_path / "none.jsonl")


def test_text_is_written_as_it_is(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", None)
    tracker.text(300, "sample", "Once [bold]upon[/]\n\ttime é 🙂\n")
    tracker.close()
    written = (tmp_path / "samples" / "sample-000300.txt").read_bytes()
    assert written == "Once [bold]upon[/]\n\ttime é 🙂\n".encode()


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()


def test_tensorboard_reads_back_numbers_text_and_picture(tmp_path: Path):
    imsave(tmp_path / "loss.png", np.zeros((3, 5, 3)))
    tracker = TensorBoardTracker(tmp_path / "tb", None)
    tracker.log(row(10) | {"valid_loss": 2.75})
    tracker.text(10, "sample", "*Once*\n\nupon")
    tracker.image(10, tmp_path / "loss.png")
    tracker.close()
    read = events(tmp_path / "tb")
    assert {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]} == {
        "train/tokens": [(10, 40960.0)],
        "train/loss": [(10, 2.5)],
        "train/lr": [(10, float(np.float32(1e-3)))],
        "valid/loss": [(10, 2.75)],
    }
    (text,) = read.Tensors("sample/text_summary")
    assert text.tensor_proto.string_val == [b"    *Once*\n    \n    upon\n"]
    (image,) = read.Images("loss")
    assert (image.step, image.width, image.height) == (10, 5, 3)


@pytest.mark.parametrize(("resume_step", "expected"), [(20, [10, 20, 30]), (None, [30])])
def test_tensorboard_shows_a_resumed_run_as_one(tmp_path: Path, resume_step: int | None, expected: list[int]):
    tracker = TensorBoardTracker(tmp_path, None)
    for step in (10, 20, 30, 40):
        tracker.log(row(step))
    tracker.close()
    assert [e.step for e in events(tmp_path).Scalars("train/loss")] == [10, 20, 30, 40]
    tracker = TensorBoardTracker(tmp_path, resume_step)
    tracker.log(row(30))
    tracker.close()
    assert [e.step for e in events(tmp_path).Scalars("train/loss")] == expected


def wandb_records(run_dir: Path) -> list[Record]:
    """Every record of the run's offline logs, which are LevelDB logs of protocol buffers: 7 bytes that name the format,
    then blocks of 32 KiB of fragments (checksum, length, place in the record, bytes)."""
    records = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        data, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _checksum, length, place = struct.unpack_from("<IHB", data, at)
            record += data[at + 7 : at + 7 + length]
            at += 7 + length
            if place in (1, 4):  # a whole record, or the last fragment of one
                records.append(Record.FromString(record))
                record = b""
    return records


def history(records: list[Record]) -> dict[int, dict]:
    """Step -> name -> what W&B keeps there."""
    logged: dict[int, dict] = {}
    for record in records:
        if record.HasField("history"):
            values = {
                (item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            logged.setdefault(record.history.step.num, {}).update(values)
    return logged


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.mark.usefixtures("offline")
def test_wandb_offline_keeps_numbers_text_picture_and_one_id(tmp_path: Path):
    imsave(tmp_path / "loss.png", np.zeros((3, 5, 3)))
    for resume_step, step in ((None, 10), (10, 20)):
        tracker = WandbTracker(Config(), tmp_path, resume_step)
        tracker.log(row(step) | {"valid_loss": 2.75})
        tracker.text(step, "sample", "<b>Once</b>")
        tracker.image(step, tmp_path / "loss.png")
        tracker.close()
    wandb.teardown()  # its background process has written everything only when it has ended
    records = wandb_records(tmp_path)
    ids = {record.run.run_id for record in records if record.HasField("run")}
    assert ids == {(tmp_path / "wandb_id.txt").read_text()}
    logged = history(records)
    assert [logged[step]["train/loss"] for step in (10, 20)] == [2.5, 2.5]
    assert [logged[step]["valid/loss"] for step in (10, 20)] == [2.75, 2.75]
    assert "&lt;b&gt;Once" in next(tmp_path.glob("wandb/offline-run-*/files/media/html/*.html")).read_text()
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/loss_*.png"))) == 2


@pytest.mark.usefixtures("offline")
def test_a_new_wandb_run_has_a_new_id(tmp_path: Path):
    ids = set()
    for _ in range(2):
        WandbTracker(Config(), tmp_path, None).close()
        ids.add((tmp_path / "wandb_id.txt").read_text())
    assert len(ids) == 2


@pytest.mark.parametrize(("setting", "library"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_library_is_one_line_and_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, library: str
):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(10)) + "\n")
    monkeypatch.setitem(sys.modules, library, None)
    config = Config(log=LogConfig(**{setting: True}))
    with pytest.raises(UserError, match=rf'^log\.{setting}: .*{library} .*pip install "twinlm\[track\]"$'):
        open_trackers(config, tmp_path, None)
    assert read_metrics(path) == [row(10)]


def test_only_what_the_config_asks_for_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for log, kinds in (
        (LogConfig(), [JsonlTracker]),
        (LogConfig(tensorboard=True), [JsonlTracker, TensorBoardTracker]),
    ):
        trackers = open_trackers(Config(log=log), tmp_path, None)
        assert [type(tracker) for tracker in trackers] == kinds
        for tracker in trackers:
            tracker.close()


TINY = [
    *("--model.dim=8", "--model.n_layers=1", "--model.n_heads=2", "--model.max_seq_len=16", "--tokenizer.kind=bytes"),
    *("--data.stories=30", "--train.steps=4", "--train.batch_size=2", "--train.device=cpu", "--eval.every=2"),
    *("--log.every=1", "--sample.every=2", "--sample.max_tokens=9"),
]


@pytest.mark.usefixtures("offline")
def test_a_run_gives_every_tracker_its_curves_samples_and_picture(tmp_path: Path):
    run = tmp_path / "run"
    options = [*TINY, f"--run_dir={run}", f"--data.dir={tmp_path / 'data'}", "--log.tensorboard=true"]
    assert train.main([*options, "--log.wandb=true"]) == 0
    wandb.teardown()
    rows = read_metrics(run / "metrics.jsonl")
    samples = {int(path.stem[-6:]): path.read_text() for path in (run / "samples").iterdir()}
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert samples.keys() == {2, 4}

    board = events(run / "tensorboard")
    for tag, name in (("train/loss", "loss"), ("valid/bits_per_byte", "valid_bits_per_byte")):
        assert [(e.step, e.value) for e in board.Scalars(tag)] == [
            (row["step"], float(np.float32(row[name]))) for row in rows if name in row
        ]
    texts = {e.step: e.tensor_proto.string_val[0].decode() for e in board.Tensors("sample/text_summary")}
    shown = {step: "".join(line[4:] + "\n" for line in text.split("\n"))[:-1] for step, text in texts.items()}
    assert {step: text.rstrip("\n") for step, text in shown.items()} == {s: t.rstrip("\n") for s, t in samples.items()}
    assert [(e.step, e.encoded_image_string[:4]) for e in board.Images("loss")] == [(4, b"\x89PNG")]

    logged = history(wandb_records(run))
    assert {step: values["train/loss"] for step, values in logged.items()} == {r["step"]: r["loss"] for r in rows}
    assert {step for step, values in logged.items() if "sample._type" in values} == {2, 4}
    assert [step for step, values in logged.items() if "loss._type" in values] == [4]
    assert len(list(run.glob("wandb/offline-run-*/files/media/html/sample_*.html"))) == 2


def test_a_run_that_diverges_leaves_its_curve(tmp_path: Path):
    run = tmp_path / "run"
    options = [*TINY, f"--run_dir={run}", f"--data.dir={tmp_path / 'data'}", "--log.tensorboard=true"]
    assert train.main([*options, "--optim.lr=1e30", "--optim.clip=0", "--optim.warmup_steps=0"]) == 1
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert math.isfinite(last["loss"])
    assert math.isnan(last["valid_loss"])  # found by the evaluation, before the next training loss shows it
    assert [e.step for e in events(run / "tensorboard").Images("loss")] == [last["step"]]
    assert (run / "loss.png").exists()


def test_rows_that_do_not_fit_are_written_whole_when_they_do(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log(row(10))
    with limited(path.stat().st_size + 20):
        for step in (20, 30):
            with pytest.raises(OSError, match="File too large"):
                tracker.log(row(step))
        assert read_metrics(path) == [row(10)], "no part of a row"
    tracker.log(row(40))
    tracker.close()
    assert path.read_bytes().endswith(b"\n")
    assert read_metrics(path) == [row(10), row(20), row(30), row(40)]


def test_rows_that_fit_at_the_end_only_are_written_then(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", None)
    with limited(5), pytest.raises(OSError, match="File too large"):
        tracker.log(row(10))
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [row(10)]


def test_tensorboard_says_that_the_disk_is_full_and_shows_all_when_it_is_not(tmp_path: Path):
    tracker = TensorBoardTracker(tmp_path, None)
    tracker.log(row(10))
    with limited(100):
        for step in range(20, 60):  # more events than any queue holds
            with pytest.raises(OSError, match="File too large"):
                tracker.log(row(step))
    tracker.log(row(60))
    tracker.close()
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == [10, *range(20, 61)]
