"""What the API answers: objects, and chunks of streams, which are written as text since there is one for each token."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from lmcore.serve.generation import Generation, Piece, Placed
from lmcore.serve.logprobs import LOWEST, Logprob, TokenTexts

__all__ = ["Chat", "Completion", "Format"]

DONE = "data: [DONE]\n\n"


class Format(ABC):
    """How one request is answered; a subclass for each kind of request."""

    prefix: str
    whole: str
    """Value of `object` in a whole answer."""
    chunk: str
    """Value of `object` in a chunk of a stream."""

    def __init__(self, generation: Generation, model: str, texts: TokenTexts):
        """Answer for what is generated.

        Args:
            generation: the choices.
            model: id of the model.
            texts: of single tokens.
        """
        self._generation, self._texts = generation, texts
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        usage = ',"usage":null' if generation.options.include_usage else ""
        head = json.dumps(self._head | {"object": self.chunk}, separators=(",", ":"))[:-1]
        self._begin, self._end = f'data: {head},"choices":[', f"]{usage}}}\n\n"

    def body(self, pieces: list[Piece]) -> dict[str, Any]:
        """Return a whole answer from all that the choices grew by."""
        placed: list[list[Placed]] = [[] for _ in self._generation.choices]
        for piece in pieces:
            placed[piece.choice.index] += piece.placed
        choices = [
            {"index": choice.index, "finish_reason": choice.finish}
            | self._content(choice.text)
            | {"logprobs": None if choice.options.logprobs is None else self._logprobs(placed[choice.index])}
            for choice in self._generation.choices
        ]
        return self._head | {"object": self.whole, "choices": choices, "usage": self._generation.usage}

    def first_chunks(self) -> str:
        """Return what a stream begins with."""
        return ""

    def chunks(self, pieces: list[Piece]) -> str:
        """Return the chunks of a stream for what the choices grew by."""
        return "".join(f"{self._begin}{choice}{self._end}" for piece in pieces for choice in self._changes(piece))

    def last_chunks(self) -> str:
        """Return what a stream ends with."""
        if not self._generation.options.include_usage:
            return DONE
        head = self._head | {"object": self.chunk, "choices": [], "usage": self._generation.usage}
        return f"data: {json.dumps(head, separators=(',', ':'))}\n\n{DONE}"

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _changes(self, piece: Piece) -> Iterator[str]: ...

    @abstractmethod
    def _logprobs(self, placed: list[Placed]) -> dict[str, Any]: ...

    def _logprobs_json(self, piece: Piece) -> str:
        return "null" if piece.choice.options.logprobs is None else json.dumps(self._logprobs(piece.placed))


class Completion(Format):
    """Answers `POST /v1/completions`."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _changes(self, piece: Piece) -> Iterator[str]:
        finish = f'"{piece.finish}"' if piece.finish else "null"
        logprobs = self._logprobs_json(piece)
        yield (
            f'{{"index":{piece.choice.index},"text":{json.dumps(piece.text)},"logprobs":{logprobs},'
            f'"finish_reason":{finish}}}'
        )

    def _logprobs(self, placed: list[Placed]) -> dict[str, Any]:
        text_of = self._texts.text_of
        return {
            "tokens": [text_of(each.logprob.token) for each in placed],
            "token_logprobs": [each.logprob.value for each in placed],
            "top_logprobs": [self._top(each.logprob) for each in placed],
            "text_offset": [each.offset for each in placed],
        }

    def _top(self, logprob: Logprob) -> dict[str, float] | None:
        """Return the most likely tokens and the chosen one; of tokens that read the same, the most likely."""
        if logprob.value is None:
            return None
        top: dict[str, float] = {}
        for token, value in (*logprob.top, (logprob.token, logprob.value)):
            top.setdefault(self._texts.text_of(token), value)
        return top


class Chat(Format):
    """Answers `POST /v1/chat/completions`."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def first_chunks(self) -> str:
        """Return the chunks that say whose turn it is."""
        delta = '{"role":"assistant","content":""}'
        choices = (
            f'{{"index":{choice.index},"delta":{delta},"logprobs":null,"finish_reason":null}}'
            for choice in self._generation.choices
        )
        return "".join(f"{self._begin}{choice}{self._end}" for choice in choices)

    def _changes(self, piece: Piece) -> Iterator[str]:
        index = piece.choice.index
        if piece.text or piece.placed:
            delta = f'{{"content":{json.dumps(piece.text)}}}'
            logprobs = self._logprobs_json(piece)
            yield f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":null}}'
        if piece.finish:
            yield f'{{"index":{index},"delta":{{}},"logprobs":null,"finish_reason":"{piece.finish}"}}'

    def _logprobs(self, placed: list[Placed]) -> dict[str, Any]:
        content = []
        for logprob, _ in placed:
            value = LOWEST if logprob.value is None else logprob.value
            top = [self._token(token, value) for token, value in logprob.top]
            content.append(self._token(logprob.token, value) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        content = list(self._texts.bytes_of(token))
        return {"token": self._texts.text_of(token), "logprob": value, "bytes": content}
