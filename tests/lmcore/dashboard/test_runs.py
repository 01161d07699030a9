import json
from pathlib import Path

import pytest

from lmcore import config as configs
from lmcore.config import Config, OptimConfig
from lmcore.dashboard import runs as module
from lmcore.dashboard.folder import Folder
from lmcore.dashboard.runs import (
    config_differences,
    config_of,
    describe_report,
    describe_run,
    read_sample,
    samples_of,
)
from tests.lmcore.dashboard.run_folders import write_run


def test_a_run_is_described_from_its_files(tmp_path: Path):
    write_run(tmp_path / "one")
    record = {"framework": "abc", "device": "2 × cpu", "parameters": 1234, "config": {"train.steps": 70}}
    (tmp_path / "one" / "run.json").write_text(json.dumps(record))
    found = describe_run(Folder(tmp_path), "one")
    assert found.pop("modified") == (tmp_path / "one" / "metrics.jsonl").stat().st_mtime
    assert found == {
        "name": "one",
        "label": "one",
        "framework": "abc",
        "device": "2 × cpu",
        "parameters": 1234,
        "steps": 70,
        "step": 100,
        "loss": 4.0,
        "metrics": ["tokens", "loss", "tokens_per_second"],
    }


@pytest.mark.parametrize("record", ["", "[]", '{"framework": ["x"], "parameters": "many", "config": 3}', "{" * 99_999])
def test_a_run_without_a_readable_record_is_described_from_the_rest(tmp_path: Path, record: str):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "run.json").write_text(record)
    found = describe_run(Folder(tmp_path), "one")
    assert (found["framework"], found["parameters"], found["steps"], found["step"]) == ("", None, 100, 100)


def test_a_run_that_has_just_begun_has_no_rows(tmp_path: Path):
    (write_run(tmp_path / "one") / "metrics.jsonl").unlink()
    found = describe_run(Folder(tmp_path), "one")
    assert (found["step"], found["loss"], found["metrics"]) == (0, None, [])
    assert found["modified"] > 0


def test_a_loss_that_is_not_finite_is_none(tmp_path: Path):
    write_run(tmp_path / "one", '{"step": 1, "loss": null}\n')
    assert describe_run(Folder(tmp_path), "one")["loss"] is None


def test_samples_are_in_the_order_of_steps(tmp_path: Path):
    write_run(tmp_path / "one", sample_000020="b", sample_000100="c", sample_1000000="d", notes="no step")
    found = samples_of(Folder(tmp_path), "one")
    assert [sample["step"] for sample in found] == [20, 100, 1_000_000]
    assert read_sample(Folder(tmp_path), "one", found[1]["file"]) == "c"
    assert samples_of(Folder(tmp_path), "absent") == []


@pytest.mark.parametrize("file", ["../config.yaml", "../../two/samples/sample-1.txt", "notes.txt", "sample-2.txt", ""])
def test_only_samples_of_the_run_are_read(tmp_path: Path, file: str):
    write_run(tmp_path / "one", sample_1="x", notes="private")
    write_run(tmp_path / "two", sample_1="x")
    with pytest.raises(FileNotFoundError):
        read_sample(Folder(tmp_path), "one", file)


def test_a_long_or_damaged_sample_is_shown_as_far_as_it_goes(tmp_path: Path):
    write_run(tmp_path / "one", sample_1="x" * 200_000)
    assert read_sample(Folder(tmp_path), "one", "sample-1.txt") == "x" * module.MAX_SAMPLE + "…"
    (tmp_path / "one" / "samples" / "sample-1.txt").write_bytes(b"a\xffb")
    assert read_sample(Folder(tmp_path), "one", "sample-1.txt") == "a\N{REPLACEMENT CHARACTER}b"


def test_only_fields_that_differ_are_compared(tmp_path: Path):
    for name, lr in (("one", 0.001), ("two", 0.002)):
        write_run(tmp_path / name)
        config = Config(run_dir=name, optim=OptimConfig(lr=lr))
        configs.save(config, tmp_path / name / "config.yaml")
    found = config_differences(Folder(tmp_path), ["one", "two"])
    assert found["fields"] == [{"field": "optim.lr", "values": ["0.001", "0.002"]}]
    assert (found["runs"], found["problems"]) == (["one", "two"], [])
    assert found["same"] > 50


def test_fields_of_other_versions_are_shown_as_they_are_and_last(tmp_path: Path):
    old = "old: {deep: {er: 1}}\nempty: {}\nlist: [a, 1]\ntrain: {steps: 1}\n"
    write_run(tmp_path / "one", config=old)
    write_run(tmp_path / "two", config="new: null\nlist: [a, 1]\ntrain: {steps: 2}\n")
    found = config_differences(Folder(tmp_path), ["one", "two"])
    assert [(row["field"], row["values"]) for row in found["fields"]] == [
        ("train.steps", ["1", "2"]),
        ("old.deep.er", ["1", "—"]),
        ("empty", ["{}", "—"]),
        ("new", ["—", "null"]),
    ]
    assert found["same"] == 1


def test_a_string_is_told_from_a_number(tmp_path: Path):
    write_run(tmp_path / "one", config="a: '1'\nb: x\nc: ''\n")
    write_run(tmp_path / "two", config="a: 1\nb: y\nc: null\n")
    rows = config_differences(Folder(tmp_path), ["one", "two"])["fields"]
    assert [row["values"] for row in rows] == [['"1"', "1"], ["x", "y"], ['""', "null"]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: [", "config.yaml cannot be read as YAML"),
        (b"\xff\xfe", "config.yaml cannot be read as YAML"),
        (b"a: !!python/object:os.system x", "config.yaml cannot be read as YAML"),
        (b"[" * 10_000, "config.yaml cannot be read as YAML"),
        (b"a: 1\n" + b"#" * (5 << 20), "config.yaml is too large"),
        (None, "no config.yaml"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, problem: str):
    write_run(tmp_path / "one")
    path = write_run(tmp_path / "two") / "config.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    assert config_of(Folder(tmp_path), "two") == ({}, problem)
    found = config_differences(Folder(tmp_path), ["one", "two"])
    assert (found["runs"], found["problems"]) == (["one"], [f"two: {problem}"])


@pytest.mark.parametrize("content", ["", "- a\n", "text\n"])
def test_a_config_that_is_no_mapping_has_no_fields(tmp_path: Path, content: str):
    write_run(tmp_path / "one", config=content)
    assert config_of(Folder(tmp_path), "one") == ({}, "")


def test_a_report_is_known_by_its_title(tmp_path: Path):
    (tmp_path / "a.html").write_text("<html><title> same &lt;model&gt;\n</title>")
    (tmp_path / "b.html").write_text("<p>no title")
    folder = Folder(tmp_path)
    assert describe_report(folder, "a.html")["title"] == "same <model>"
    assert describe_report(folder, "b.html") == {
        "path": "b.html",
        "title": "b.html",
        "modified": (tmp_path / "b.html").stat().st_mtime,
    }
    assert describe_report(folder, "gone.html") == {"path": "gone.html", "title": "gone.html", "modified": 0}
