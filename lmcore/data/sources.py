"""Sources of text: local files, a data set of the Hugging Face Hub, or the embedded stories.

`open_corpora` returns one corpus for training and one for validation.
"""

import glob
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from lmcore.config import DataConfig
from lmcore.data.corpus import Capped, Corpus, Part, Split
from lmcore.data.readers import Piece, Read, check_format, document, read_documents
from lmcore.data.stories import EDITION, stories
from lmcore.errors import UserError
from lmcore.files import file_digest

__all__ = ["open_corpora", "open_text"]

LOCAL_INSTEAD = "to train on local text, set --data.files 'folder/*.txt'"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""Matches the name of a data set on the hub: NAME or OWNER/NAME."""
NAME = 64
"""Maximum number of characters of a corpus's name, which begins the name of a folder."""
HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer."""


def open_text(data: DataConfig) -> Corpus:
    """Open all text that `data` names, with nothing held out.

    Raises:
        UserError: a file is missing or of an unknown kind, or the data set cannot be had.
    """
    if data.files:
        return Files("data.files", data.files, data)
    if data.dataset is not None:
        return Hub(data, data.split)
    return Stories(data.stories)


def open_corpora(data: DataConfig) -> tuple[Corpus, Corpus]:
    """Open the training and the validation text that `data` names.

    Where no validation text is named, every k-th document is held out (k = 1 / valid_fraction, rounded as needed to
    meet the fraction), and always at least one: with few documents the last, and of a single document the last
    valid_fraction of its characters. `max_documents` counts training documents; reading stops after them. Each corpus
    reads the source by itself, so a streamed data set is downloaded twice unless `valid_split` names another split.

    Returns:
        (training corpus, validation corpus)

    Raises:
        UserError: a file is missing or of an unknown kind, or the data set cannot be had.
    """
    train = open_text(data)
    valid: Corpus | None = None
    if data.files and data.valid_files:
        valid = Files("data.valid_files", data.valid_files, data)
        assert isinstance(train, Files)
        for place, path in valid.places.items():
            if place in train.places:
                both = f"{path}, which is {train.places[place]} of data.files"
                raise UserError(f"data.valid_files: found {both}, expected text that is not trained on")
    elif not data.files and data.dataset is not None and data.valid_split is not None:
        valid = Hub(data, data.valid_split)
    if valid is not None:
        return (Capped(train, data.max_documents) if data.max_documents else train), valid
    split = Split(train, Fraction(str(data.valid_fraction)), data.max_documents)
    return Part(split, held_out=False), Part(split, held_out=True)


class Stories(Corpus):
    """The embedded generator's stories."""

    name = "stories"

    def __init__(self, count: int):
        self._count = count

    def __iter__(self) -> Iterator[Piece]:
        for text in stories(self._count):
            yield from document(text, "an embedded story")

    def identity(self) -> dict[str, Any]:
        return {"source": "stories", "count": self._count, "code": list(EDITION)}

    def describe(self) -> str:
        return f"{self._count:,} embedded stories"


class Files(Corpus):
    """Local files, in the order of the patterns; the matches of one pattern are sorted by name."""

    def __init__(self, setting: str, patterns: list[str], data: DataConfig):
        """Find the files.

        Args:
            setting: config field that names them, for messages.
            patterns: paths or globs.
            data: its separator and text field are used.

        Raises:
            UserError: a pattern matches no file, a format is not supported, or a file occurs twice.
        """
        self._paths = [path for pattern in patterns for path in _matches(setting, pattern)]
        self._formats = [check_format(path) for path in self._paths]
        self.places: dict[tuple[int, int], Path] = {}
        """(device, inode) of every file, by which a link to the same file is noticed."""
        for path in self._paths:
            place = path.stat().st_dev, path.stat().st_ino
            if place in self.places:
                raise UserError(f"{setting}: found {_duplicate(path, self.places[place])}, expected each file once")
            self.places[place] = path
        self._separator = data.separator
        self._text_field, self._setting, self._read = _field(data)
        self.divisible = data.format == "text"
        if not self.divisible and (plain := [p for p, (kind, _) in zip(self._paths, self._formats) if kind == ".txt"]):
            raise UserError(f"{setting}: found {plain[0]}, expected .jsonl or .parquet with data.format: chat")
        self.name = self._paths[0].name.split(".")[0][:NAME]
        if all(path.suffix.lower() == ".txt" for path in self._paths):
            self.size = sum(path.stat().st_size for path in self._paths)

    def __iter__(self) -> Iterator[Piece]:
        for path in self._paths:
            yield from read_documents(
                path,
                separator=self._separator,
                text_field=self._text_field,
                read=self._read,
                setting=self._setting,
            )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        kinds = {kind for kind, _ in self._formats}
        return {
            "source": "files",
            "files": [[*form, file_digest(path)] for form, path in zip(self._formats, self._paths)],
            "separator": self._separator if ".txt" in kinds else None,
            "text_field": self._text_field if kinds != {".txt"} else None,
            **({} if self.divisible else {"format": "chat"}),
        }

    def identity(self) -> dict[str, Any]:
        return self._identity

    def describe(self) -> str:
        return str(self._paths[0]) if len(self._paths) == 1 else f"{len(self._paths)} files from {self._paths[0]} on"


class Hub(Corpus):
    """One split of a data set that the `datasets` library loads from the hub, its cache, or a local folder."""

    def __init__(self, data: DataConfig, split: str):
        assert data.dataset is not None
        self._dataset = data.dataset
        self._subset = data.subset
        self._split = split
        self._text_field, self._setting, self._read = _field(data)
        self.divisible = data.format == "text"
        self._streaming = data.streaming
        self.name = data.dataset.rstrip("/").split("/")[-1][:NAME]
        path = Path(data.dataset).expanduser()
        if path.is_file():
            raise UserError(f"data.dataset: found the file {data.dataset!r}, expected a folder; set --data.files")
        if not data.dataset or not (HUB_NAME.fullmatch(data.dataset) or path.is_dir()):
            expected = "expected one, or the name of a data set on the hub"
            raise UserError(f"data.dataset: found no folder {data.dataset!r}, {expected}; {LOCAL_INSTEAD}")

    @cached_property
    def _builder(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            message = f'data.dataset: found {self._dataset!r}, which needs `datasets`; pip install "twinlm[hub]"'
            raise UserError(f"{message}; {LOCAL_INSTEAD}") from error
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        if not Path(self._dataset).is_dir():
            self._fail_fast()
        try:
            return datasets.load_dataset_builder(self._dataset, self._subset)
        except Exception as error:
            raise self._explain(error) from error

    def _fail_fast(self) -> None:
        """Switch to offline mode if the hub does not answer; otherwise `datasets` would retry for minutes."""
        import datasets
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError

        try:
            HfApi().dataset_info(self._dataset, timeout=HUB_TIMEOUT)
        except HfHubHTTPError:
            pass  # the hub answers; if it refuses, `datasets` reports the reason
        except Exception:  # the error's class depends on which HTTP client is installed
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True

    def _explain(self, error: Exception) -> UserError:
        """Return a one-line error that names the field to change; the library's own classes and messages vary."""
        if isinstance(error, UserError):
            return error
        import datasets

        message = str(error)
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            return UserError(f"data.dataset: found {self._dataset!r}, expected a data set on the hub ({message})")
        if isinstance(error, ValueError) and "BuilderConfig" in message:
            return UserError(f"data.subset: found {self._subset!r}, expected one of the data set's own ({message})")
        if isinstance(error, ValueError) and "Config name is missing" in message:
            return UserError(f"data.subset: found none, and {self._dataset!r} has several ({message})")
        if isinstance(error, ValueError) and "split" in message.lower():
            return UserError(f"data.split: found {self._split!r}, expected one of the data set's own ({message})")
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "aiohttp")):
            return UserError(
                f"data.dataset: {self._dataset!r} is not a local folder and cannot be downloaded: the Hugging "
                f"Face Hub cannot be reached ({message}); check the network, or, {LOCAL_INSTEAD}"
            )
        return UserError(
            f"data.dataset: {self._dataset!r} cannot be read ({type(error).__name__}: {message}); {LOCAL_INSTEAD}"
        )

    def __iter__(self) -> Iterator[Piece]:
        rows = self._rows()
        number = 0
        while True:
            try:
                value = next(rows, None)
            except Exception as error:
                raise self._explain(error) from error
            if value is None:
                return
            yield from (self._read or _text)(value, f"{self._dataset}, row {number}", self._text_field)
            number += 1

    def _rows(self) -> Iterator[Any]:
        if self._streaming:
            dataset = self._builder.as_streaming_dataset(split=self._split)
        else:
            self._builder.download_and_prepare()
            dataset = self._builder.as_dataset(split=self._split)
        names = dataset.column_names  # None for a stream that does not know them before it is read
        if names and self._text_field in names:
            dataset = dataset.select_columns([self._text_field])
        for rows in dataset.iter(batch_size=1000):
            texts = rows.get(self._text_field)
            if texts is None or not (self._read or all(isinstance(text, str | None) for text in texts)):
                fields, kind = ", ".join(names or rows), "messages" if self._read else "strings"
                raise UserError(
                    f"{self._setting}: found {self._text_field!r}, expected a field of {kind} among: {fields}"
                )
            yield from ("" if text is None else text for text in texts)

    def identity(self) -> dict[str, Any]:
        return {
            "source": "hub",
            "dataset": self._dataset,
            "subset": self._subset,
            "split": self._split,
            "text_field": self._text_field,
            "revision": self._builder.hash,
            **({} if self.divisible else {"format": "chat"}),
        }

    def describe(self) -> str:
        subset = f"/{self._subset}" if self._subset else ""
        return f"{self._dataset}{subset}, split {self._split}{' (streamed)' if self._streaming else ''}"


def _field(data: DataConfig) -> tuple[str, str, Read | None]:
    """Return the field that is read of each record, the setting that names it, and what makes pieces of its value."""
    if data.format == "text":
        return data.text_field, "data.text_field", None
    from lmcore.data.conversations import conversation

    return data.messages_field, "data.messages_field", conversation


def _text(value: str, where: str, name: str) -> Iterator[Piece]:
    return document(value, where)


def _duplicate(path: Path, known: Path) -> str:
    return f"{path} twice" if path == known else f"{path}, which is the same file as {known}"


def _matches(setting: str, pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise UserError(f"{setting}: found the folder {pattern!r}, expected files; use {str(path / '*.txt')!r}")
    # Existing parents are literal, even those with * or [ in their names; only the rest is a pattern.
    literal = next((parent for parent in path.parents if parent.exists()), Path())
    rest = str(path.relative_to(literal))
    matches = [path] if path.exists() else [literal / p for p in glob.glob(rest, root_dir=literal, recursive=True)]
    paths = [p for p in sorted(matches) if p.is_file()]
    if not paths:
        raise UserError(f"{setting}: found no file for {pattern!r}, expected a path or pattern of existing files")
    return paths
