"""The right checkpoint is found, and a damaged one is passed over."""

import json
import math
import re
from pathlib import Path

import pytest

from lmcore.errors import UserError
from lmcore.files import Damaged, seal
from lmcore.run.checkpoints import (
    Checkpoint,
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
)
from lmcore.run.saving import Checkpoints
from tests.lmcore.run.folders import names, write


def steps(run_dir: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run_dir)]


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


NOT_CHECKPOINTS = (
    *("", "{", "[]", "{}", None),
    '{"framework": "jax", "step": "x", "valid_loss": null}',
    '{"framework": "jax", "step": Infinity, "valid_loss": null}',
    '{"framework": "jax", "step": 1, "valid_loss": "low"}',
    '{"framework": "jax", "step": 1, "valid_loss": null, "run": {"metrics_bytes": -1}}',
)


@pytest.mark.parametrize("content", NOT_CHECKPOINTS)
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
        "skipped": 0,
    }
    assert list(found["files"]) == ["state/weights"]


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


def test_a_checkpoint_without_checksums_is_read_and_said_to_be(run_dir: Path, capsys):
    path = run_dir / "checkpoints" / "step_00000010" / "checkpoint.json"
    path.write_text('{"framework": "jax", "step": 10, "valid_loss": 1.0}\n')
    assert find_checkpoint(run_dir).step == 10
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"note: {path.parent} was written by an older version, without checksums; reading it unverified"


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


@pytest.mark.parametrize("name", ["tokenizer.json", "samples", "checkpoints/step_00000001.tmp", "checkpoints/x"])
def test_a_link_that_leads_out_of_the_run_is_refused(run_dir: Path, tmp_path: Path, name: str):
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(tmp_path)
    for path in (run_dir, run_dir / "checkpoints" / "step_00000020"):
        with pytest.raises(Damaged, match=rf"{name}: is a link to .*, outside of .*; replace it by what it names"):
            find_checkpoint(path)
    (run_dir / name).unlink()
    (run_dir / name).symlink_to(run_dir / "config.yaml")
    assert find_checkpoint(run_dir).step == 10, "a link within is followed"


def test_a_run_that_is_a_link_itself_is_read(run_dir: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(run_dir)
    assert find_checkpoint(tmp_path / "link").step == 10


@pytest.mark.parametrize("name", ["../../../../secret", "/dev/zero"])
def test_checksums_name_files_of_the_checkpoint(run_dir: Path, name: str):
    for path in run_dir.glob("checkpoints/*/checkpoint.json"):
        fields = json.loads(path.read_text()) | {"files": {name: "0" * 64}}
        path.write_text(json.dumps(seal({n: value for n, value in fields.items() if n != "checksum"})))
    with pytest.raises(Damaged, match=r"found checksums of .*, expected names of files in it"):
        find_checkpoint(run_dir)
