"""From text to a folder of token files, once for each text, tokenizer and settings: `python -m lmcore.prepare`.

A folder's name holds a fingerprint of all that determines its content. It is written under another name, flushed to
disk and then renamed, so that one which is found is whole; a process killed on the way leaves only a temporary folder,
which the next one removes.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from lmcore import tokenizer as tokenizers
from lmcore.config import Config, TokenizerConfig
from lmcore.corpus import Corpus, file_digest, open_corpora
from lmcore.encoding import encode
from lmcore.errors import UserError, command
from lmcore.tokenizer import Tokenizer
from lmcore.tokens import FORMAT, HEADER, SPLITS, Tokens, read_header, token_dtype

__all__ = ["Prepared", "main", "prepare"]

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Text, ready to train on."""

    train: Tokens
    valid: Tokens
    tokenizer: Tokenizer
    folder: Path
    """Where the token files and `tokenizer.json` lie."""

    def is_of(self, run_dir: Path) -> bool:
        """Whether a run was begun on this text; true of one that was begun on none, such as an imported model."""
        known = run_dir / HEADER
        return not known.exists() or known.read_bytes() == (self.folder / HEADER).read_bytes()


def prepare(config: Config, report: Callable[[str], None] = print) -> Prepared:
    """Find the token files that `config` asks for in `data.dir`, or make them.

    Args:
        config: its groups `data` and `tokenizer` are read.
        report: takes one line of text for people at a time.

    Raises:
        UserError: the text or the tokenizer cannot be had, a prepared folder is damaged, or the disk refuses.
    """
    train, valid = open_corpora(config.data)
    identity = {
        "format": FORMAT,
        "train": train.identity(),
        "valid": valid.identity(),
        "tokenizer": _tokenizer_identity(config.tokenizer),
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(config.data.dir).expanduser() / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', train.name)}-{fingerprint}"
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(folder.parent, report):
                if not folder.exists():
                    _make(folder, config.tokenizer, train, valid, identity, report)
        except OSError as error:
            hint = "free some space or set data.dir to another folder"
            raise UserError(f"data.dir: {config.data.dir!r} cannot be written to ({error}); {hint}") from error
        prepared = _open(folder, config.tokenizer)
        for split, tokens in zip(SPLITS, (prepared.train, prepared.valid)):
            report(_summary(split, tokens))
        return prepared
    return _open(folder, config.tokenizer)


def _tokenizer_identity(config: TokenizerConfig) -> dict[str, Any]:
    identity: dict[str, Any] = {"kind": config.kind, "eot_token": config.eot_token}
    if config.file is not None:
        identity["content"] = file_digest(Path(config.file))
        if prefix := Tokenizer.load(config.file, config.eot_token).document_prefix:
            identity["document_prefix"] = prefix
        return identity
    identity["special_tokens"] = config.special_tokens
    if config.kind == "bpe":
        identity |= {"vocab_size": config.vocab_size, "train_bytes": config.train_bytes}
    return identity


def _open(folder: Path, config: TokenizerConfig) -> Prepared:
    tokenizer = Tokenizer.load(folder / TOKENIZER, config.eot_token, config.stop_tokens)
    expected = read_header(folder).get("tokenizer")
    if tokenizer.digest() != expected:
        raise UserError(f"{folder / TOKENIZER}: found another tokenizer than {HEADER} names; delete {folder}")
    train, valid = (replace(Tokens.open(folder, split), prefix=tokenizer.document_prefix) for split in SPLITS)
    return Prepared(train=train, valid=valid, tokenizer=tokenizer, folder=folder)


@contextlib.contextmanager
def _only_one(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time prepare text in `folder`, and remove what a killed one left.

    Where the system has no such lock, processes only do the same work twice, and temporary folders stay.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that prepares text in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in folder.glob(".making-*"):
            shutil.rmtree(stale)
        yield


def _make(
    folder: Path,
    config: TokenizerConfig,
    train: Corpus,
    valid: Corpus,
    identity: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    making = folder.parent / f".making-{uuid.uuid4().hex}"
    making.mkdir()
    try:
        report(f"preparing {train.describe()}")
        tokenizer = tokenizers.train(config, (piece.text for piece in train))
        if tokenizer.ignored:
            settings = ", ".join(tokenizer.ignored)
            report(f"note: {config.file} sets {settings}, which has no effect: text is encoded whole, alike each time")
        with (making / TOKENIZER).open("w", encoding="utf-8") as file:
            file.write(tokenizer.to_json())
            _flush(file)
        dtype = token_dtype(tokenizer.vocab_size)
        splits = {}
        for split, corpus in zip(SPLITS, (train, valid)):
            with (making / f"{split}.bin").open("wb") as file, _progress(split, corpus.size) as advance:
                counts = {"documents": 0, "tokens": 0, "bytes": 0, "unknown": 0}
                for ids, documents, size in encode(tokenizer, corpus):
                    file.write(ids.astype(dtype, copy=False).data)
                    unknown = 0 if tokenizer.unk_id is None else np.count_nonzero(ids == tokenizer.unk_id)
                    for name, more in zip(counts, (documents, len(ids), size, int(unknown))):
                        counts[name] += more
                    advance(size)
                _flush(file)
            if counts["tokens"] == 0:
                raise UserError(f"{corpus.describe()}: found no text, expected at least one document")
            splits[split] = counts
        header = {
            "format": FORMAT,
            "dtype": dtype.str,
            "tokenizer": tokenizer.digest(),
            "splits": splits,
            "identity": identity,
        }
        with (making / HEADER).open("w", encoding="utf-8") as file:
            json.dump(header, file, indent=1)
            _flush(file)
        _rename(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _summary(split: str, tokens: Tokens) -> str:
    unknown = f", {tokens.unknown:,} of them unknown to the vocabulary" if tokens.unknown else ""
    size = f"{tokens.bytes:,} bytes, {tokens.bytes_per_token:.3f} bytes per token"
    return f"{split}: {tokens.documents:,} documents, {len(tokens):,} tokens{unknown}, {size}"


def _rename(making: Path, folder: Path) -> None:
    try:
        making.rename(folder)
    except OSError:
        if not (folder / HEADER).exists():  # else another process was faster, with the same content
            raise
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda size: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda size: bar.advance(task, size)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the text of a config and say what there is."""
    from lmcore.cli import parse

    config = parse(argv, prog="python -m lmcore.prepare", description="Turn text into token files for training.")
    prepared = prepare(config)
    print(prepared.folder)
    for split, tokens in zip(SPLITS, (prepared.train, prepared.valid)):
        print(_summary(split, tokens))


if __name__ == "__main__":
    raise SystemExit(main(None))
