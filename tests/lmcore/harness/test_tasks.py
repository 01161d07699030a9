"""Tasks are found by name, lm-eval's own are indexed only where needed, and what is missing is one line."""

from collections.abc import Callable
from pathlib import Path

import lm_eval.tasks
import pytest

from lmcore.errors import UserError
from lmcore.harness.tasks import open_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "own.yaml").write_text(
        f"task: own_task\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    )
    return tmp_path


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether lm-eval's own tasks were asked for, index by index; none is read."""
    asked, make = [], lm_eval.tasks.TaskManager

    def counted(include_path: str | None, include_defaults: bool = True) -> Callable:
        asked.append(include_defaults)
        return make(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", counted)
    return asked


def test_a_folders_tasks_need_no_other_index(folder: Path, indexed: list[bool]):
    assert open_tasks(["own_task"], str(folder)).all_tasks == ["own_task"]
    assert indexed == [False]


def test_an_unknown_name_is_one_line_with_the_nearest(folder: Path, indexed: list[bool]):
    with pytest.raises(UserError, match=r"^--tasks: found 'own_tsk', which no task is called; did you mean own_task\?"):
        open_tasks(["own_task", "own_tsk"], str(folder))
    assert indexed == [False, True]


def test_missing_data_is_one_line(folder: Path):
    (folder / "rows.jsonl").unlink()
    with pytest.raises(UserError, match=r"^--tasks: a task cannot be loaded \(\w+: .*rows.jsonl.*; correct its file"):
        open_tasks(["own_task"], str(folder))
