"""The subject of a check: the model that the command line names, and its input text.

Nothing is prepared on disk. A fresh config trains its tokenizer on the beginning of its text, a run has its own; the
text is `--data.files`, else what the config names if that is on this machine, else the embedded stories.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmcore.config import Config, DataConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.chat import CHATML, ChatTemplate, find_template, read_template
from lmcore.data.conversations import contents, encode_conversations
from lmcore.data.corpus import Corpus
from lmcore.data.encoding import encode
from lmcore.data.sources import open_text
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.run.opening import with_vocabulary
from parity.arrays import Arrays
from parity.backends.base import CANONICAL
from parity.check.rungs.base import in_short_documents
from parity.convert.sources import open_source

__all__ = ["Subject", "open_subject"]

STORIES = 1500
"""Maximum number of embedded stories that a check reads: enough for a vocabulary of 2,048."""
TOKENS = 200_000
"""Maximum number of tokens that a check reads."""


@dataclass(frozen=True)
class Subject:
    """A model to check, and its input text."""

    what: str
    """Description of the model, for reports."""
    config: Config
    """Config with the vocabulary's size filled in."""
    params: Arrays | None
    """Weights in canonical names; None for the initial weights of the config's seed."""
    tokenizer: Tokenizer | None
    tokens: np.ndarray
    """Token ids of the text, with marks where the config's data have them: short documents in its order."""
    text: str
    """Amount and source of the text, for reports."""


def open_subject(what: Path | None, config: Config, files: list[str], verify: bool = True) -> Subject:
    """Read the model to check, and tokens to feed it.

    Args:
        what: a run, a checkpoint, a Hugging Face folder; None for the initial weights of `config`.
        config: read only without `what`.
        files: text files to use, as for `data.files`.
        verify: whether to compare a run's files with their checksums.

    Raises:
        UserError: a file cannot be read, or the model cannot be checked.
    """
    if what is None:
        corpus = _corpus(config.data, files)
        texts = (piece.text for piece in corpus) if corpus.divisible else contents(corpus)
        tokenizer = tokenizers.train(config.tokenizer, texts)
        template = find_template(config.data.chat_template, config.tokenizer.file)
        config = with_vocabulary(config, tokenizer.vocab_size)
        tokens = _tokens(tokenizer, corpus, config.data, template)
        return Subject("initial weights", config, None, tokenizer, tokens, _describe(tokens, corpus))
    source = open_source(what, verify=verify)
    params = {name: np.ascontiguousarray(array) for name, array in source.tensors(CANONICAL).items()}
    config = source.config
    name = "Hugging Face model"
    if source.checkpoint is not None:
        name = f"{source.side} checkpoint, step {source.checkpoint.step:,}"
    subject = Subject(f"{what} ({name})", config, params, source.tokenizer, np.empty(0, np.int32), "")
    if source.tokenizer is None:
        if files:
            raise UserError(f"--data.files: {what} has no tokenizer.json to read text with; leave it out")
        draws = np.random.default_rng(0).integers(config.model.vocab_size, size=TOKENS, dtype=np.int32)
        draws = in_short_documents(draws) if config.data.is_marked else draws
        return replace(subject, tokens=draws, text=f"{TOKENS:,} random ids")
    corpus = _corpus(config.data, files)
    config = with_vocabulary(config, source.tokenizer.vocab_size)  # a saved run's config leaves it to the tokenizer
    own = read_template(what if source.checkpoint is None else source.checkpoint.run_dir)
    tokens = _tokens(source.tokenizer, corpus, config.data, own or ChatTemplate(CHATML))
    return replace(subject, config=config, tokens=tokens, text=_describe(tokens, corpus))


def _corpus(data: DataConfig, files: list[str]) -> Corpus:
    """Open the text to feed to the model."""
    if files:
        return open_text(replace(data, files=files))
    if data.files:
        try:
            return open_text(data)
        except UserError:  # another machine's files: any other text will do
            pass
    embedded = not data.files and data.dataset is None
    return open_text(DataConfig(stories=min(data.stories, STORIES) if embedded else STORIES))


def _describe(tokens: np.ndarray, corpus: Corpus) -> str:
    return f"{'the first ' * (len(tokens) == TOKENS)}{len(tokens):,} tokens of {corpus.describe()}"


def _tokens(tokenizer: Tokenizer, corpus: Corpus, data: DataConfig, template: ChatTemplate) -> np.ndarray:
    pieces: list[np.ndarray] = []
    documents = itertools.islice(corpus, 10 * STORIES)
    parts = encode(tokenizer, documents) if corpus.divisible else encode_conversations(tokenizer, template, documents)
    for ids, _, _ in parts:
        pieces.append(ids)
        if sum(map(len, pieces)) >= TOKENS:
            break
    tokens = np.concatenate(pieces)[:TOKENS].astype(np.int32)
    if len(tokens) < 2:
        raise UserError("data: found no text to feed the model, expected at least a few words")
    return in_short_documents(tokens) if data.is_marked else tokens
