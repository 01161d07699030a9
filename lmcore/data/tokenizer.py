"""Convert text to token ids and back: byte-level BPE, characters, bytes, or any `tokenizer.json`.

Every kind is a `tokenizers` pipeline, so one `tokenizer.json` describes it completely, and other tools can read it.
Text never encodes to special tokens: a document that spells out a special token gets the tokens of its characters.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import Encoding, decoders, models, pre_tokenizers, processors, trainers

from lmcore.config import TokenizerConfig
from lmcore.errors import UserError

__all__ = ["TextStream", "Tokenizer", "train"]

UNK = "<unk>"
WELL_KNOWN_EOT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Candidates for the end-of-text token, in order, where a file does not record one."""
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""Matches a token that stands for one byte, as in tokenizers with byte fallback."""

WORD = 100
"""Maximum number of characters of a word that BPE learns from, and so of its tokens."""
LONG_WORDS = 1 << 22
"""Number of characters, approximate, that BPE learns from parts of longer words."""
LONG_WORD = re.compile(rf"\S{{{WORD}}}(?=\S)|\s{{{WORD}}}(?=\s)")


class TextStream:
    """Incremental decoder of one sequence: the texts it returns concatenate to `decode` of all ids.

    It decodes windows that begin with tokens whose text was returned before, since a decoder may treat the first token
    of a text differently (it strips a space, say). Text is held back while a later token may change it.
    """

    def __init__(self, tokenizer: "Tokenizer", prompt: Sequence[int] = ()):
        """Start after the ids of a prompt, whose text is not returned."""
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._read = len(self._ids)
        self._shown = len(tokenizer.decode(self._ids))
        self._settled = tokenizer.is_settled(self._ids)

    def feed(self, token: int) -> str:
        """Append one id and return the text that it completes, or an empty string."""
        self._ids.append(token)
        return self._next_text() if self._tokenizer.is_settled(self._ids) else ""

    def flush(self) -> str:
        """Return the text that `feed` still holds back, an incomplete character as U+FFFD."""
        return self._next_text()

    def _next_text(self) -> str:
        """Return the text not returned yet, and shorten the window if what remains decodes to text by itself."""
        decode = self._tokenizer.decode
        text = decode(self._ids)
        new = text[self._shown :]
        latest = self._ids[self._read :]
        if self._settled and (shown := len(decode(latest))):
            self._ids, self._shown = latest, shown
        else:
            self._shown = len(text)
        self._read, self._settled = len(self._ids), True
        return new


class Tokenizer:
    """A `tokenizers.Tokenizer` with the facts about it that a language model needs."""

    inner: tokenizers.Tokenizer
    """The library's tokenizer, set so that it never encodes text to special tokens."""
    eot_id: int
    """Id of the token that ends a document."""
    stop_ids: frozenset[int]
    """Ids that end generation: `eot_id`, and further ones that a model may have."""
    prefix_ids: tuple[int, ...]
    """Ids that the file's template puts before a text, such as a begin-of-text token."""
    unk_id: int | None
    """Id of the unknown token, which stands for text that the vocabulary lacks; None if there is none."""
    vocab_size: int
    """Largest id + 1, the number of embeddings that a model needs."""
    ignored: tuple[str, ...]
    """Names of the file's settings that are ignored, for messages."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        eot_token: str,
        stop_tokens: Sequence[str] = (),
        source: str | None = None,
    ):
        """Wrap a tokenizer of the library.

        Args:
            inner: the library's tokenizer; it is modified, so that encoding is deterministic and adds no tokens.
            eot_token: token that ends a document.
            stop_tokens: further tokens that end generation.
            source: content of `tokenizer.json` for `save`; None takes `inner` before it is modified.
        """
        self._source = source or inner.to_str(pretty=True)
        eot_id = inner.token_to_id(eot_token)
        assert eot_id is not None, f"{eot_token!r} is not in the vocabulary"
        inner.add_special_tokens([eot_token])
        self.prefix_ids = _prefix(inner, eot_token)
        self.ignored = _make_repeatable(inner)
        inner.encode_special_tokens = True
        self.inner = inner
        self.eot_id = eot_id
        stops = (inner.token_to_id(token) for token in stop_tokens)
        self.stop_ids = frozenset({eot_id, *(number for number in stops if number is not None)})
        self.unk_id = _unk_id(inner)
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self._special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
        self._bytes = {i for token, i in vocabulary.items() if BYTE.fullmatch(token)}

    @property
    def document_prefix(self) -> tuple[int, ...]:
        """Ids that begin a document in training; empty if that is end-of-text, which already ends the previous one."""
        return () if self.prefix_ids == (self.eot_id,) else self.prefix_ids

    def encode(self, text: str) -> list[int]:
        """Encode `text` without adding special tokens."""
        return self.encode_batch([text])[0]

    def encode_prompt(self, text: str, special: bool = False) -> list[int]:
        """Encode a prompt, the template's prefix included; the result has at least one id.

        Args:
            text: the prompt. If it is empty and the template has no prefix, the result is end-of-text, after which a
                new document begins.
            special: whether to encode special tokens in the text; a prefix that it spells out is not added again.
        """
        ids = self.encodings([text], special=special)[0].ids
        prefix = list(self.prefix_ids)
        if not (special and prefix and ids[: len(prefix)] == prefix):
            ids = prefix + ids
        return ids or [self.eot_id]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts, in parallel on all cores, without adding special tokens."""
        return [e.ids for e in self.encodings(texts)]

    @property
    def special(self) -> list[str]:
        """The special tokens."""
        return [token.content for token in self.inner.get_added_tokens_decoder().values() if token.special]

    def find_special(self, text: str) -> str | None:
        """Return the first special token that a text spells out; None where it has none."""
        found = self._special_pattern.search(text)
        return found and found[0]

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special)))

    def encodings(self, texts: Sequence[str], offsets: bool = False, special: bool = False) -> list[Encoding]:
        """Encode several texts and return the library's objects, whose `ids` builds a new list at each access.

        Args:
            texts: the texts.
            offsets: whether to compute each token's position in the text, which takes longer.
            special: whether to encode special tokens in the texts.

        Raises:
            UserError: the vocabulary has no token for a part of a text.
        """
        encode = self.inner.encode_batch if offsets else self.inner.encode_batch_fast
        self.inner.encode_special_tokens = not special
        try:
            return encode(texts, add_special_tokens=False)
        except Exception as error:  # the library raises no class of its own
            raise UserError(
                f"tokenizer: cannot encode the text ({error}); use one that has an unknown token"
            ) from error
        finally:
            self.inner.encode_special_tokens = True

    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids`, without special tokens; invalid UTF-8 becomes U+FFFD."""
        return self.inner.decode(ids, skip_special_tokens=True)

    def is_settled(self, ids: Sequence[int]) -> bool:
        """Return whether no later token can change the text of `ids`: they end neither in a byte token nor in U+FFFD.

        A run of byte tokens such as <0xE2> is decoded as a whole or not at all; U+FFFD may be an incomplete character.
        """
        last = next((i for i in reversed(ids) if i not in self._special), None)
        return last not in self._bytes and not self.decode(ids).endswith("\ufffd")

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """Return an incremental decoder for a sequence that continues the ids of a prompt."""
        return TextStream(self, prompt)

    def digest(self) -> str:
        """Return the SHA-256 of pipeline and vocabulary, independent of the layout of the file."""
        normal = tokenizers.Tokenizer.from_str(self._source).to_str()
        canonical = json.dumps(json.loads(normal), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`, as it was read or trained."""
        return self._source

    def save(self, path: Path | str) -> None:
        """Write `tokenizer.json`."""
        Path(path).write_text(self._source, encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str, eot_token: str | None = None, stop_tokens: Sequence[str] = ()) -> "Tokenizer":
        """Load a `tokenizer.json`, written by this project or any other tool.

        Args:
            path: the file.
            eot_token: token that ends a document; None takes the one that this project records, else a well-known one.
            stop_tokens: further tokens that end generation.

        Raises:
            UserError: the file is not a tokenizer, or lacks one of the tokens.
        """
        source, inner = _read(Path(path))
        eot_token = eot_token or _recorded_eot(inner) or _well_known_eot(inner)
        if eot_token is None or inner.token_to_id(eot_token) is None:
            names = sorted(t.content for t in inner.get_added_tokens_decoder().values() if t.special)
            special = ", ".join(map(repr, names)) or "none"
            raise UserError(
                f"{path}: found no token {eot_token!r} to end a document; "
                f"set tokenizer.eot_token to one of its special tokens: {special}"
            )
        for token in stop_tokens:
            if inner.token_to_id(token) is None:
                raise UserError(f"tokenizer.stop_tokens: found {token!r}, expected tokens of {path}")
        return cls(inner, eot_token, stop_tokens, source)


def _read(path: Path) -> tuple[str, tokenizers.Tokenizer]:
    try:
        source = path.read_text(encoding="utf-8")
        return source, tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # the library raises no more specific class
        raise UserError(f"{path}: cannot be read as a tokenizer.json ({error})") from error


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train or load the tokenizer that `config` describes.

    Args:
        config: kind, size and special tokens.
        texts: training text. BPE reads about the first `train_bytes` of it, chars reads all, bytes and file none.

    Raises:
        UserError: the file lacks the end-of-text token, or ordinary text would encode to a special token.
    """
    if config.kind == "file":
        assert config.file is not None
        return Tokenizer.load(config.file, config.eot_token, config.stop_tokens)
    special = [config.eot_token, *config.special_tokens]
    make = {"bpe": _train_bpe, "chars": _train_chars, "bytes": _make_bytes}[config.kind]
    inner = make(config, special, texts)
    inner.add_special_tokens(special)
    # This template adds nothing to encoded text: it only records in tokenizer.json which token ends a document.
    end = (config.eot_token, inner.token_to_id(config.eot_token))
    inner.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[end])
    tokenizer = Tokenizer(inner, config.eot_token, _known(inner, config.stop_tokens))
    for token in special:
        if inner.token_to_id(token) in tokenizer.encode(token):
            expected = "a string that ordinary text does not contain, such as <|endoftext|>"
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
    inner.train_from_iterator(_with_short_words(_first_bytes(texts, config.train_bytes)), trainer)
    return inner


def _with_short_words(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts after every WORD characters without whitespace, or of nothing else, and skip most of too many.

    The library goes through a whole word for each merge in it, so a word of a megabyte would take hours; it takes 80
    bytes for each character of different words; and a token may not be so long that it hides where to cut a text.
    """
    remaining = LONG_WORDS
    for text in texts:
        begin = 0
        for part in LONG_WORD.finditer(text):
            yield text[begin : part.end() if remaining > 0 else part.start()]
            begin = part.end()
            remaining -= WORD
        yield text[begin:]


def _train_chars(config: TokenizerConfig, special: list[str], texts: Iterable[str]) -> tokenizers.Tokenizer:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    unk = [] if UNK in special else [UNK]
    vocab = {token: i for i, token in enumerate([*special, *unk, *sorted(characters - set(special))])}
    # Without merges, every token of BPE is one character.
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNK))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens([UNK])
    return inner


def _make_bytes(config: TokenizerConfig, special: list[str], texts: Iterable[str]) -> tokenizers.Tokenizer:
    # ByteLevel represents a printable byte by its own character, and the others, in order, by U+0100 and the following.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [c for c in alphabet if ord(c) < 256]
    others = sorted(set(range(256)) - {ord(c) for c in printable})
    vocab = {c: ord(c) for c in printable} | dict(zip(alphabet[len(printable) :], others, strict=True))
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
    return None


def _well_known_eot(inner: tokenizers.Tokenizer) -> str | None:
    return next((token for token in WELL_KNOWN_EOT if inner.token_to_id(token) is not None), None)


def _known(inner: tokenizers.Tokenizer, tokens: list[str]) -> list[str]:
    for token in tokens:
        if inner.token_to_id(token) is None:
            raise UserError(
                f"tokenizer.stop_tokens: found {token!r}, which the vocabulary lacks; add it to "
                "tokenizer.special_tokens"
            )
    return tokens


def _prefix(inner: tokenizers.Tokenizer, token: str) -> tuple[int, ...]:
    """Return the ids that the post-processor puts before any text; a special token serves as the text."""
    inner.encode_special_tokens = False
    processed = inner.post_process(inner.encode(token, add_special_tokens=False))
    added = itertools.takewhile(lambda pair: pair[1] is None, zip(processed.ids, processed.sequence_ids, strict=True))
    return tuple(number for number, _ in added)


def _make_repeatable(inner: tokenizers.Tokenizer) -> tuple[str, ...]:
    """Disable truncation, padding and random segmentation; return the names of those that were enabled."""
    ignored = [name for name in ("truncation", "padding") if getattr(inner, name) is not None]
    inner.no_truncation()
    inner.no_padding()
    for name in ("dropout", "alpha", "nbest_size"):  # BPE dropout, and Unigram's subword sampling
        if getattr(inner.model, name, None):
            ignored.append(f"model.{name}")
            setattr(inner.model, name, None)
    return tuple(ignored)


def _unk_id(inner: tokenizers.Tokenizer) -> int | None:
    if isinstance(inner.model, models.Unigram):
        return json.loads(inner.to_str())["model"]["unk_id"]
    token = inner.model.unk_token
    return None if token is None else inner.token_to_id(token)
