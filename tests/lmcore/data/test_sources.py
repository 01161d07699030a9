"""Every source gives the documents that were put in, cut and split without loss, and names what cannot be read."""

import json
import os
import subprocess
import sys

import pytest

from lmcore.config import Config, DataConfig, TokenizerConfig
from lmcore.data.corpus import Corpus
from lmcore.data.prepare import prepare
from lmcore.data.sources import open_corpora
from lmcore.errors import UserError
from tests.lmcore.data.documents import EOT, documents, opened


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none*.txt", r"data.files: found no file for '.*none\*.txt', expected a path or pattern"),
        ("folder", r"data.files: found the folder '.*folder', expected files; use '.*folder/\*.txt'"),
        ("a.csv", r"a.csv: found the ending '.csv', expected .txt, .jsonl, .parquet, or one of these with .gz or .zst"),
        ("a.csv.gz", r"a.csv.gz: found the ending '.gz', expected .txt"),
    ],
)
def test_paths_that_cannot_be_read_are_named(tmp_path, pattern, message):
    (tmp_path / "folder").mkdir()
    for name in ("a.csv", "a.csv.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        opened(tmp_path, files=[pattern])


@pytest.mark.parametrize("content", ["", "\n\n", f" {EOT}\n\n{EOT}"])
def test_no_text_at_all_is_a_mistake(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(UserError, match=r"a.txt: found no text, expected at least one document"):
        opened(tmp_path, files=["a.txt"])


def test_patterns_are_sorted_and_valid_files_are_used_whole(tmp_path):
    for name in ("b1", "b10", "b2", "a", "v"):
        (tmp_path / f"{name}.txt").write_text(name)
    settings = {"files": ["b*.txt", "a.txt"], "valid_files": ["v.txt"]}
    assert opened(tmp_path, **settings) == (["b1", "b10", "b2", "a"], ["v"])
    assert opened(tmp_path, **settings, max_documents=2) == (["b1", "b10"], ["v"])


def test_wildcards_in_the_name_of_what_exists_are_only_a_name(tmp_path):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a1").mkdir()
    for name in ("a[1]/b*.txt", "a[1]/b2.txt", "a1/b3.txt", "valid.txt"):
        (tmp_path / name).write_text(name)
    valid = {"valid_files": ["valid.txt"]}
    assert opened(tmp_path, files=["a[1]/b*.txt"], **valid)[0] == ["a[1]/b*.txt"], "a file of that name"
    assert opened(tmp_path, files=["a[1]/?2.txt"], **valid)[0] == ["a[1]/b2.txt"], "a folder of that name"
    assert opened(tmp_path, files=["a?/b?.txt"], **valid)[0] == ["a1/b3.txt"]
    assert opened(tmp_path, files=["**/b?.txt"], **valid)[0] == ["a1/b3.txt", "a[1]/b*.txt", "a[1]/b2.txt"]


def test_identity_follows_the_text_and_nothing_else(tmp_path):
    def identity(**settings) -> str:
        corpora = open_corpora(DataConfig(**settings))
        return json.dumps([corpus.identity() for corpus in corpora])

    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one" + EOT + "two")
    files = {"files": [str(tmp_path / "x" / "a.txt")]}
    base = identity(**files)
    assert identity(files=[str(tmp_path / "y" / "a.txt")], text_field="other", stories=5) == base
    changes = [
        {"separator": "e"},
        {"max_documents": 1},
        {"valid_fraction": 0.4},
        {"valid_files": [str(tmp_path / "y" / "a.txt")]},
    ]
    changed = {identity(**files, **change) for change in changes}
    (tmp_path / "x" / "a.txt").write_text("one" + EOT + "twO")
    changed |= {identity(**files), identity(stories=5), identity(stories=6)}
    assert len(changed | {base}) == 8


def test_stories_need_nothing_and_repeat(tmp_path):
    kept, held = opened(tmp_path, stories=40)
    assert (len(kept), len(held)) == (38, 2)
    assert opened(tmp_path, stories=40) == (kept, held)
    assert all(len(text) > 100 for text in kept)


def test_corpora_describe_themselves(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    for settings in ({"stories": 7}, {"files": [str(tmp_path / "a.txt")]}):
        for corpus in open_corpora(DataConfig(**settings)):
            assert isinstance(corpus, Corpus)
            assert ("a.txt" in corpus.describe()) == ("files" in settings)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set folder as `datasets` reads it: five training and two test rows."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 5), ("test", 2)):
        rows = [json.dumps({"story": f"{split} {i}\r\n", "n": i}) for i in range(count)]
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(rows))
    return str(tmp_path / "set")


@pytest.mark.filterwarnings("ignore")  # of `datasets` itself
@pytest.mark.parametrize("streaming", [False, True])
class TestHub:
    def test_rows_are_documents(self, folder, streaming, tmp_path):
        settings = {"dataset": folder, "text_field": "story", "streaming": streaming}
        rows = [f"train {i}\n" for i in range(5)]
        assert opened(tmp_path, **settings) == (rows[:4], rows[4:])
        assert opened(tmp_path, **settings, valid_split="test") == (rows, ["test 0\n", "test 1\n"])
        assert opened(tmp_path, **settings, valid_split="test", max_documents=2)[0] == rows[:2]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"text_field": "text"}, r"data.text_field: found 'text', expected a field of strings among: story, n"),
            ({"text_field": "n"}, r"data.text_field: found 'n', expected a field of strings among: story, n"),
            ({"text_field": "story", "split": "nope"}, r"data.split: found 'nope'.*'train', 'test'"),
            ({"text_field": "story", "subset": "nope"}, r"data.subset: found 'nope'.*'default'"),
        ],
    )
    def test_wrong_names_are_answered_with_the_right_ones(self, folder, streaming, settings, message):
        with pytest.raises(UserError, match=message):
            documents(open_corpora(DataConfig(dataset=folder, streaming=streaming, **settings))[0])

    def test_identity_follows_the_content(self, folder, streaming, tmp_path):
        data = DataConfig(dataset=folder, text_field="story", streaming=streaming)
        before = open_corpora(data)[0].identity()
        assert open_corpora(data)[0].identity() == before
        (tmp_path / "set" / "train.jsonl").write_text('{"story": "new"}')
        assert open_corpora(data)[0].identity() != before

    def test_a_hub_out_of_reach_is_one_line_at_once(self, streaming, tmp_path):
        code = (
            "from lmcore.config import DataConfig; from lmcore.data.sources import open_corpora\n"
            f"open_corpora(DataConfig(dataset='nobody/nothing', streaming={streaming}))[0].identity()"
        )
        environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
        del environment["HF_HUB_OFFLINE"]
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        last = done.stderr.strip().splitlines()[-1]
        assert "'nobody/nothing' is not a local folder and cannot be downloaded: the Hugging Face Hub" in last
        assert "--data.files" in last


@pytest.mark.parametrize(
    ("missing", "settings"),
    [
        ("datasets", {"dataset": "a/b"}),
        ("pyarrow", {"files": ["a.parquet"]}),
        ("zstandard", {"files": ["a.txt.zst"]}),
    ],
)
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, missing, settings):
    monkeypatch.setitem(sys.modules, missing, None)
    for name in settings.get("files", []):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r'pip install "twinlm\[hub\]"'):
        opened(tmp_path, **settings)


def test_tiny_shakespeare_gives_the_usual_split(lm_data):
    path = lm_data / "tinyshakespeare" / "input.txt"
    text = path.read_text(encoding="utf-8")
    kept, held = (documents(c) for c in open_corpora(DataConfig(files=[str(path)], valid_fraction=0.1)))
    cut = int(len(text) * 0.9)
    assert (kept, held) == ([text[:cut]], [text[cut:]])


def test_a_file_is_read_once_and_validation_text_is_not_trained_on(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the text of {name}, long enough")
    (tmp_path / "soft.txt").symlink_to(tmp_path / "a.txt")
    os.link(tmp_path / "a.txt", tmp_path / "hard.txt")
    (tmp_path / "copy.txt").write_bytes((tmp_path / "a.txt").read_bytes())  # a file of its own, as far as anyone knows

    def refused(**settings) -> str:
        with pytest.raises(UserError) as caught:
            opened(tmp_path, **settings)
        return str(caught.value).replace(f"{tmp_path}/", "")

    expected = "expected each file once"
    assert refused(files=["a.txt", "b.txt", "a.txt"]) == f"data.files: found a.txt twice, {expected}"
    assert refused(files=["[ab].txt", "b.txt"]) == f"data.files: found b.txt twice, {expected}"
    for link in ("soft", "hard"):
        twice = f"found {link}.txt, which is the same file as a.txt, {expected}"
        assert refused(files=["a.txt", f"{link}.txt"]) == f"data.files: {twice}"
        assert refused(files=["b.txt"], valid_files=["a.txt", f"{link}.txt"]) == f"data.valid_files: {twice}"
        held = f"found {link}.txt, which is a.txt of data.files, expected text that is not trained on"
        assert refused(files=["[ab].txt"], valid_files=[f"{link}.txt"]) == f"data.valid_files: {held}"
    assert "found b.txt, which is b.txt of data.files" in refused(files=["[ab].txt"], valid_files=["b.txt"])
    assert opened(tmp_path, files=["a.txt", "copy.txt"], valid_files=["b.txt"])[1] == ["the text of b, long enough"]


@pytest.mark.parametrize("name", ["./nosuch", "../nosuch", "/no/such", "~/nosuch", "a/b/c", "nosuch/", ""])
def test_a_folder_that_is_not_there_is_named_and_not_sought_on_the_hub(name):
    with pytest.raises(UserError, match=r"^data\.dataset: found no folder '") as caught:
        open_corpora(DataConfig(dataset=name))
    assert repr(name) in str(caught.value)


def test_a_file_as_data_set_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"^data\.dataset: found the file .* set --data\.files"):
        open_corpora(DataConfig(dataset=str(tmp_path / "a.txt")))


def test_a_file_may_have_the_longest_name_there_is(tmp_path):
    path = tmp_path / f"{'n' * 251}.txt"
    path.write_text("a text of some length\n" * 20)
    config = Config(
        data=DataConfig(files=[str(path)], dir=str(tmp_path / "data")), tokenizer=TokenizerConfig(kind="bytes")
    )
    assert prepare(config, lambda line: None).folder.name.startswith("n" * 64 + "-")
