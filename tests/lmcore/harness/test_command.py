"""`harness`: a table and a JSON file of results, and one line for each mistake."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxlm.harness
import torchlm.harness
import torchlm.train

TWINS = {"jax": jaxlm.harness.main, "torch": torchlm.harness.main}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of torchlm, and a folder with a task."""
    folder = tmp_path_factory.mktemp("room")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 30)
    shape = ["--model.dim=8", "--model.n_layers=1", "--model.n_heads=2", "--model.max_seq_len=16"]
    words = [*shape, "--train.steps=1", "--sample.max_tokens=1", "--tokenizer.kind=bytes", "--train.batch_size=1"]
    text = [f"--data.files={folder / 'text.txt'}", f"--data.dir={folder / 'data'}"]
    assert torchlm.train.main([f"--run_dir={folder / 'run'}", *text, *words]) == 0
    (folder / "tasks").mkdir()
    (folder / "rows.jsonl").write_text('{"text": "the cat sat"}\n{"text": "on the mat"}\n')
    (folder / "tasks" / "reading.yaml").write_text(
        f"task: reading\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    return folder


def test_the_results_are_printed_and_written(room: Path, capsys: Any):
    output = room / "new" / "results.json"
    words = [str(room / "run"), "--tasks", "reading", "--include_path", str(room / "tasks"), "--output", str(output)]
    assert TWINS["torch"]([*words, "--limit=1", "--log_samples"]) == 0
    printed = capsys.readouterr().out
    assert "bits_per_byte" in printed
    found = json.loads(output.read_text())
    assert 7 < found["results"]["reading"]["bits_per_byte,none"] < 9, "a bit more than 8, before it has learnt anything"
    assert found["n-samples"]["reading"] == {"original": 2, "effective": 1}
    assert len(found["samples"]["reading"]) == 1
    assert found["config"]["model"].startswith("torchlm ")


@pytest.mark.parametrize(
    ("framework", "words", "message"),
    [
        ("jax", ["--tasks", "reading"], "is a torch run, expected jax; convert it first"),
        ("torch", [], "error: "),
        ("torch", ["--tasks", "reading", "--batch_size=0"], "--batch_size: found 0, expected at least 1"),
        ("torch", ["--tasks", "reading", "--include_path=nowhere"], "--include_path: found no folder 'nowhere'"),
        ("torch", ["--tasks", "reading", "--output=text.txt/x.json"], "--output: "),
    ],
)
def test_mistakes_are_one_line(
    framework: str, words: list[str], message: str, room: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(room)
    capsys.readouterr()
    assert TWINS[framework]([str(room / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_without_lm_eval_the_extra_is_named(room: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    capsys.readouterr()
    assert TWINS["torch"]([str(room / "run"), "--tasks", "reading"]) == 2
    assert capsys.readouterr().err == (
        'error: lm_eval is not installed, which this needs; run: pip install "twinlm[eval]"\n'
    )
