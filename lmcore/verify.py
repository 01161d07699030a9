"""`python -m lmcore.verify PATH ...`: verify runs, checkpoints, exports and prepared text against their checksums.

It prints one line for each set of files. The exit code is 0 if nothing is damaged, 1 if something is, and 2 if a path
is none of these.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcore import config as configs
from lmcore.config import cli
from lmcore.data.batches import HEADER, read_header
from lmcore.data.prepare import check_prepared
from lmcore.errors import UserError, command, printable
from lmcore.files import SUMS, Damaged, check_stamp, check_sums
from lmcore.run import checkpoints
from lmcore.run.base import find_base
from lmcore.run.checkpoints import Checkpoint, checkpoint_folders, read_checkpoint
from lmcore.run.folder import check_tokenizer
from lmcore.run.trackers import read_metrics

__all__ = ["Result", "main", "verify"]

CHECKPOINT, CONFIG, METRICS, TOKENIZER = "checkpoint.json", "config.yaml", "metrics.jsonl", "tokenizer.json"


@dataclass(frozen=True)
class Result:
    """Result of the verification of one set of files."""

    path: Path
    state: str
    """`good`, `damaged`, or `no checksums` for files of an older version."""
    what: str
    """Description of the damage; empty if there is none."""


def verify(path: Path) -> Iterator[Result]:
    """Verify all files of a run, a checkpoint, an export, a prepared folder or a folder of prepared folders.

    Raises:
        UserError: the path is none of these.
    """
    if (path / CHECKPOINT).exists() or checkpoints.NAME.fullmatch(path.name):
        yield _judge(path, lambda: read_checkpoint(path).verify())
    elif (path / CONFIG).exists() or (path / "checkpoints").is_dir():
        yield from _run(path)
    elif (path / HEADER).exists():
        yield _judge(path, lambda: check_prepared(path))
    elif (path / SUMS).exists():
        yield _judge(path, lambda: check_sums(path))
    elif folders := sorted(header.parent for header in path.glob(f"*/{HEADER}")):
        for folder in folders:
            yield from verify(folder)
    else:
        expected = "a run, a checkpoint, an export, a folder of prepared text, or a folder of those"
        raise UserError(f"{path}: {'found none of these' if path.exists() else 'no such folder'}, expected {expected}")


def _judge(path: Path, check: Callable[[], bool]) -> Result:
    """Return the result of a check, which raises if a file is damaged and returns False if there are no checksums."""
    try:
        return Result(path, "good" if check() else "no checksums", "")
    except UserError as error:
        return Result(path, "damaged", str(error))


def _run(folder: Path) -> Iterator[Result]:
    readable = []
    for path in checkpoint_folders(folder):
        with contextlib.suppress(Damaged):  # reported below
            readable.append(read_checkpoint(path))
    latest = readable[-1] if readable else None
    yield _judge(folder / CONFIG, lambda: _config(folder / CONFIG))
    if (folder / HEADER).exists():
        yield _judge(folder / HEADER, lambda: "files" in read_header(folder))
    if (folder / TOKENIZER).exists():
        yield _judge(folder / TOKENIZER, lambda: check_tokenizer(folder, latest))
    if (folder / METRICS).exists():
        yield _judge(folder / METRICS, lambda: _metrics(folder / METRICS, latest))
    for path in (folder / "huggingface", *checkpoint_folders(folder)):
        if path.exists():
            yield from verify(path)
    if latest is not None and latest.base is not None:
        yield _judge(Path(latest.base.path), lambda: find_base(latest).sums is not None)


def _config(path: Path) -> bool:
    configs.load(path)
    return check_stamp(path, path.read_text(encoding="utf-8"))


def _metrics(path: Path, latest: Checkpoint | None) -> bool:
    read_metrics(path)
    return latest is not None and latest.verify_metrics()


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Verify the paths on the command line."""
    parser = cli.command_parser(
        "python -m lmcore.verify",
        "Verify runs, checkpoints, exports and prepared text (or all of it in data.dir) against their checksums. Exit "
        "code 0: nothing is damaged; 1: something is damaged; 2: a path is none of these.",
        "PATH ...",
    )
    parser.add_argument("paths", nargs="+", help="Run, checkpoint, export, folder of prepared text, or data.dir.")
    args = cli.parse_arguments(parser, argv)
    damaged = False
    for result in (result for path in args.paths for result in verify(Path(path))):
        damaged |= result.state == "damaged"
        print(f"{result.state:12}  {printable(result.what or str(result.path))}")
    return int(damaged)


if __name__ == "__main__":
    sys.exit(main())
