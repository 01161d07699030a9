"""The documents that a reader or a source gives in pieces."""

from pathlib import Path
from typing import Any

from lmcore.config import DataConfig
from lmcore.data.sources import open_corpora

EOT = "<|endoftext|>"


def documents(pieces) -> list[str]:
    """The documents that pieces make up."""
    whole, text = [], ""
    for piece in pieces:
        text += piece.text
        if piece.ends:
            whole.append(text)
            text = ""
    assert text == "", "the last document is not closed"
    return whole


def opened(tmp_path: Path, **settings: Any) -> tuple[list[str], list[str]]:
    """Training and validation documents of the .txt and other files that settings name below tmp_path."""
    for name in ("files", "valid_files"):
        if name in settings:
            settings[name] = [str(tmp_path / pattern) for pattern in settings[name]]
    train_corpus, valid_corpus = open_corpora(DataConfig(**settings))
    return documents(train_corpus), documents(valid_corpus)
