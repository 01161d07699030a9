"""Corpora of every kind of damage and size, prepared in child processes whose peak memory is measured.

Each is refused in one line with exit code 2, or its tokens hold exactly the documents that were put in.
"""

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmcore.data.tokenizer import Tokenizer
from tests.torture.outcome import Outcome

__all__ = ["CORPORA", "Corpus", "faults", "prepare"]

EOT = "<|endoftext|>"
LIMIT_MB = 320
"""Maximum peak memory, whatever the corpus; Python with the libraries takes about 75 MB."""
SECONDS = 900
"""Time limit of each: a guard against a hang, on a machine with much else to do."""
PRIVILEGE = "-dac_override,-dac_read_search"
"""By which root reads what it has no permission for."""

LAUNCHER = """
import resource, subprocess, sys
try:
    code = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, timeout=float(sys.argv[1])).returncode
except subprocess.TimeoutExpired:
    code = -9
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A small process between this one and a command, whose peak memory would begin with this one's otherwise."""


@dataclass(frozen=True)
class Corpus:
    """A file, and what becomes of it."""

    name: str
    """Name of the file."""
    write: Callable[[Path], None]
    """Writes it."""
    documents: list[str] | None
    """Documents that it must give; None where it must be refused."""
    kind: str = "bytes"
    """Tokenizer."""
    options: tuple[str, ...] = field(default=())
    limit_mb: int = LIMIT_MB


def raw(content: bytes) -> Callable[[Path], None]:
    """Write bytes."""
    return lambda path: path.write_bytes(content) and None


def lines(*records: object) -> Callable[[Path], None]:
    """Write JSON lines; a string is a line as it is."""
    text = "".join(f"{r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)}\n" for r in records)
    return raw(text.encode("utf-8", "surrogatepass"))


def zeros(megabytes: int) -> Callable[[Path], None]:
    """Write a .gz or .zst that unpacks to so many megabytes of zeros."""

    def write(path: Path) -> None:
        with contextlib.ExitStack() as stack:
            if path.suffix == ".zst":
                import zstandard

                file = stack.enter_context(zstandard.open(path, "wb"))
            else:
                file = stack.enter_context(gzip.open(path, "wb", compresslevel=1))
            for _ in range(megabytes):
                file.write(bytes(1 << 20))

    return write


def packed(content: bytes, cut: int) -> Callable[[Path], None]:
    """Write a .gz or .zst without its last bytes."""

    def write(path: Path) -> None:
        import zstandard

        whole = gzip.compress(content) if path.suffix == ".gz" else zstandard.compress(content)
        path.write_bytes(whole[: len(whole) - cut])

    return write


def parquet(column: list[object]) -> Callable[[Path], None]:
    """Write a Parquet file whose text column has these values."""

    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)

    return write


def unreadable(path: Path) -> None:
    """Write a file that nobody may read."""
    path.write_text("text")
    path.chmod(0)


LINE = "the cat sat on the mat and " * 7_800_000  # 210 MB
DNA = "".join("ACGT"[digit] for digit in np.random.default_rng(0).integers(0, 4, 3_000_000))
NOISE = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8).tobytes()
SPECIAL = ("--tokenizer.special_tokens", "<s>")

CORPORA = [
    Corpus("noise.txt", raw(NOISE), None),
    Corpus("noise.jsonl", raw(NOISE), None),
    Corpus("noise.parquet", raw(NOISE), None),
    Corpus("noise.txt.gz", raw(NOISE), None),
    Corpus("noise.txt.zst", raw(NOISE), None),
    Corpus("crlf.txt", raw(f"a\r\nb\rc{EOT}\r\nd\r\n".encode()), ["a\nb\nc", "d"]),
    Corpus("nul.txt", raw(b"a\0b\0\0 c" + EOT.encode() + b"\0"), ["a\0b\0\0 c", "\0"]),
    Corpus("separators.jsonl", lines({"text": "a\u2028b\x85c\x1ed\x0ce"}), ["a\u2028b\x85c\x1ed\x0ce"]),
    Corpus("empty.txt", raw(b""), None),
    Corpus("empty.jsonl.gz", raw(b""), None),
    Corpus("empty.parquet", raw(b""), None),
    Corpus("only.txt", raw(EOT.encode() * 1000), None),
    Corpus("special.txt", raw(f"<s><s>{EOT}<s>".encode()), ["<s><s>", "<s>"], "bpe", SPECIAL),
    Corpus("character.txt", raw(b"a"), ["a"], "bpe"),
    Corpus("characters.txt", raw(b"a" * 100_000), ["a" * 100_000], "chars"),
    Corpus("surrogate.jsonl", lines(r'{"text": "a\ud800"}'), None),
    Corpus("surrogates.jsonl", lines(r'{"text": "\ud83d\ude00"}'), ["😀"]),
    Corpus("marked.txt", raw("Once upon a time".encode("utf-16")), None),
    Corpus("unmarked.txt", raw("Once upon a time".encode("utf-16-le")), None),
    Corpus("unmarked.jsonl", raw('{"text": "a"}'.encode("utf-16-be")), None),
    Corpus("nested.jsonl", lines({"text": {"text": "a"}}), None),
    Corpus("number.jsonl", lines({"text": 1}), None),
    Corpus("null.jsonl", lines({"text": None}, {"text": "a"}, {"text": ""}), ["a"]),
    Corpus("deep.jsonl", lines('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"), None),
    Corpus("twice.jsonl", lines('{"text": "a", "text": "b"}'), None),
    Corpus("digits.jsonl", lines('{"text": "a", "number": ' + "9" * 10_000 + "}"), None),
    Corpus("nan.jsonl", lines('{"text": "a", "number": NaN}'), ["a"]),
    Corpus("list.jsonl", lines(["a"]), None),
    Corpus("cut.txt.gz", packed(NOISE.hex().encode(), 10_000), None),
    Corpus("cut.txt.zst", packed(NOISE.hex().encode(), 10_000), None),
    Corpus("cut.jsonl.gz", packed(b'{"text": "a"}\n' * 1000, 4), None),
    Corpus("numbers.parquet", parquet([1, 2, 3]), None),
    Corpus("bytes.parquet", parquet([b"a"]), None),
    Corpus("folder.txt", lambda path: path.mkdir(), None),
    Corpus("pipe.txt", lambda path: os.mkfifo(path), None),
    Corpus("unreadable.txt", unreadable, None),
    Corpus("shared.parquet", parquet(["word " * 10_000] * 3000), ["word " * 10_000] * 3000, limit_mb=450),
    Corpus("millions.txt", raw((EOT + "\n").encode() * 1_000_000), None),
    Corpus("millions.jsonl", lines(*['{"text": ""}'] * 1_000_000, {"text": "a"}), ["a"]),
    Corpus("bomb.txt.gz", zeros(100), ["\0" * (100 << 20)], limit_mb=450),
    Corpus("bomb.jsonl.gz", zeros(10_000), None),
    Corpus("bomb.jsonl.zst", zeros(10_000), None),
    Corpus("bomb.parquet.gz", zeros(10_000), None),
    Corpus("letters.txt", raw(DNA.encode()), [DNA], "bpe", ("--tokenizer.train_bytes", "1000000")),
    Corpus("a.txt", raw(b"x " + b"a" * 10_000_000), None, "bpe", limit_mb=600),
    Corpus("line.txt", raw(LINE.encode()), [LINE], limit_mb=450),
]


def prepare(corpus: Corpus, folder: Path) -> Outcome:
    """Prepare a corpus in a child process, and compare the tokens with its documents.

    Args:
        corpus: what to prepare.
        folder: a new folder.
    """
    folder.mkdir(parents=True)
    path = folder / corpus.name
    corpus.write(path)
    (folder / "valid.txt").write_text("some text")
    data = folder / "data"
    words = ["--data.files", str(path), "--data.valid_files", str(folder / "valid.txt"), "--data.dir", str(data)]
    command = [sys.executable, "-m", "lmcore.prepare", *words, "--tokenizer.kind", corpus.kind, *corpus.options]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set", PRIVILEGE, *command]
    code, said, megabytes = _measured(command)
    size = f"{megabytes:.0f} MB"
    left = sorted(path.name for path in data.iterdir() if path.name != ".lock") if data.exists() else []
    if megabytes > corpus.limit_mb:
        return Outcome(corpus.name, "lost", f"peak memory {size}, expected at most {corpus.limit_mb}: {said}")
    if corpus.documents is None:
        one_line = len(said.splitlines()) == 1 and said.startswith("error: ")
        if code == 2 and one_line and not left:
            return Outcome(corpus.name, "refused", f"{size}: {said}")
        return Outcome(corpus.name, "lost", f"expected a refusal, exit code {code}, left {left}: {said[-1500:]}")
    if code or len(left) != 1:
        return Outcome(corpus.name, "lost", f"exit code {code}, left {left}: {said[-1500:]}")
    same = _documents(data / left[0]) == corpus.documents
    return Outcome(corpus.name, "survived" if same else "lost", f"{size}{'' if same else ': other documents'}")


def _measured(command: list[str]) -> tuple[int, str, float]:
    """Run a command; return its exit code (−9 past the time limit), standard error, and peak memory in MB."""
    launcher = [sys.executable, "-c", LAUNCHER, str(SECONDS), *command]
    done = subprocess.run(launcher, capture_output=True, text=True, errors="replace", check=True)
    code, kilobytes = map(int, done.stdout.split())
    return code, done.stderr.strip(), kilobytes / 1024


def _documents(folder: Path) -> list[str]:
    """Decode the documents of prepared training text."""
    tokenizer = Tokenizer.load(folder / "tokenizer.json", EOT)
    header = json.loads((folder / "meta.json").read_text())
    ids = np.fromfile(folder / "train.bin", header["dtype"])
    parts = np.split(ids, np.flatnonzero(ids == tokenizer.eot_id) + 1)
    assert len(parts[-1]) == 0, "the last document is not ended"
    if header["identity"]["tokenizer"]["kind"] == "bytes":  # a library's string of 200 MB takes gigabytes
        return [part[:-1].astype(np.uint8).tobytes().decode() for part in parts[:-1]]
    return [tokenizer.decode(part[:-1].tolist()) for part in parts[:-1]]


def faults(count: int, folder: Path) -> Iterator[Outcome]:
    """Prepare the first `count` corpora."""
    for corpus in CORPORA[:count]:
        place = folder / corpus.name.replace(".", "-")
        yield prepare(corpus, place)
        shutil.rmtree(place)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for outcome in faults(int(sys.argv[1]), Path(place)):
            print(outcome.verdict, outcome.fault, "|", outcome.detail[-700:], flush=True)
