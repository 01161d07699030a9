"""Prepared text is whole or is not there, is reused only for the same text and settings, and takes little memory."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lmcore import config as configs
from lmcore import locks
from lmcore.config import Config, DataConfig, TokenizerConfig
from lmcore.data import encoding, readers
from lmcore.data import prepare as preparing
from lmcore.data.batches import HEADER
from lmcore.data.prepare import main, prepare
from lmcore.data.tokenizer import Tokenizer, train
from lmcore.errors import UserError

EOT = "<|endoftext|>"
DOCUMENTS = ["one é", "two\n\nlines", "three", f"{'long ' * 30}"]


@pytest.fixture
def text(tmp_path):
    """A folder with four documents to train on and one to validate on."""
    (tmp_path / "train.txt").write_text(EOT.join(DOCUMENTS), encoding="utf-8")
    (tmp_path / "valid.txt").write_text("two ones 字é", encoding="utf-8")
    return tmp_path


def config(folder, tokenizer: dict | None = None, **data) -> Config:
    base = {
        "files": [str(folder / "train.txt")],
        "valid_files": [str(folder / "valid.txt")],
        "dir": str(folder / "data"),
    }
    return Config(data=DataConfig(**(base | data)), tokenizer=TokenizerConfig(**(tokenizer or {"kind": "bytes"})))


def quiet(line: str) -> None:
    """Report to nobody."""


def names(folder) -> set[str]:
    return {path.name for path in (folder / "data").iterdir()} - {".lock"}


@pytest.mark.parametrize("batch", [1, 20, 1 << 21])
@pytest.mark.parametrize("piece", [7, 1 << 18])
def test_token_files_hold_each_document_and_its_end(text, monkeypatch, batch, piece):
    monkeypatch.setattr(encoding, "BATCH", batch)
    monkeypatch.setattr(readers, "PIECE", piece)
    monkeypatch.setattr(readers, "SEARCH", 3)
    prepared = prepare(config(text), quiet)
    expected = b"".join(document.encode() + b"\0" for document in DOCUMENTS)
    found = np.where(prepared.train.ids == prepared.tokenizer.eot_id, 0, prepared.train.ids)
    assert bytes(found.tolist()) == expected
    assert prepared.train.ids.dtype == np.uint16
    assert (prepared.train.documents, prepared.valid.documents) == (4, 1)
    assert prepared.train.bytes == len(expected) - 4
    assert prepared.train.bytes_per_token == (len(expected) - 4) / len(expected)


def test_a_large_vocabulary_takes_four_bytes_a_token(text):
    plain = json.loads(train(TokenizerConfig(kind="bytes"), []).inner.to_str())
    plain["added_tokens"][0]["id"] = plain["model"]["vocab"][EOT] = 70000
    plain["post_processor"] = None
    (text / "large.json").write_text(json.dumps(plain))
    prepared = prepare(config(text, {"kind": "file", "file": str(text / "large.json")}), quiet)
    assert prepared.tokenizer.vocab_size == 70001
    assert prepared.train.ids.dtype == np.uint32
    assert prepared.train.ids[-1] == 70000


def test_unseen_characters_are_counted_and_reported(text):
    lines: list[str] = []
    prepared = prepare(config(text, {"kind": "chars"}), lines.append)
    assert (prepared.train.unknown, prepared.valid.unknown) == (0, 1)
    assert [", 1 of them unknown to the vocabulary" in line for line in lines[-2:]] == [False, True]


def test_the_same_text_and_settings_are_found_again_and_others_are_not(text):
    first = prepare(config(text), quiet)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert sorted(path.name for path in before) == [HEADER, "tokenizer.json", "train.bin", "valid.bin"]
    lines: list[str] = []
    again = prepare(config(text, text_field="unused"), lines.append)
    assert (again.folder, lines) == (first.folder, [])
    assert {path: path.stat().st_mtime_ns for path in again.folder.iterdir()} == before
    assert again.tokenizer.digest() == first.tokenizer.digest()

    folders = {first.folder}
    for changed in (
        config(text, separator="o"),
        config(text, max_documents=2),
        config(text, valid_files=[]),
        config(text, valid_files=[], valid_fraction=0.3),
        config(text, {"kind": "chars"}),
        config(text, {"kind": "bytes", "special_tokens": ["<pad>"]}),
        config(text, {"kind": "bytes", "eot_token": "<end>"}),
        config(text, {"kind": "bpe", "vocab_size": 257}),
        config(text, {"kind": "bpe", "vocab_size": 260}),
        config(text, {"kind": "bpe", "vocab_size": 260, "train_bytes": 3}),
        config(text, {"kind": "file", "file": str(first.folder / "tokenizer.json")}),
    ):
        folders.add(prepare(changed, quiet).folder)
    with (text / "valid.txt").open("a") as file:
        file.write("!")
    folders.add(prepare(config(text), quiet).folder)
    assert len(folders) == 13
    assert names(text) == {folder.name for folder in folders}


@pytest.mark.parametrize("kind", ["llama", "roberta", None])
def test_a_run_goes_on_with_its_own_text_and_no_other(text, foreign_tokenizers, kind):
    """Whatever the tokenizer, such as one that puts a token before each document."""
    own = {"kind": "file", "file": str(foreign_tokenizers[kind]), "eot_token": "</s>"} if kind else {"kind": "bytes"}
    run = prepare(config(text, own), quiet).folder
    assert prepare(config(text, own), quiet, run_dir=run).folder == run
    with pytest.raises(UserError, match="text has changed since"):
        prepare(config(text, own, max_documents=2), quiet, run_dir=run)


def test_every_setting_of_data_and_tokenizer_is_read_or_only_says_where():
    """A field added to these groups must be weighed here: does it change the tokens?"""
    data = {"files", "valid_files", "separator", "max_documents", "valid_fraction", "dir", "text_field", "stories"}
    data |= {"dataset", "subset", "split", "valid_split", "streaming"}
    data.add("document_mask")  # by end-of-text tokens, when batches are drawn
    data |= {"format", "messages_field", "chat_template"}  # see test_conversations
    assert {field.name for field in dataclasses.fields(configs.DataConfig)} == data
    tokenizer = {"kind", "vocab_size", "file", "eot_token", "special_tokens", "train_bytes"}
    tokenizer.add("stop_tokens")  # ends a generated text; no token of a document changes
    assert {field.name for field in dataclasses.fields(configs.TokenizerConfig)} == tokenizer


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train.bin", lambda content: content[:-2]),
        ("valid.bin", lambda content: b""),
        (HEADER, lambda content: content[: len(content) // 2]),
        ("tokenizer.json", lambda content: content[: len(content) // 2]),
        ("tokenizer.json", lambda content: content.replace(b'"a": 97', b'"a": 98').replace(b'"b": 98', b'"b": 97')),
    ],
)
def test_a_damaged_folder_is_named(text, name, damage):
    path = prepare(config(text), quiet).folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{name}: "):
        prepare(config(text), quiet)


PREPARE = """
import sys
from pathlib import Path
from lmcore.config import Config, DataConfig, TokenizerConfig
from lmcore.data.prepare import prepare
data = DataConfig(files=[sys.argv[1]], dir=sys.argv[2])
print(prepare(Config(data=data, tokenizer=TokenizerConfig(kind="bytes")), lambda line: None).folder)
"""


def start(folder, *, before: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", before + PREPARE, str(folder / "much.txt"), str(folder / "data")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def much(tmp_path):
    """A folder with enough text that preparing it can be caught in the middle."""
    (tmp_path / "much.txt").write_text(EOT.join(f"{i} was here. " * 50 for i in range(20000)))
    return tmp_path


def test_a_killed_process_leaves_nothing_that_is_believed(much):
    process = start(much)
    while not (half := [path for path in much.glob("data/.making-*/train.bin") if path.stat().st_size > 0]):
        assert process.poll() is None, "it was to be caught in the middle"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    process.communicate()
    left = half[0].stat().st_size
    assert names(much) == {half[0].parent.name}

    files = {"files": [str(much / "much.txt")], "valid_files": []}
    prepared = prepare(config(much, **files), quiet)
    assert names(much) == {prepared.folder.name}
    assert prepared.train.ids.nbytes > left > 0, "it was killed before its end"
    assert prepared.train.documents == 19000


def test_two_processes_at_once_both_succeed(much):
    both = [start(much), start(much)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(names(much)) == 1


def test_without_a_lock_the_second_process_yields_to_the_first(text, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    rename, renamed = preparing._rename, []

    def late(making, folder):
        if not renamed:  # another process gets ahead at the last moment
            renamed.append(folder)
            prepare(config(text), quiet)
        rename(making, folder)

    monkeypatch.setattr(preparing, "_rename", late)
    assert prepare(config(text), quiet).folder == renamed[0]
    assert names(text) == {renamed[0].name}


def test_a_full_disk_is_one_line_and_leaves_nothing(much):
    pytest.importorskip("resource")
    process = start(much, before="import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n")
    error = process.communicate(timeout=120)[1].strip().splitlines()[-1]
    assert "UserError: data.dir: " in error
    assert "cannot be written to ([Errno 27] File too large); free some space or set data.dir" in error
    assert names(much) == set()


def test_a_folder_that_cannot_be_made_is_one_line(text):
    with pytest.raises(UserError, match=r"data.dir: .*train.txt is a file, expected a folder; name another"):
        prepare(config(text, dir=str(text / "train.txt" / "data")), quiet)


def test_a_mistake_in_the_text_leaves_nothing(text):
    with (text / "train.txt").open("ab") as file:
        file.write(b"\xff")
    with pytest.raises(UserError, match=r"train.txt: found invalid UTF-8"):
        prepare(config(text), quiet)
    assert names(text) == set()


@pytest.mark.parametrize("name", ["train.txt", "valid.txt"])
def test_a_split_without_text_is_named(text, name):
    (text / name).write_text("\n")
    with pytest.raises(UserError, match=rf"{name}: found no text"):
        prepare(config(text), quiet)
    assert names(text) == set()


def test_the_command_prints_folder_and_counts(text, capsys, monkeypatch):
    monkeypatch.chdir(text)
    arguments = ["--tokenizer.kind", "bytes", "--data.files", "train.txt", "--data.valid_files", "valid.txt"]
    assert main(arguments) == 0
    first = capsys.readouterr().out.splitlines()
    assert main(arguments) == 0
    again = capsys.readouterr().out.splitlines()
    assert again == first[-3:]
    assert len(first) == 4, "what it prepares, and each line once"
    assert again[2].startswith("data/train-")
    assert again[0] == "train: 4 documents, 175 tokens, 171 bytes, 0.977 bytes per token"
    assert main([*arguments, "--data.files", "absent.txt"]) == 2
    assert capsys.readouterr().err.startswith("error: data.files: found no file for 'absent.txt'")


def test_the_quickstart_text_is_ready_in_one_call(tmp_path):
    data = DataConfig(stories=200, dir=str(tmp_path))
    prepared = prepare(Config(data=data, tokenizer=TokenizerConfig(vocab_size=400)), quiet)
    assert prepared.folder.name.startswith("stories-")
    assert (prepared.train.documents, prepared.valid.documents) == (190, 10)
    first = prepared.train.ids[: int(np.argmax(prepared.train.ids == prepared.tokenizer.eot_id))]
    from lmcore.data.stories import stories

    assert prepared.tokenizer.decode(first.tolist()) == next(stories(1))
    assert Tokenizer.load(prepared.folder / "tokenizer.json").digest() == prepared.tokenizer.digest()


def test_real_text_comes_back_from_the_token_files(lm_data, tmp_path):
    path = lm_data / "tinystories" / "valid.txt"
    (tmp_path / "train.txt").write_bytes(path.read_bytes())
    data = DataConfig(files=[str(tmp_path / "train.txt")], valid_files=[str(path)], dir=str(tmp_path))
    prepared = prepare(Config(data=data, tokenizer=TokenizerConfig(vocab_size=1000)), quiet)
    documents = [d.strip("\n") for d in path.read_text(encoding="utf-8").split(EOT) if d.strip()]
    ids = prepared.valid.ids.astype(np.int64)
    ends = np.flatnonzero(ids == prepared.tokenizer.eot_id)
    assert len(ends) == prepared.valid.documents == len(documents)
    begin = 0
    for document, end in zip(documents, ends):
        assert prepared.tokenizer.decode(ids[begin:end].tolist()) == document
        begin = end + 1
    assert prepared.valid.bytes == sum(len(d.encode()) for d in documents)
    assert 3 < prepared.valid.bytes_per_token < 5


MEMORY = """
import sys
from lmcore.config import Config, DataConfig, TokenizerConfig
from lmcore.data.prepare import prepare
from lmcore.hardware import resident  # getrusage counts what the process that started this one held
tokenizer = TokenizerConfig(vocab_size=400, train_bytes=2_000_000)
for name in sys.argv[2:]:
    prepare(Config(data=DataConfig(files=[name], dir=sys.argv[1]), tokenizer=tokenizer), lambda line: None)
    print(resident("VmHWM") >> 20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("separator", [EOT, ""])
def test_memory_does_not_grow_with_the_text(tmp_path, separator):
    """Peak memory after 13 MB and after 130 MB of text, as many documents and as one."""
    paths = [tmp_path / "small.txt", tmp_path / "large.txt"]
    for path, count in zip(paths, (15_000, 150_000)):
        with path.open("w") as file:
            file.writelines(f"The {i}. cat sat on mat {i * i % 977}.\n" * 30 + separator for i in range(count))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "data"), *map(str, paths)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert paths[1].stat().st_size > 125e6
    assert large < 700, "MB"
    assert large < small + 150, "MB: not proportional to the text"
