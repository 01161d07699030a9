"""Text to token ids and back: byte-level BPE, characters, bytes, or any `tokenizer.json`.

Every kind is a `tokenizers` pipeline, so one `tokenizer.json` says all there is to know, and other tools can read it.
Text is only ever text: a document that spells out a special token gets its characters, never the control token.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Encoding, decoders, models, pre_tokenizers, processors, trainers

from lmcore.config import TokenizerConfig
from lmcore.errors import UserError

__all__ = ["TextStream", "Tokenizer", "train"]

UNK = "<unk>"
WELL_KNOWN_EOT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Where a file records no end-of-text token, the first of these that it has."""


class TextStream:
    """Text of one sequence, given out as its tokens arrive."""

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._start()

    def _start(self) -> None:
        self._decoder = decoders.DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = 0

    def feed(self, token: int) -> str:
        """Take one id; return the whole characters that it completes, or ''."""
        self._ids.append(token)
        text = self._decoder.step(self._tokenizer.inner, token) or ""
        self._given += len(text)
        return text

    def flush(self) -> str:
        """Return what `feed` still held back, an unfinished character as U+FFFD, and start anew."""
        rest = self._tokenizer.decode(self._ids)[self._given :]
        self._start()
        return rest


class Tokenizer:
    """A `tokenizers.Tokenizer` with the one special token that a language model needs: end of text."""

    inner: tokenizers.Tokenizer
    """The library's own tokenizer."""
    eot_id: int
    """Id of the token that ends a document."""
    unk_id: int | None
    """Id that stands for text that the vocabulary lacks; None where there is none."""
    vocab_size: int
    """Largest id + 1: rows that an embedding needs."""

    def __init__(self, inner: tokenizers.Tokenizer, eot_token: str):
        eot_id = inner.token_to_id(eot_token)
        assert eot_id is not None, f"{eot_token!r} is not in the vocabulary"
        inner.add_special_tokens([eot_token])
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        # Nothing is added to encoded text. The template is where tokenizer.json keeps which token ends a document.
        inner.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[(eot_token, eot_id)])
        self.inner = inner
        self.eot_id = eot_id
        self.unk_id = _unk_id(inner)
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with no special token added."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; the library works on several texts at once, on all cores."""
        return [e.ids for e in self.encodings(texts)]

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """The library's own objects, whose `ids` are lists made when they are asked for.

        Raises:
            UserError: it has no token for a part of a text.
        """
        try:
            return self.inner.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library has no class of its own
            raise UserError(
                f"tokenizer: cannot encode the text ({error}); take one that has an unknown token"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, bytes that form no character become U+FFFD."""
        return self.inner.decode(ids, skip_special_tokens=True)

    def stream(self) -> TextStream:
        """Decode one sequence token by token."""
        return TextStream(self)

    def digest(self) -> str:
        """SHA-256 of the pipeline and vocabulary, whatever the layout of the file they came from."""
        canonical = json.dumps(json.loads(self.inner.to_str()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json`."""
        Path(path).write_text(self.inner.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str, eot_token: str | None = None) -> "Tokenizer":
        """Read a `tokenizer.json`, ours or another's.

        Args:
            path: the file.
            eot_token: token that ends a document; None takes the one that `save` recorded, else a well-known one.

        Raises:
            UserError: the file is not a tokenizer, or has no such token.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # the library raises nothing more precise
            raise UserError(f"{path}: cannot be read as a tokenizer.json ({error})") from error
        eot_token = eot_token or _recorded_eot(inner)
        if eot_token is None or inner.token_to_id(eot_token) is None:
            found = sorted(t.content for t in inner.get_added_tokens_decoder().values() if t.special)
            special = ", ".join(map(repr, found)) or "none"
            raise UserError(
                f"{path}: found no token {eot_token!r} to end a document; "
                f"set tokenizer.eot_token to one of its special tokens: {special}"
            )
        return cls(inner, eot_token)


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Make the tokenizer that `config` describes.

    Args:
        config: kind, size and special tokens.
        texts: training text. BPE reads about the first `train_bytes` of it, chars all, bytes and file none.

    Raises:
        UserError: the file has no such end-of-text token, or ordinary text could spell a special token.
    """
    if config.kind == "file":
        assert config.file is not None
        return Tokenizer.load(config.file, config.eot_token)
    special = [config.eot_token, *config.special_tokens]
    make = {"bpe": _train_bpe, "chars": _train_chars, "bytes": _make_bytes}[config.kind]
    inner = make(config, special, texts)
    inner.add_special_tokens(special)
    tokenizer = Tokenizer(inner, config.eot_token)
    for token in special:
        if inner.token_to_id(token) in tokenizer.encode(token):
            expected = "a mark that ordinary text cannot be, such as <|endoftext|>"
            raise UserError(f"tokenizer: found special token {token!r}, expected {expected}")
    return tokenizer


def _train_bpe(config: TokenizerConfig, special: list[str], texts: Iterable[str]) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_first_bytes(texts, config.train_bytes), trainer)
    return inner


def _train_chars(config: TokenizerConfig, special: list[str], texts: Iterable[str]) -> tokenizers.Tokenizer:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    unk = [] if UNK in special else [UNK]
    vocab = {token: i for i, token in enumerate([*special, *unk, *sorted(characters - set(special))])}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNK))  # no merges: single characters
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([UNK])
    return inner


def _make_bytes(config: TokenizerConfig, special: list[str], texts: Iterable[str]) -> tokenizers.Tokenizer:
    # ByteLevel shows a printable byte as itself and the others, in order, as the characters from U+0100 on.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = [c for c in alphabet if ord(c) < 256]
    hidden = sorted(set(range(256)) - {ord(c) for c in shown})
    vocab = {c: ord(c) for c in shown} | dict(zip(alphabet[len(shown) :], hidden, strict=True))
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text.encode())
        if seen >= limit:
            return


def _recorded_eot(inner: tokenizers.Tokenizer) -> str | None:
    template = json.loads(inner.to_str())["post_processor"] or {}
    if template.get("type") == "TemplateProcessing" and len(template["single"]) == len(template["special_tokens"]) == 1:
        return next(iter(template["special_tokens"]))
    return next((token for token in WELL_KNOWN_EOT if inner.token_to_id(token) is not None), None)


def _unk_id(inner: tokenizers.Tokenizer) -> int | None:
    if isinstance(inner.model, models.Unigram):
        return json.loads(inner.to_str())["model"]["unk_id"]
    token = inner.model.unk_token
    return None if token is None else inner.token_to_id(token)
