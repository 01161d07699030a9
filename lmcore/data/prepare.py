"""`python -m lmcore.prepare`: convert text to a folder of token files, cached by text, tokenizer and settings.

A folder's name contains a fingerprint of everything that determines its content. The folder is written under a
temporary name, flushed to disk and then renamed, so that a folder with its final name is always complete; a killed
process leaves only a temporary folder, which the next one removes. The checksums in the header are compared at each
use.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcore.config import Config, TokenizerConfig
from lmcore.data import marks
from lmcore.data import tokenizer as tokenizers
from lmcore.data.batches import FORMAT, HEADER, SPLITS, Tokens, read_header, token_dtype
from lmcore.data.corpus import Corpus
from lmcore.data.encoding import encode
from lmcore.data.sources import open_corpora
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError, command, note, printable
from lmcore.files import Damaged, check_files, check_folder, checksums, file_digest, flush_folder, seal, sync
from lmcore.locks import lock

if TYPE_CHECKING:
    from lmcore.data.chat import ChatTemplate

__all__ = ["Prepared", "check_prepared", "main", "prepare"]

TOKENIZER = "tokenizer.json"
CONTENT = ("format", "dtype", "tokenizer", "splits", "identity")
"""Fields of the header that identify the text and its encoding."""
MAKING = re.compile(r"\.making-[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Tokenized text, ready for training."""

    train: Tokens
    valid: Tokens
    tokenizer: Tokenizer
    folder: Path
    """Folder of the token files and `tokenizer.json`."""
    fresh: bool
    """Whether they have just been created, and their summary reported."""
    template: "ChatTemplate | None" = None
    """That of the conversations; None for other text."""

    def is_of(self, run_dir: Path) -> bool:
        """Return whether a run was started on this text, or on no text, as an imported model."""
        if not (run_dir / HEADER).exists():
            return True
        recorded, current = read_header(run_dir), read_header(self.folder)
        return all(recorded.get(name) == current.get(name) for name in CONTENT)


def prepare(config: Config, report: Callable[[str], None] = print, run_dir: Path | None = None) -> Prepared:
    """Return the token files for `config` from `data.dir`, creating them if they do not exist.

    Args:
        config: its groups `data` and `tokenizer` determine the files.
        report: called with one line of progress at a time.
        run_dir: a run to resume; text that differs from its own is refused before anything is tokenized.

    Raises:
        UserError: the text or the tokenizer is unavailable or not the run's, a prepared folder is damaged, or
            `data.dir` is a file or cannot be written to.
    """
    check_folder("data.dir", Path(config.data.dir).expanduser())
    train, valid = open_corpora(config.data)
    template = None
    if config.data.format == "chat":
        from lmcore.data.chat import find_template
        from lmcore.data.conversations import stops_of

        template = find_template(config.data.chat_template, config.tokenizer.file)
    identity = {
        "format": FORMAT,
        "train": train.identity(),
        "valid": valid.identity(),
        "tokenizer": _tokenizer_identity(config.tokenizer),
        **({"chat_template": [template.source, template.tokens]} if template else {}),
    }
    if run_dir is not None and (run_dir / HEADER).exists() and read_header(run_dir).get("identity") != identity:
        raise _changed(run_dir)
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(config.data.dir).expanduser() / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', train.name)}-{fingerprint}"
    fresh = not folder.exists()
    if fresh:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _exclusive(folder.parent, report):
                if not folder.exists():
                    _make(folder, config.tokenizer, template, train, valid, identity, report)
        except OSError as error:
            hint = "free some space or set data.dir to another folder"
            raise UserError(f"data.dir: {config.data.dir!r} cannot be written to ({error}); {hint}") from error
    prepared = replace(_open(folder, config, fresh), template=template)
    if template is not None:
        prepared.tokenizer.stop_ids |= stops_of(prepared.tokenizer, template)
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
            identity["document_prefix"] = list(prefix)  # a list, as JSON reads it back, to equal the header's
        return identity
    identity["special_tokens"] = config.special_tokens
    if config.kind == "bpe":
        identity |= {"vocab_size": config.vocab_size, "train_bytes": config.train_bytes}
    return identity


def _open(folder: Path, config: Config, fresh: bool) -> Prepared:
    try:
        if config.checkpoint.verify and not check_prepared(folder):
            note(f"{folder} was written by an older version, without checksums; reading it unverified")
    except Damaged as error:
        hint = f"delete {folder} to prepare it again"
        raise Damaged(f"{str(error).removesuffix(f'; {hint}')}; {hint}, or use it with --no_verify") from error
    tokenizer = Tokenizer.load(folder / TOKENIZER, config.tokenizer.eot_token, config.tokenizer.stop_tokens)
    expected = read_header(folder).get("tokenizer")
    if tokenizer.digest() != expected:
        raise UserError(f"{folder / TOKENIZER}: found another tokenizer than {HEADER} names; delete {folder}")
    opened = (Tokens.open(folder, split, tokenizer.vocab_size) for split in SPLITS)
    by_eot = config.data.document_mask and config.data.format == "text"  # conversations have their marks in the file
    prefix, eot_id = tokenizer.document_prefix, tokenizer.eot_id if by_eot else None
    train, valid = (replace(tokens, prefix=prefix, eot_id=eot_id) for tokens in opened)
    return Prepared(train=train, valid=valid, tokenizer=tokenizer, folder=folder, fresh=fresh)


def check_prepared(folder: Path) -> bool:
    """Compare a prepared folder's files with the checksums in its header.

    Returns:
        False for a folder of an older version, which has no checksums.

    Raises:
        Damaged: a file is missing or has changed.
    """
    sums = read_header(folder).get("files")
    check_files(folder, sums or {})
    return sums is not None


@contextlib.contextmanager
def _exclusive(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock for preparing text in `folder`, and remove what a killed process left there.

    On Windows, which has no such locks, two processes may do the same work, and temporary folders are not removed,
    since another process may be writing them.
    """
    held = lock(folder / ".lock", lambda owner: report(f"waiting for {owner}, which prepares text in {folder}"))
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
    template: "ChatTemplate | None",
    train: Corpus,
    valid: Corpus,
    identity: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    making = folder.parent / f".making-{uuid.uuid4().hex}"
    making.mkdir()
    try:
        report(printable(f"preparing {train.describe()}"))
        tokenizer = tokenizers.train(config, _texts(train, template))
        if tokenizer.ignored:
            settings = ", ".join(tokenizer.ignored)
            reason = "text is encoded in full and deterministically"
            report(printable(f"note: {config.file} sets {settings}, which has no effect: {reason}"))
        tokenizer.save(making / TOKENIZER)
        dtype = token_dtype(tokenizer.vocab_size)
        if template is not None:
            template.save(making)
            dtype = token_dtype(2**32)  # marks take the upper bits
        splits = {}
        for split, corpus in zip(SPLITS, (train, valid)):
            with (making / f"{split}.bin").open("wb") as file, _progress(split, corpus.size) as advance:
                counts = {"documents": 0, "tokens": 0, "bytes": 0, "unknown": 0}
                counts |= {"targets": 0} if template else {}
                for ids, documents, size in _encoded(tokenizer, template, corpus):
                    file.write(ids.astype(dtype, copy=False).data)
                    bare = marks.token_ids(ids)
                    unknown = 0 if tokenizer.unk_id is None else np.count_nonzero(bare == tokenizer.unk_id)
                    found = documents, len(ids), size, int(unknown), int(marks.counts(ids).sum())
                    for name, more in zip(counts, found):
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


def _texts(corpus: Corpus, template: "ChatTemplate | None") -> Iterator[str]:
    """Return the text of a corpus, for a tokenizer to learn from."""
    if template is None:
        return (piece.text for piece in corpus)
    from lmcore.data.conversations import contents

    return contents(corpus)


def _encoded(
    tokenizer: Tokenizer, template: "ChatTemplate | None", corpus: Corpus
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Return the ids of a corpus, documents and bytes, a part of it at a time."""
    if template is None:
        return encode(tokenizer, corpus)
    from lmcore.data.conversations import encode_conversations

    return encode_conversations(tokenizer, template, corpus)


def _summary(split: str, tokens: Tokens) -> str:
    unknown = f", {tokens.unknown:,} of them unknown to the vocabulary" if tokens.unknown else ""
    size = f"{tokens.bytes:,} bytes, {tokens.bytes_per_token:.3f} bytes per token"
    if tokens.targets is not None:
        own = f"{tokens.targets:,} of them the assistant's{unknown.replace('of them', 'of all')}"
        return f"{split}: {tokens.documents:,} conversations, {len(tokens):,} tokens, {own}, {size}"
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
    """Show a progress bar in bytes on a terminal, and nothing elsewhere."""
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
    """Prepare the text of a config and print a summary."""
    from lmcore.config.cli import parse

    config = parse(argv, prog="python -m lmcore.prepare", description="Convert text to token files for training.")
    prepared = prepare(config)
    for split, tokens in zip(SPLITS, (prepared.train, prepared.valid)) if not prepared.fresh else ():
        print(_summary(split, tokens))
    print(printable(str(prepared.folder)))
