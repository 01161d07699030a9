"""Checkpoints are whole or not there, the right ones are kept, and only the same run is resumed."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lmcore import config as configs
from lmcore.config import Config, ModelConfig, RopeScaling, TokenizerConfig, TrainConfig, from_dict
from lmcore.data import tokenizer as tokenizers
from lmcore.errors import UserError
from lmcore.files import Damaged
from lmcore.run import checkpoints
from lmcore.run.checkpoints import (
    Checkpoint,
    Checkpoints,
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
    set_aside_newer,
)
from lmcore.run.folder import load_run, lock_run, open_run, unlock_run

CONFIG = Config(model=ModelConfig(vocab_size=300), train=TrainConfig(steps=100, resume="auto"))


def write(folder: Path) -> Callable[[], None]:
    """A framework's part, in miniature: copies now, writes later."""

    def finish() -> None:
        folder.mkdir()
        (folder / "weights").write_text("whole")

    return finish


@pytest.fixture
def saving(tmp_path: Path):
    """A run's checkpoints: the latest two and the best."""
    saver = Checkpoints(tmp_path, "jax", keep=2)
    yield saver
    saver.close()


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def steps(run_dir: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run_dir)]


def test_a_saved_checkpoint_is_all_there(saving: Checkpoints, tmp_path: Path):
    saving.save(7, 1.5, write)
    saving.wait()
    folder = tmp_path / "checkpoints" / "step_00000007"
    assert list_checkpoints(tmp_path) == [Checkpoint(folder, "jax", 7, 1.5)]
    [found] = list_checkpoints(tmp_path)
    assert (found.run_dir, (found.state / "weights").read_text()) == (tmp_path, "whole")
    assert names(tmp_path) == ["step_00000007"]


def test_it_is_written_in_the_background_and_the_next_save_waits(saving: Checkpoints, tmp_path: Path):
    events = []

    def slow(folder: Path) -> Callable[[], None]:
        events.append("copied")
        finish = write(folder)
        return lambda: (finish(), events.append(f"there were {steps(tmp_path)}"))[0]

    saving.save(1, None, slow)
    saving.save(2, None, slow)
    saving.wait()
    assert events == ["copied", "there were []", "copied", "there were [1]"]
    assert steps(tmp_path) == [1, 2]


def fail_at_once(error: Exception) -> Callable[[Path], Callable[[], None]]:
    def failing(folder: Path) -> Callable[[], None]:
        folder.mkdir()
        raise error

    return failing


def fail_later(error: Exception) -> Callable[[Path], Callable[[], None]]:
    def failing(folder: Path) -> Callable[[], None]:
        def finish() -> None:
            folder.mkdir()
            (folder / "weights").write_text("ha")
            raise error

        return finish

    return failing


def save_and_wait(saving: Checkpoints, write: Callable) -> None:
    saving.save(2, 1.0, write)
    saving.wait()


@pytest.mark.parametrize("failing", [fail_at_once, fail_later])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("disk\nfull")])
def test_a_failed_write_leaves_no_checkpoint_and_the_earlier_ones(tmp_path: Path, failing: Callable, error: Exception):
    saving = Checkpoints(tmp_path, "jax", keep=2)
    saving.save(1, 2.0, write)
    message = r"^checkpoint: could not be written \(.*(No space left on device|disk full)\); the last one saved is "
    with pytest.raises(UserError, match=message):
        save_and_wait(saving, failing(error))
    saving.close()
    assert steps(tmp_path) == [1]
    assert (find_checkpoint(tmp_path).state / "weights").read_text() == "whole"
    assert names(tmp_path) == ["step_00000001", "step_00000002.tmp"], "what is unfinished never has a checkpoint's name"
    Checkpoints(tmp_path, "jax", keep=2).close()
    assert names(tmp_path) == ["step_00000001"], "the next run clears it away"


def test_a_failure_in_the_background_is_told_at_the_next_save(saving: Checkpoints):
    saving.save(1, None, fail_later(OSError("gone")))
    with pytest.raises(UserError, match="could not be written"):
        saving.save(2, None, write)


def test_another_kind_of_failure_is_not_called_a_full_disk(saving: Checkpoints):
    saving.save(1, None, fail_later(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        saving.wait()


KILLED = """
import os, sys
from pathlib import Path
from lmcore.run.checkpoints import Checkpoints

def write(folder):
    def finish():
        folder.mkdir()
        (folder / "weights").write_text("whole" if finish_it else "ha")
        finish_it or os._exit(9)
    return finish

saver = Checkpoints(Path(sys.argv[1]), "jax", keep=2)
for step, finish_it in ((1, True), (2, False)):
    saver.save(step, None, write)
    saver.wait()
"""


def test_a_kill_in_the_middle_leaves_the_earlier_checkpoint(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoints.__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, timeout=60)
    assert killed.returncode == 9
    assert names(tmp_path) == ["step_00000001", "step_00000002.tmp"]
    assert steps(tmp_path) == [1]


def test_a_step_that_is_saved_already_is_left_alone(saving: Checkpoints, tmp_path: Path):
    saving.save(1, 2.0, write)
    saving.save(1, None, fail_at_once(OSError("must not be called")))
    saving.wait()
    assert [checkpoint.valid_loss for checkpoint in list_checkpoints(tmp_path)] == [2.0]


@pytest.mark.parametrize(
    ("keep", "losses", "kept"),
    [
        (2, [5.0, 4.0, 3.0, 2.0], [3, 4]),
        (2, [1.0, 4.0, 3.0, 2.0], [1, 3, 4]),
        (1, [5.0, 1.0, 3.0, 2.0], [2, 4]),
        (1, [5.0, 4.0, 3.0, 2.0], [4]),
        (2, [None, 4.0, None, None], [2, 3, 4]),
        (2, [None, None, None, None], [3, 4]),  # none has a loss: the latest is as good as any
        (1, [math.nan, 4.0, 5.0, None], [2, 4]),
        (1, [math.inf, 4.0, 5.0, math.nan], [2, 4]),
        (9, [5.0, 4.0, 3.0, 2.0], [1, 2, 3, 4]),
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path: Path, keep: int, losses: list[float | None], kept: list[int]):
    saving = Checkpoints(tmp_path, "jax", keep)
    for step, loss in enumerate(losses, start=1):
        saving.save(step, loss, write)
    saving.wait()
    saving.close()
    assert steps(tmp_path) == kept
    assert names(tmp_path) == [f"step_{step:08d}" for step in kept]


def test_the_best_has_the_lowest_loss_and_is_the_later_of_equals():
    made = [Checkpoint(Path(str(i)), "jax", i, loss) for i, loss in enumerate([None, math.nan, 2.0, 1.0, 1.0])]
    assert best_checkpoint(made).step == best_checkpoint(made[::-1]).step == 4
    assert best_checkpoint(made[:4]).step == 3
    assert best_checkpoint(made[:2]).step == 1, "neither has a loss"


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path):
    saving = Checkpoints(tmp_path, "jax", 9)
    for step in (5, 10_000, 300):
        saving.save(step, None, write)
    saving.wait()
    saving.close()
    assert steps(tmp_path) == [5, 300, 10_000]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with two checkpoints, the first of which is better."""
    folder = tmp_path / "run"
    folder.mkdir()
    configs.save(replace(CONFIG, run_dir=str(folder)), folder / "config.yaml")
    tokenizers.train(TokenizerConfig(kind="bytes"), []).save(folder / "tokenizer.json")
    saving = Checkpoints(folder, "jax", keep=2)
    saving.save(10, 1.0, write)
    saving.save(20, 2.0, write)
    saving.wait()
    saving.close()
    return folder


def test_a_run_is_named_by_its_folder_or_by_one_checkpoint(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_checkpoint(run_dir).step == 10, "the best"
    assert find_checkpoint(run_dir / "checkpoints" / "step_00000020").step == 20
    monkeypatch.chdir(run_dir / "checkpoints" / "step_00000020")
    assert find_checkpoint(Path()).run_dir == run_dir, "relative paths lead to the run too"


def test_a_run_that_is_not_there_or_has_no_checkpoint_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"none: no such folder, expected a run or one of its checkpoints$"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match=r": found no checkpoint, expected a run folder with checkpoints/step_\*"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"framework": "jax", "step": "x", "valid_loss": null}', None]
)
def test_a_damaged_description_is_named_and_passed_over(run_dir: Path, content: str | None, capsys):
    path = run_dir / "checkpoints" / "step_00000020" / "checkpoint.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert find_checkpoint(run_dir, "latest").step == 10
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"note: {re.escape(str(path))}: (cannot be read|is damaged) .*; skipped", line)


def test_a_description_says_framework_step_and_loss(run_dir: Path):
    path = run_dir / "checkpoints" / "step_00000020" / "checkpoint.json"
    found = json.loads(path.read_text())
    assert {name: found[name] for name in found if name not in ("files", "run", "checksum")} == {
        "framework": "jax",
        "step": 20,
        "valid_loss": 2.0,
    }
    assert list(found["files"]) == ["state/weights"]


def test_config_and_tokenizer_are_the_runs(run_dir: Path):
    config, tokenizer = load_run(find_checkpoint(run_dir))
    assert (config, tokenizer.vocab_size) == (replace(CONFIG, run_dir=str(run_dir)), 257)
    (run_dir / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: cannot be read"):
        load_run(find_checkpoint(run_dir))


def changed(run_dir: Path, **changes: object) -> Config:
    """The config of `run_dir` with dotted names, written with __ for the dot, set anew."""
    values = configs.to_dict(replace(CONFIG, run_dir=str(run_dir)))
    for name, value in changes.items():
        group, _, field = name.partition("__")
        values[group][field] = value
    return from_dict(Config, values)


def test_a_new_folder_has_nothing_to_resume(tmp_path: Path):
    assert open_run(changed(tmp_path / "new"), "jax") is None


def test_a_run_is_continued_from_its_latest_checkpoint_not_its_best(run_dir: Path):
    found = open_run(changed(run_dir), "jax")
    assert found is not None
    assert found.step == 20


def test_a_run_without_checkpoints_starts_anew(tmp_path: Path):
    configs.save(changed(tmp_path), tmp_path / "config.yaml")
    assert open_run(changed(tmp_path), "jax") is None


def test_a_run_is_not_overwritten(run_dir: Path):
    message = (
        f"^run_dir: {re.escape(str(run_dir))} already has a run; resume it with --train.resume auto, or name another"
    )
    with pytest.raises(UserError, match=message):
        open_run(changed(run_dir, train__resume="never"), "jax")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__dim": 256}, "model.dim was 128 and is 256"),
        ({"model__vocab_size": 301}, "model.vocab_size was 300 and is 301"),
        ({"model__dropout": 0.1}, "model.dropout was 0.0 and is 0.1"),
        ({"train__seed": 1}, "train.seed was 0 and is 1"),
        ({"optim__name": "muon", "optim__lr": 1.0}, "optim.name was 'adamw' and is 'muon'"),
        ({"train__batch_size": 32}, "train.batch_size was 8 and is 32"),
        ({"train__precision": "bfloat16"}, "train.precision was 'float32' and is 'bfloat16'"),
        ({"data__files": ["a.txt"]}, r"data.files was \[\] and is \['a.txt'\]"),
        ({"tokenizer__kind": "bytes"}, "tokenizer.kind was 'bpe' and is 'bytes'"),
        (
            {"model__n_layers": 5, "model__rope_scaling": configs.to_dict(RopeScaling())},
            "model.n_layers was 4 and is 5; model.rope_scaling.factor was None and is 8.0",
        ),
    ],
)
def test_another_run_is_refused_with_all_old_and_new_values(run_dir: Path, changes: dict, told: str):
    with pytest.raises(UserError, match=f"was made with another config: {told}.*; restore them or start a new run$"):
        open_run(changed(run_dir, **changes), "jax")


@pytest.mark.parametrize(
    "changes",
    [
        {"train__steps": 200, "optim__lr": 1e-4, "optim__warmup_steps": 3},
        {"train__remat": True, "train__cpu_devices": 1, "data__dir": "elsewhere"},
        {"eval__every": 7, "checkpoint__keep": 9, "log__every": 1, "sample__prompt": "Then"},
    ],
)
def test_what_does_not_make_another_run_may_change(run_dir: Path, changes: dict):
    assert open_run(changed(run_dir, **changes), "jax") is not None


def test_a_moved_run_may_be_resumed(run_dir: Path):
    moved = run_dir.rename(run_dir.with_name("moved"))
    assert open_run(changed(moved), "jax") is not None


def test_the_other_frameworks_run_is_refused(run_dir: Path):
    with pytest.raises(UserError, match=r" is a jax run, expected torch; convert it first"):
        open_run(changed(run_dir), "torch")
    with pytest.raises(UserError, match=r" is a jax run, expected torch; convert it first"):
        find_checkpoint(run_dir).check_framework("torch")
    find_checkpoint(run_dir).check_framework("jax")


LOCK = """
import sys
from pathlib import Path
from lmcore.run.folder import lock_run
from lmcore.errors import UserError
try:
    lock_run(Path(sys.argv[1]))
except UserError as error:
    sys.exit(f"refused: {error}")
"""


def lock_elsewhere(run_dir: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoints.__file__).parents[2])}
    command = [sys.executable, "-c", LOCK, str(run_dir)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_run_folder_is_for_one_process_at_a_time(tmp_path: Path):
    handle = lock_run(tmp_path)
    refused = lock_elsewhere(tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"refused: run_dir: {tmp_path} is in use by another process")
    unlock_run(handle)
    assert lock_elsewhere(tmp_path).returncode == 0
    unlock_run(lock_run(tmp_path))  # the other process has ended, and its lock with it


def damage(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step_{step:08d}" / "state" / "weights").write_text("whale")


def test_a_damaged_checkpoint_is_passed_over_by_its_run_and_refused_by_itself(run_dir: Path, capsys):
    damage(run_dir, 10)
    assert find_checkpoint(run_dir).step == 20, "the best is damaged"
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"note: .*step_00000010/state/weights: is damaged .*; skipped", line)
    assert find_checkpoint(run_dir, verify=False).step == 10
    with pytest.raises(
        Damaged, match=r"weights: is damaged.*use another checkpoint, or read it unverified with --no_v"
    ):
        find_checkpoint(run_dir / "checkpoints" / "step_00000010")
    damage(run_dir, 20)
    with pytest.raises(Damaged, match=r"is damaged.*; every checkpoint of .* is damaged .*--no_verify$"):
        find_checkpoint(run_dir)
    assert names(run_dir) == ["step_00000010", "step_00000020"], "reading renames nothing"


def test_a_run_goes_on_from_the_newest_good_checkpoint_and_sets_the_damaged_aside(run_dir: Path, capsys):
    damage(run_dir, 20)
    latest = open_run(changed(run_dir), "jax")
    assert latest is not None
    assert latest.step == 10
    assert names(run_dir) == ["step_00000010", "step_00000020"], "nothing is renamed before all else is in order"
    for _ in range(2):
        set_aside_newer(latest)
        [line] = capsys.readouterr().err.splitlines()
        assert re.fullmatch(
            r"note: .*weights: is damaged .*; renamed to step_00000020.damaged\S*, resuming from step 10", line
        )
        shutil.copytree(run_dir / "checkpoints" / "step_00000020.damaged", run_dir / "checkpoints" / "step_00000020")
    damage(run_dir, 10)
    with pytest.raises(Damaged, match="every checkpoint of"):
        open_run(changed(run_dir), "jax")
    config = changed(run_dir)
    unverified = replace(config, checkpoint=replace(config.checkpoint, verify=False))
    assert open_run(unverified, "jax").step == 20


def test_a_checkpoint_without_checksums_is_read_and_said_to_be(run_dir: Path, capsys):
    path = run_dir / "checkpoints" / "step_00000010" / "checkpoint.json"
    path.write_text('{"framework": "jax", "step": 10, "valid_loss": 1.0}\n')
    assert find_checkpoint(run_dir).step == 10
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"note: {path.parent} was written by an older version, without checksums; reading it unverified"


def test_only_names_that_are_written_here_are_touched(run_dir: Path):
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "step_00000010", folder / "step_00000010-good")
    (folder / "step_00000040.tar.gz").touch()
    (folder / "x.tmp").mkdir()
    (folder / "step_00000005.tmp").mkdir()
    saving = Checkpoints(run_dir, "jax", keep=1)
    saving.save(30, 0.5, write)
    saving.wait()
    saving.close()
    assert names(run_dir) == ["step_00000010-good", "step_00000030", "step_00000040.tar.gz", "x.tmp"]
    assert find_checkpoint(folder / "step_00000010-good").step == 10


def test_a_tokenizer_that_has_changed_is_refused(run_dir: Path):
    path = run_dir / "tokenizer.json"
    path.write_text(path.read_text().replace('"a": 97', '"a": 98').replace('"b": 98', '"b": 97'))
    for read in (lambda: load_run(find_checkpoint(run_dir)), lambda: open_run(changed(run_dir), "jax")):
        with pytest.raises(Damaged, match=r"tokenizer.json: is damaged"):
            read()
    load_run(find_checkpoint(run_dir), verify=False)


def test_a_config_that_was_cut_is_refused_and_one_that_was_edited_says_what_to_do(run_dir: Path):
    path = run_dir / "config.yaml"
    text = path.read_text()
    for wrong in (text[: len(text) // 2], text[:-3], text.replace("lr: 0.003", "lr: 0.007")):
        path.write_text(wrong)
        with pytest.raises(
            Damaged, match=r"config.yaml: has changed since it was written .*; if you edited it, delete that li"
        ):
            load_run(find_checkpoint(run_dir))
    edited = text.replace("lr: 0.003", "lr: 0.007").partition("\n")[2]
    path.write_text(edited)
    assert load_run(find_checkpoint(run_dir))[0].optim.lr == 0.007
    path.write_text(edited[: edited.index("log:")])
    with pytest.raises(UserError, match=r"config.yaml: found no log, sample, expected a complete config"):
        load_run(find_checkpoint(run_dir))


def test_metrics_that_have_changed_are_seen(run_dir: Path):
    path = run_dir / "metrics.jsonl"
    path.write_text('{"step": 30, "loss": 2.5}\n')
    saving = Checkpoints(run_dir, "jax", keep=1)
    saving.save(30, 0.5, write)
    saving.wait()
    saving.close()
    checkpoint = find_checkpoint(run_dir)
    path.write_text(path.read_text() + '{"step": 31, "loss": 2.4}\n')
    assert checkpoint.verify_metrics(), "later rows don't matter"
    path.write_text(path.read_text().replace("2.5", "2.7"))
    with pytest.raises(Damaged, match="edited before step 30"):
        checkpoint.verify_metrics()
    path.unlink()
    assert not checkpoint.verify_metrics()
