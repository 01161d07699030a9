"""What is to be checked: the model that the command line names, and text to feed it.

Nothing is prepared on disk. A fresh config trains its tokenizer on the first of its text, a run brings its own; the
text is `--data.files`, else what the config names if that is on this machine, else the embedded stories.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmcore import tokenizer as tokenizers
from lmcore.config import Config, DataConfig
from lmcore.corpus import Corpus, open_text
from lmcore.encoding import encode
from lmcore.errors import UserError
from lmcore.tokenizer import Tokenizer
from lmcore.trainer import with_vocabulary
from parity.convert import open_source
from parity.twins import Arrays

__all__ = ["Subject", "open_subject"]

STORIES = 1500
"""Of the embedded stories, as many as a check reads: enough for a vocabulary of 2,048."""
TOKENS = 200_000
"""Most tokens that a check reads."""


@dataclass(frozen=True)
class Subject:
    """A model to check, and text for it."""

    what: str
    """What it is, for people."""
    config: Config
    """With the vocabulary's size filled in."""
    params: Arrays | None
    """Weights in JAX's names; None for the initial ones of the config's seed."""
    tokenizer: Tokenizer | None
    tokens: np.ndarray
    """Token ids of the text."""
    text: str
    """Where the text comes from, for people."""


def open_subject(what: Path | None, config: Config, files: list[str], verify: bool = True) -> Subject:
    """Read what is to be checked.

    Args:
        what: a run, a checkpoint, a Hugging Face folder; None for the initial weights of `config`.
        config: read only without `what`.
        files: text to use, as `data.files` takes it.
        verify: whether to compare a run's files with their checksums.

    Raises:
        UserError: something cannot be read, or the model is of a kind that cannot be checked.
    """
    if what is None:
        corpus, text = _text(config.data, files)
        tokenizer = tokenizers.train(config.tokenizer, (piece.text for piece in corpus))
        config = with_vocabulary(config, tokenizer.vocab_size)
        return Subject("initial weights", config, None, tokenizer, _tokens(tokenizer, corpus), text)
    source = open_source(what, verify=verify)
    state = source.state(optimizer=False).to("jax", source.config)
    config = source.config
    name = "Hugging Face model"
    if source.checkpoint is not None:
        name = f"{source.side} checkpoint, step {source.checkpoint.step:,}"
    subject = Subject(f"{what} ({name})", config, state.params, source.tokenizer, np.empty(0, np.int32), "")
    if source.tokenizer is None:
        if files:
            raise UserError(f"--data.files: {what} has no tokenizer.json to read text with; leave it out")
        draws = np.random.default_rng(0).integers(config.model.vocab_size, size=TOKENS, dtype=np.int32)
        return replace(subject, tokens=draws, text="random ids")
    corpus, text = _text(config.data, files)
    config = with_vocabulary(config, source.tokenizer.vocab_size)  # which a saved run leaves to its tokenizer
    return replace(subject, config=config, tokens=_tokens(source.tokenizer, corpus), text=text)


def _text(data: DataConfig, files: list[str]) -> tuple[Corpus, str]:
    """Text to feed the model, and what to call it."""
    if files:
        corpus = open_text(replace(data, files=files))
        return corpus, corpus.describe()
    if data.files:
        try:
            corpus = open_text(data)
            return corpus, corpus.describe()
        except UserError:  # another machine's files: any text will do
            pass
    corpus = open_text(DataConfig(stories=STORIES))
    return corpus, corpus.describe()


def _tokens(tokenizer: Tokenizer, corpus: Corpus) -> np.ndarray:
    found: list[np.ndarray] = []
    for ids, _, _ in encode(tokenizer, itertools.islice(corpus, 10 * STORIES)):
        found.append(ids)
        if sum(map(len, found)) >= TOKENS:
            break
    tokens = np.concatenate(found)[:TOKENS].astype(np.int32)
    if len(tokens) < 2:
        raise UserError("data: found no text to feed the model, expected at least a few words")
    return tokens
