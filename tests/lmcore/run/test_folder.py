"""Only the same run is resumed, by one process at a time, and a folder whose files have changed is refused."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lmcore import config as configs
from lmcore.config import Config, RopeScaling, from_dict
from lmcore.errors import UserError
from lmcore.files import Damaged
from lmcore.run import checkpoints
from lmcore.run.checkpoints import find_checkpoint, set_aside_newer
from lmcore.run.folder import load_run, lock_run, open_run, unlock_run
from tests.lmcore.run.folders import CONFIG, names


def test_config_and_tokenizer_are_the_runs(run_dir: Path):
    config, tokenizer = load_run(find_checkpoint(run_dir))
    assert (config, tokenizer.vocab_size) == (replace(CONFIG, run_dir=str(run_dir)), 257)
    (run_dir / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: cannot be read"):
        load_run(find_checkpoint(run_dir))


def changed(run_dir: Path, **changes: object) -> Config:
    """Return the config of `run_dir` with other values; a name is a group and a field, joined by __."""
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
            "model.n_layers was 4 and is 5; model.rope_scaling.type was None and is 'llama3'; ",
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
    assert refused.stderr.startswith(f"refused: run_dir: {tmp_path} is in use by process {os.getpid()} on ")
    unlock_run(handle)
    assert lock_elsewhere(tmp_path).returncode == 0
    unlock_run(lock_run(tmp_path))  # the other process has ended, and its lock with it


def damage(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step_{step:08d}" / "state" / "weights").write_text("whale")


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
