"""From text to a folder of token files, once for each text, tokenizer and settings: `python -m lmcore.prepare`.

A folder's name holds a fingerprint of all that determines its content. It is written under another name, flushed to
disk and then renamed, so that one which is found is whole; a process killed on the way leaves only a temporary folder,
which the next one removes. Checksums in its header are compared each time that it is used.
"""

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.batches import FORMAT, HEADER, SPLITS, Tokens, read_header, token_dtype
from lmcore.data.corpus import Corpus, open_corpora
from lmcore.data.encoding import encode
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError, command, note
from lmcore.files import Damaged, check_files, check_folder, checksums, file_digest, flush_folder, lock, seal, sync

__all__ = ["Prepared", "check_prepared", "main", "prepare"]

TOKENIZER = "tokenizer.json"
CONTENT = ("format", "dtype", "tokenizer", "splits", "identity")
"""Fields of the header that say what the text is."""
MAKING = re.compile(r"\.making-[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Text, ready to train on."""

    train: Tokens
    valid: Tokens
    tokenizer: Tokenizer
    folder: Path
    """Where the token files and `tokenizer.json` lie."""
    fresh: bool
    """Whether they have just been made, and reported."""

    def is_of(self, run_dir: Path) -> bool:
        """Whether a run was begun on this text; true of one that was begun on none, such as an imported model."""
        if not (run_dir / HEADER).exists():
            return True
        known, found = read_header(run_dir), read_header(self.folder)
        return all(known.get(name) == found.get(name) for name in CONTENT)


def prepare(config: Config, report: Callable[[str], None] = print, run_dir: Path | None = None) -> Prepared:
    """Find the token files that `config` asks for in `data.dir`, or make them.

    Args:
        config: its groups `data` and `tokenizer` are read.
        report: takes one line of text for people at a time.
        run_dir: a run that is to go on: other text than it was begun on is refused, before any is tokenized.

    Raises:
        UserError: the text or the tokenizer cannot be had or is not the run's, a prepared folder is damaged,
            `data.dir` is a file, or the disk refuses.
    """
    check_folder("data.dir", Path(config.data.dir).expanduser())
    train, valid = open_corpora(config.data)
    identity = {
        "format": FORMAT,
        "train": train.identity(),
        "valid": valid.identity(),
        "tokenizer": _tokenizer_identity(config.tokenizer),
    }
    if run_dir is not None and (run_dir / HEADER).exists() and read_header(run_dir).get("identity") != identity:
        raise _changed(run_dir)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(config.data.dir).expanduser() / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', train.name)}-{fingerprint}"
    fresh = not folder.exists()
    if fresh:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(folder.parent, report):
                if not folder.exists():
                    _make(folder, config.tokenizer, train, valid, identity, report)
        except OSError as error:
            hint = "free some space or set data.dir to another folder"
            raise UserError(f"data.dir: {config.data.dir!r} cannot be written to ({error}); {hint}") from error
    prepared = _open(folder, config.tokenizer, fresh, config.checkpoint.verify)
    if run_dir is not None and not prepared.is_of(run_dir):
        raise _changed(run_dir)
    for split, tokens in zip(SPLITS, (prepared.train, prepared.valid)) if fresh else ():
        report(_summary(split, tokens))
    return prepared


def _changed(run_dir: Path) -> UserError:
    return UserError(f"data: the text has changed since {run_dir} was started; restore it or start a new run")


def _tokenizer_identity(config: TokenizerConfig) -> dict[str, Any]:
    identity: dict[str, Any] = {"kind": config.kind, "eot_token": config.eot_token}
    if config.file is not None:
        identity["content"] = file_digest(Path(config.file))
        if prefix := Tokenizer.load(config.file, config.eot_token).document_prefix:
            identity["document_prefix"] = list(prefix)  # as JSON reads it back, to be equal to a header's
        return identity
    identity["special_tokens"] = config.special_tokens
    if config.kind == "bpe":
        identity |= {"vocab_size": config.vocab_size, "train_bytes": config.train_bytes}
    return identity


def _open(folder: Path, config: TokenizerConfig, fresh: bool, verify: bool) -> Prepared:
    try:
        if verify and not check_prepared(folder):
            note(f"{folder} is of an older version, without checksums: read as it is")
    except Damaged as error:
        way_out = f"delete {folder} to have it made again"
        raise Damaged(f"{str(error).removesuffix(f'; {way_out}')}; {way_out}, or use it with --no_verify") from error
    tokenizer = Tokenizer.load(folder / TOKENIZER, config.eot_token, config.stop_tokens)
    expected = read_header(folder).get("tokenizer")
    if tokenizer.digest() != expected:
        raise UserError(f"{folder / TOKENIZER}: found another tokenizer than {HEADER} names; delete {folder}")
    opened = (Tokens.open(folder, split, tokenizer.vocab_size) for split in SPLITS)
    train, valid = (replace(tokens, prefix=tokenizer.document_prefix) for tokens in opened)
    return Prepared(train=train, valid=valid, tokenizer=tokenizer, folder=folder, fresh=fresh)


def check_prepared(folder: Path) -> bool:
    """Compare a prepared folder's files with the checksums in its header.

    Returns:
        False for a folder of an older version, which has none.

    Raises:
        Damaged: one is missing or has changed.
    """
    sums = read_header(folder).get("files")
    check_files(folder, sums or {})
    return sums is not None


@contextlib.contextmanager
def _only_one(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time prepare text in `folder`, and remove what a killed one left.

    Where the system has no such lock, processes only do the same work twice, and temporary folders stay.
    """
    held = lock(folder / ".lock", lambda: report(f"waiting for another process that prepares text in {folder}"))
    try:
        for stale in folder.glob(".making-*") if held.alone else ():
            if MAKING.fullmatch(stale.name):
                shutil.rmtree(stale)
        yield
    finally:
        held.release()


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
        tokenizer.save(making / TOKENIZER)
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
            if counts["tokens"] == 0:
                raise UserError(f"{corpus.describe()}: found no text, expected at least one document")
            splits[split] = counts
        header = seal(
            {
                "format": FORMAT,
                "dtype": dtype.str,
                "tokenizer": tokenizer.digest(),
                "splits": splits,
                "identity": identity,
                "files": checksums(making),
            }
        )
        (making / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")
        flush_folder(making)
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
    sync(folder.parent)


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
    from lmcore.config.cli import parse

    config = parse(argv, prog="python -m lmcore.prepare", description="Turn text into token files for training.")
    prepared = prepare(config)
    for split, tokens in zip(SPLITS, (prepared.train, prepared.valid)) if not prepared.fresh else ():
        print(_summary(split, tokens))
    print(prepared.folder)
