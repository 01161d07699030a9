"""A file is replaced as a whole, and a checksum sees one flipped bit."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from lmcore.errors import UserError
from lmcore.files import (
    SUMS,
    Damaged,
    check_files,
    check_seal,
    check_stamp,
    check_sums,
    checksums,
    file_digest,
    flush_folder,
    replace_file,
    seal,
    stamp,
    write_sums,
)
from tests.lmcore.run.folders import limited


def flipped(content: bytes, bit: int) -> bytes:
    """The same but for one bit."""
    return content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]


def test_checksums_are_sha256_of_every_file_below(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"text")
    (tmp_path / "[c]").write_bytes(b"")
    assert checksums(tmp_path) == {n: hashlib.sha256(t).hexdigest() for n, t in (("[c]", b""), ("a/b", b"text"))}
    assert file_digest(tmp_path / "a" / "b") == hashlib.sha256(b"text").hexdigest()
    with pytest.raises(UserError, match="none: cannot be read"):
        file_digest(tmp_path / "none")


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(content := b"some text")
    sums = checksums(tmp_path)
    check_files(tmp_path, sums)
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(Damaged, match=r"/file: is damaged"):
            check_files(tmp_path, sums)
    path.write_bytes(content[:-1])
    with pytest.raises(Damaged, match=r"/file: is damaged"):
        check_files(tmp_path, sums)
    path.unlink()
    with pytest.raises(Damaged, match=r"/file: is missing"):
        check_files(tmp_path, sums)


def test_a_sealed_file_says_itself_whether_it_has_changed(tmp_path: Path):
    sealed = seal({"step": 3, "loss": float("nan"), "files": {"é": "x"}})
    content = json.dumps(sealed).encode()
    assert check_seal(tmp_path, json.loads(content), mark="files")
    assert not check_seal(tmp_path, {"step": 3}, mark="files"), "of an older version"
    accepted = 0
    for bit in range(8 * len(content)):
        try:
            fields = json.loads(flipped(content, bit))
        except ValueError:
            continue
        if fields == sealed or (fields.keys() == sealed.keys() and repr(fields) == repr(sealed)):
            continue
        with pytest.raises(Damaged, match="is damaged"):
            accepted += check_seal(tmp_path, fields, mark="files")
    assert accepted == 0


def test_a_stamped_text_is_refused_when_cut_or_changed_and_taken_without_its_stamp(tmp_path: Path):
    stamped = stamp("lr: 1\nsteps: 2\n")
    assert check_stamp(tmp_path, stamped)
    for wrong in (
        stamped.replace("steps: 2", "steps: 3"),
        stamped[:-1],
        stamped[:100],
        stamped.replace("lr: 1", "lr: 2"),
    ):
        with pytest.raises(Damaged, match="if you edited it, delete that line"):
            check_stamp(tmp_path, wrong)
    assert not check_stamp(tmp_path, "lr: 2\n")


def test_what_is_written_has_the_folders_mode(tmp_path: Path):
    folder = tmp_path / "folder"
    before = os.umask(0o027)
    try:
        folder.mkdir()
        replace_file(folder / "ours", "text")
        (folder / "theirs").touch(0o600)
        flush_folder(folder)
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {
        "ours": "0o640",
        "theirs": "0o640",
    }


def test_replacing_leaves_the_old_file_where_it_fails(tmp_path: Path, monkeypatch):
    replace_file(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "its space is free again"


def test_a_full_disk_is_said_with_the_name_of_the_file(tmp_path: Path):
    with limited(10), pytest.raises(OSError, match=r"File too large: '.*/file'"):
        replace_file(tmp_path / "file", "x" * 100)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_a_beginning_is_that_of_these_bytes(tmp_path: Path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    for length in (0, 10, 1 << 20, (1 << 20) + 7, 1 << 70):
        expected = hashlib.sha256((bytes(range(256)) * 5000)[:length] if length < 1 << 40 else bytes(range(256)) * 5000)
        assert file_digest(tmp_path / "file", length) == expected.hexdigest()


def summed(folder: Path) -> Path:
    """A folder with two files and their SHA256SUMS."""
    (folder / "a b").write_text("one")
    (folder / "c").write_text("two")
    write_sums(folder)
    return folder / SUMS


def test_the_sums_of_a_folder_are_those_of_other_tools(tmp_path: Path):
    path = summed(tmp_path)
    assert check_sums(tmp_path)
    found = subprocess.run(
        ["sha256sum", "--check", "--strict", path.name], cwd=tmp_path, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "a b: OK\nc: OK\n"), found.stderr
    path.unlink()
    assert not check_sums(tmp_path)


def test_every_flipped_bit_and_every_cut_of_the_sums_is_seen_or_harmless(tmp_path: Path):
    path = summed(tmp_path)
    content = path.read_bytes()
    damages = [content[:length] for length in range(len(content))]
    damages += [flipped(content, bit) for bit in range(0, 8 * len(content), 3)]
    seen = 0
    for damage in damages:
        path.write_bytes(damage)
        try:
            check_sums(tmp_path)
        except Damaged:
            seen += 1
    assert seen > 0.9 * len(damages), "harmless are those of the words in the first line"


@pytest.mark.parametrize("change", [lambda path: path.write_text("three"), lambda path: path.unlink()])
def test_a_file_that_has_changed_since_its_sum_is_named(tmp_path: Path, change):
    path = summed(tmp_path)
    change(tmp_path / "c")
    with pytest.raises(Damaged, match=rf"/c: is .*; restore it, or delete .*{path.name} if the change was yours$"):
        check_sums(tmp_path)


def test_sums_that_others_wrote_count_for_files_that_are_there(tmp_path: Path):
    path = summed(tmp_path)
    path.write_text("# of a hub\n" + path.read_text().partition("\n")[2] + f"{'0' * 64} *absent\n{'0' * 64}  ../up\n")
    assert check_sums(tmp_path)
    (tmp_path / "c").write_text("three")
    with pytest.raises(Damaged):
        check_sums(tmp_path)
