import os
from pathlib import Path

import pytest

from lmcore.dashboard.folder import Contents, Folder, join
from tests.lmcore.dashboard.run_folders import write_run


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A run that is not in the folder of runs."""
    return write_run(tmp_path / "outside" / "secret")


@pytest.fixture
def runs(tmp_path: Path, outside: Path) -> Path:
    write_run(tmp_path / "runs" / "one")
    return tmp_path / "runs"


def test_runs_and_reports_are_found_below_the_folder(runs: Path):
    write_run(runs / "ablation" / "optim" / "adamw")
    (runs / "bench").mkdir()
    for report in ("check.html", "bench/today.html", "one/parity.html"):
        (runs / report).write_text("<title>report</title>")
    (runs / "one" / "checkpoints").mkdir()
    (runs / "one" / "checkpoints" / "no.html").write_text("")
    (runs / ".hidden").mkdir()
    (runs / ".hidden" / "config.yaml").write_text("")
    reports = ["bench/today.html", "check.html", "one/parity.html"]
    assert Folder(runs).contents() == Contents(["ablation/optim/adamw", "one"], reports)


def test_a_run_lies_at_most_three_folders_deep(runs: Path):
    write_run(runs / "a" / "b" / "c")
    write_run(runs / "a" / "b" / "d" / "e")
    assert Folder(runs).contents().runs == ["a/b/c", "one"]


def test_one_run_is_a_folder_of_runs_too(runs: Path):
    folder = Folder(runs / "one")
    assert folder.contents().runs == ["."]
    assert folder.is_run(".")
    assert folder.label(".") == "one"
    assert folder.read(join(".", "config.yaml"), 5) == b"train"


def test_a_run_that_begins_or_vanishes_is_seen(runs: Path):
    folder = Folder(runs)
    (runs / "new").mkdir()
    assert not folder.is_run("new")
    (runs / "new" / "config.yaml").write_text("")
    assert folder.contents().runs == ["new", "one"]
    os.remove(runs / "new" / "config.yaml")
    assert folder.contents().runs == ["one"]
    assert folder.modified("new/config.yaml") == 0
    assert folder.signature("new/config.yaml") == ()


@pytest.mark.parametrize(
    "name",
    [
        "../outside/secret/config.yaml",
        "one/../../outside/secret/config.yaml",
        "one/../one/config.yaml",
        "..",
        "",
        "one//config.yaml",
        "one/./config.yaml",
        "one\\config.yaml",
        "one/config.yaml\0",
        "one/config.yaml/",
        "%2e%2e/outside/secret/config.yaml",
        "\udcff/config.yaml",
        "one",
        "one/absent",
    ],
)
def test_nothing_but_a_file_in_the_folder_is_opened(runs: Path, name: str):
    folder = Folder(runs)
    with pytest.raises(FileNotFoundError):
        folder.open(name)
    assert folder.read("one/config.yaml", 100)  # the same folder can be read


def test_an_absolute_path_is_not_opened(runs: Path, outside: Path):
    with pytest.raises(FileNotFoundError):
        Folder(runs).open(str(outside / "config.yaml"))
    with pytest.raises(FileNotFoundError):
        Folder(runs).open(str(runs / "one" / "config.yaml"))


def test_links_that_lead_out_are_not_followed(runs: Path, outside: Path):
    (runs / "linked").symlink_to(outside, target_is_directory=True)
    (runs / "stolen.html").symlink_to(outside / "config.yaml")
    (runs / "one" / "metrics.jsonl").unlink()
    (runs / "one" / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    folder = Folder(runs)
    assert folder.contents() == Contents(["one"], [])
    for name in ("linked/config.yaml", "stolen.html", "one/metrics.jsonl"):
        with pytest.raises(FileNotFoundError):
            folder.open(name)
    assert not folder.is_run("linked")
    assert folder.files("linked") == []


def test_a_link_to_a_file_in_the_folder_is_followed(runs: Path):
    (runs / "one" / "latest.html").write_text("report")
    (runs / "latest.html").symlink_to(runs / "one" / "latest.html")
    assert Folder(runs).read("latest.html", 100) == b"report"


def test_a_folder_that_is_itself_a_link_is_read(runs: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(runs, target_is_directory=True)
    assert Folder(tmp_path / "link").contents().runs == ["one"]


def test_a_loop_of_links_ends(runs: Path):
    (runs / "loop").symlink_to(runs, target_is_directory=True)
    (runs / "self.html").symlink_to(runs / "self.html")
    assert Folder(runs).contents().runs == ["one"]
    with pytest.raises(FileNotFoundError):
        Folder(runs).open("self.html")


def test_a_named_pipe_does_not_block(runs: Path):
    os.mkfifo(runs / "pipe.html")
    with pytest.raises(FileNotFoundError, match="no regular file"):
        Folder(runs).open("pipe.html")


def test_names_that_are_not_unicode_are_left_out(runs: Path):
    os.mkdir(os.fsencode(runs) + b"/\xff")
    (runs / os.fsdecode(b"\xff") / "config.yaml").write_text("")
    assert Folder(runs).contents().runs == ["one"]


def test_at_most_so_many_bytes_are_read(runs: Path):
    assert Folder(runs).read("one/config.yaml", 4) == b"trai"
