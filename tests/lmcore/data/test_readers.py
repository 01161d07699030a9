"""A file gives the documents that were put in, cut without loss, and names what cannot be read."""

import gzip
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.config import TokenizerConfig
from lmcore.data import readers
from lmcore.data.readers import read_documents
from lmcore.data.tokenizer import train
from lmcore.errors import UserError
from tests.lmcore.data.documents import EOT, documents

DOCUMENTS = ["Once.\n\nA tail.", "zwei  ", "três 🧑‍🚀", "<|endof", "5"]


def read(path, separator=EOT) -> list[str]:
    return documents(read_documents(path, separator=separator, text_field="text"))


def packed(path, data: bytes):
    """Write data to path, packed as its name says."""
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        half = len(data) // 2  # two frames, as parallel packers write them
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    path.write_bytes(data)
    return path


def parquet(path, rows: list[dict]):
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_text_is_split_at_the_separator_whatever_the_newlines(tmp_path, packing):
    text = f"\ufeff{DOCUMENTS[0]}\r\n{EOT}\r{DOCUMENTS[1]}{EOT}\n\n{EOT}  \n{EOT}" + f"\r\n{EOT}\r\n".join(
        DOCUMENTS[2:]
    )
    path = packed(tmp_path / f"a.txt{packing}", (text + "\r\n").encode())
    assert read(path) == DOCUMENTS


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_jsonl_and_parquet_give_the_same_documents(tmp_path, packing):
    rows = [{"text": text, "n": 1} for text in [*DOCUMENTS[:2], "", " \n", *DOCUMENTS[2:]]]
    lines = "\ufeff" + "\n\n".join(map(json.dumps, rows))
    assert read(packed(tmp_path / f"a.jsonl{packing}", lines.encode())) == DOCUMENTS
    plain = parquet(tmp_path / "a.parquet", [*rows, {"text": None, "n": 0}])
    path = packed(tmp_path / f"b.parquet{packing}", plain.read_bytes())
    assert read(path) == DOCUMENTS


@given(
    st.lists(st.sampled_from(["\r", "\n", "a", "é", "🧑", "<|end", "oftext|>", EOT, " ", "bb c"])), st.integers(1, 9)
)
def test_where_reads_end_makes_no_difference(tmp_path_factory, parts, size):
    path = tmp_path_factory.mktemp("reads") / "a.txt"
    path.write_bytes("".join(parts).encode())
    whole = read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "READ_BYTES", size)
        assert read(path) == whole


@pytest.mark.parametrize("separator", ["", EOT])
def test_a_file_without_separator_is_one_document_as_it_is(tmp_path, separator):
    (tmp_path / "a.txt").write_bytes(b"\n one\n\ntwo\r\n")
    assert read(tmp_path / "a.txt", separator) == ["\n one\n\ntwo\n"]


def test_pieces_are_bounded_and_cut_where_tokens_do_not_change(monkeypatch, tmp_path):
    monkeypatch.setattr(readers, "READ_BYTES", 64)
    monkeypatch.setattr(readers, "PIECE", 40)
    monkeypatch.setattr(readers, "SEARCH", 30)
    text = "It was  late.\nThe cat's 12 hats, \n\n and   (all) the rest!\nWere wet...\n" * 20
    (tmp_path / "a.txt").write_text(text + EOT + text)
    first, second = text.rstrip("\n"), text.removesuffix("\n")
    pieces = list(read_documents(tmp_path / "a.txt", separator=EOT, text_field=""))
    assert documents(pieces) == [first, second]
    assert len(pieces) > 40
    assert max(len(p.text) for p in pieces) <= 40 + 30 + len(EOT)

    tokenizer = train(TokenizerConfig(vocab_size=400), [text])

    def ids(texts) -> list[int]:
        return list(itertools.chain.from_iterable(map(tokenizer.encode, texts)))

    whole = ids([first, second])
    assert ids(p.text for p in pieces) == whole
    assert ids(p.text for p in readers.document(first, "")) == ids([first])
    assert ids(first[i : i + 50] for i in range(0, len(first), 50)) != ids([first]), "other cuts do change tokens"


def test_text_that_offers_no_place_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 10)
    monkeypatch.setattr(readers, "SEARCH", 5)
    pieces = list(readers.document("字" * 33, ""))
    assert [len(p.text) for p in pieces] == [10, 10, 13]
    assert [p.ends for p in pieces] == [False, False, True]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82"])
def test_invalid_utf8_names_file_and_byte(tmp_path, monkeypatch, name, bad):
    monkeypatch.setattr(readers, "READ_BYTES", 5)
    line = b'{"text": "caf\xc3\xa9"}\n'
    path = packed(tmp_path / name, line + b"abc" + bad)
    with pytest.raises(UserError, match=rf"{name}: found invalid UTF-8 at byte {len(line) + 3}, expected"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"a.jsonl, line 3: found invalid JSON"),
        ("[1]", r"a.jsonl, line 3: found list, expected a JSON object"),
        ('{"body": "a", "id": 1}', r"a.jsonl, line 3: found fields body, id, expected 'text'; set data.text_field"),
        ('{"text": 7}', r"a.jsonl, line 3: found int in 'text', expected text"),
        ('{"text": "a", "text": "b"}', r"a.jsonl, line 3: found invalid JSON \(duplicate key 'text' in one object\)"),
        ('{"text": "a", "more": ' + "[" * 99 + "]" * 99 + "}", r"a.jsonl, line 3: .* nested more than 64 deep"),
        (r'{"text": "a\ud800"}', r"a.jsonl, line 3: found half a surrogate pair \(U\+D800 at character 1\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n' + line)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf16_without_a_mark_is_not_read_as_text_with_zeros(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Once upon a time.".encode(encoding))
    with pytest.raises(UserError, match=r"a.txt: found UTF-(16|32), expected UTF-8 text"):
        read(tmp_path / "a.txt")
    for text in ("\0", "\0" * 99, "a\0b\0\0c\0d\0e\0", "\0a\0\0" + "\0" * 99, "a\0", "a" * 99):
        (tmp_path / "a.txt").write_bytes(text.encode())
        assert read(tmp_path / "a.txt") == [text], "zeros are characters, too"


def test_a_line_of_json_that_unpacks_to_too_much_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_JSON_BYTES", 1000)
    longest = b'{"text": "%s"}' % (b"a" * 988)
    assert read(packed(tmp_path / "a.jsonl.gz", longest)) == ["a" * 988]
    for line in (b'{"text": "%s"}' % (b"a" * 990), b"\0" * 10**6):
        with pytest.raises(UserError, match=r"a.jsonl.gz, line 1: found more than 1,000 bytes"):
            read(packed(tmp_path / "a.jsonl.gz", line))


def test_a_packed_file_that_is_no_parquet_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(readers.shutil, "copyfileobj", lambda *_: pytest.fail("was unpacked"))
    with pytest.raises(UserError, match=r"a.parquet.gz: cannot be read as Parquet \(found b'zero', expected b'PAR1'"):
        read(packed(tmp_path / "a.parquet.gz", b"zeros" * 1000))


def test_rows_that_share_a_long_text_are_read_a_few_at_a_time(tmp_path):
    path = parquet(tmp_path / "a.parquet", [{"text": "word " * 20_000}] * 500)
    assert path.stat().st_size < 100_000
    arrow = pytest.importorskip("pyarrow")
    before, most, count = arrow.total_allocated_bytes(), 0, 0
    for piece in read_documents(path, separator="", text_field="text"):
        count += piece.ends
        most = max(most, arrow.total_allocated_bytes() - before)
    assert count == 500
    assert most < 20e6, "bytes; all at once are 50 MB"


def test_damaged_and_wrong_files_are_named(tmp_path):
    parquet(tmp_path / "a.parquet", [{"body": "x", "id": 1}])
    with pytest.raises(UserError, match=r"a.parquet: found fields body, id, expected 'text'"):
        read(tmp_path / "a.parquet")
    for name in ("b.parquet", "b.txt.gz", "b.txt.zst"):
        (tmp_path / name).write_bytes(b"not what the name says")
        with pytest.raises(UserError, match=rf"{name}: cannot be read"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.zst"])
def test_a_packed_file_that_was_cut_short_is_not_taken_for_a_whole_one(tmp_path, name):
    lines = b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(3000))
    whole = packed(tmp_path / name, lines).read_bytes()
    assert read(tmp_path / name)
    for length in (len(whole) - 1, len(whole) - 9, len(whole) // 3):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{name}: cannot be read \(Compressed file ended before"):
            read(tmp_path / name)


def test_what_follows_the_frames_of_a_zst_is_an_error(tmp_path):
    path = packed(tmp_path / "a.txt.zst", b"text " * 1000)
    path.write_bytes(path.read_bytes() + b"rest")
    with pytest.raises(UserError, match=r"a.txt.zst: cannot be read"):
        read(path)


def test_real_stories_are_all_there(lm_data):
    path = lm_data / "tinystories" / "valid.txt"
    found = documents(read_documents(path, separator=EOT, text_field=""))
    expected = [text.strip("\n") for text in path.read_text(encoding="utf-8").split(EOT)]
    assert found == [text for text in expected if text.strip()]
    assert len(found) > 1000
