"""Conversations to train on: read and checked, and encoded with marks on the tokens that are not the assistant's."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lmcore.data.chat import CHATML, CHATML_TOKENS, ChatTemplate, Message, Span
from lmcore.data.marks import BEGINS, UNCOUNTED
from lmcore.data.readers import Piece
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError

__all__ = ["check_special", "contents", "conversation", "encode_conversations", "encode_turns", "stops_of"]

ROLES = ("system", "user", "assistant", "tool")
TOGETHER = 256
"""Conversations to encode in one call of the library."""


def conversation(value: object, where: str, name: str) -> Iterator[Piece]:
    """Yield a conversation as one piece, whose text is its messages in JSON.

    Args:
        value: a list of messages, as it was read.
        where: file and line, or data set and row, for messages.
        name: `data.messages_field`.

    Raises:
        UserError: it is no list of messages with a known role and content, or the assistant says nothing in it.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise UserError(f"{where}: found {found} in {name!r}, expected a list of messages with role and content")
    for number, message in enumerate(value, 1):
        _check(message, f"{where}, message {number}")
    if not any(message["role"] == "assistant" for message in value):
        raise UserError(f"{where}: found no message of the assistant, expected at least one to learn from")
    yield Piece(json.dumps(value), ends=True, where=where)


def _check(message: Any, where: str) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        found = f"fields {', '.join(message)}" if isinstance(message, dict) else type(message).__name__
        raise UserError(f"{where}: found {found}, expected an object with role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise UserError(f"{where}: found role {role!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(content, str | None):
        raise UserError(f"{where}: found content that is {type(content).__name__}, expected text")
    if not content or content.isspace():
        raise UserError(f"{where}: found empty content, expected text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: found half a surrogate pair at character {error.start}, expected Unicode") from error


def contents(pieces: Iterable[Piece]) -> Iterator[str]:
    """Yield the text of every message, for a tokenizer to learn from."""
    for piece in pieces:
        yield from (message["content"] for message in json.loads(piece.text))


def check_special(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    """Check that no message spells out a special token, with which a template says whose turn it is.

    Raises:
        UserError: one does.
    """
    for number, message in enumerate(messages, 1):
        if found := tokenizer.find_special(message["content"]):
            raise UserError(f"message {number}: found the special token {found!r}, expected text without it; remove it")


def encode_conversations(
    tokenizer: Tokenizer, template: ChatTemplate, pieces: Iterable[Piece]
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Encode conversations as a template writes them; the tokens that are not the assistant's have a mark.

    Yields:
        (token ids with their marks, number of conversations, UTF-8 bytes of what the assistant says)

    Raises:
        UserError: the template or the tokenizer does not fit a conversation; the message names its file and line.
    """
    if template.source == CHATML and (lacking := [t for t in CHATML_TOKENS if t not in tokenizer.special]):
        raise UserError(
            f"data.chat_template: found none, and the default template needs the special tokens {', '.join(lacking)}, "
            "which the tokenizer lacks; name a template, or add them to tokenizer.special_tokens"
        )
    pieces = iter(pieces)
    while batch := list(itertools.islice(pieces, TOGETHER)):
        texts, spans, size = [], [], 0
        for piece in batch:
            messages = json.loads(piece.text)
            try:
                check_special(tokenizer, messages)
                text, own = template.assistant_spans(messages)
            except UserError as error:
                raise UserError(f"{piece.where}: {error}") from error
            texts.append(text)
            spans.append(own)
            size += sum(len(m["content"].encode()) for m in messages if m["role"] == "assistant")
        encoded = tokenizer.encodings(texts, offsets=True, special=True)
        arrays = []
        for piece, encoding, own in zip(batch, encoded, spans, strict=True):
            counted = _counted(encoding.offsets, own)
            if not counted.any():
                raise UserError(f"{piece.where}: found no token of the assistant in what {template.name} writes")
            ids = np.array(encoding.ids, np.uint32) | np.where(counted, 0, UNCOUNTED).astype(np.uint32)
            ids[0] |= BEGINS
            arrays.append(ids)
        yield np.concatenate(arrays), len(batch), size


def _counted(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """Return which tokens have a character in one of the spans.

    Args:
        offsets: of the tokens, in characters.
        spans: of the assistant, in order and apart.
    """
    bounds = np.array(offsets).reshape(-1, 2)
    counted = np.zeros(len(bounds), bool)
    for begin, end in spans:
        counted |= (bounds[:, 0] < end) & (bounds[:, 1] > begin)
    return counted


def encode_turns(tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a conversation up to where the assistant's next turn begins."""
    return tokenizer.encodings([template.render(messages, prompt=True)], special=True)[0].ids


def stops_of(tokenizer: Tokenizer, template: ChatTemplate) -> frozenset[int]:
    """Return the id of the special token that ends the assistant's turns; none where the template ends them by text."""
    sample = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}]
    _, _, after = template.render(sample).rpartition("Answer")
    token = tokenizer.find_special(after)
    number = None if token is None else tokenizer.inner.token_to_id(token)
    return frozenset() if number is None else frozenset({number})
