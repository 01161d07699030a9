"""Two models with different tokenizers on one text: bits per byte of a run beside those of another model.

Both read the same documents, each through its own tokenizer, as one stream in which end-of-text follows each document.
Before the first document stands one more end-of-text, which is only read: so the first token of the text is predicted
like any other, and every token, ends of documents included, exactly once. All bits are divided by all UTF-8 bytes of
the documents. A model with a token that begins a document, beside one that ends it, reads that token before each
document, and is not asked to predict it.

Windows: the stream is cut into windows of T targets that don't overlap. Within a window a token sees the window's
earlier tokens and, before them, the last of the window before; nothing further back. T is the run's `train.seq_len` for
both models; where the baseline's context is shorter, both get the shorter. T counts tokens: longer tokens put more text
into a window, which is part of what a tokenizer is worth.

The baseline is a model of `transformers`, which has them in torch only. It runs in a process of its own, so that
the twin in JAX, too, may ask for it where torch is installed.
"""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from lmcore.data.batches import Tokens
from lmcore.data.corpus import Piece
from lmcore.errors import UserError

__all__ = ["Measured", "Request", "as_stream", "measure_baseline"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the baseline's process is asked."""

    model: str
    """Name on the hub, or a local folder."""
    documents: list[tuple[str, bool]]
    """The text, and whether each document is whole."""
    context: int
    """Targets in a window, T, at most."""
    batch_size: int
    """Windows at a time, at most."""
    device: str
    """As `train.device`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model made of a text."""

    parameters: int
    context: int
    """Targets in a window, T."""
    targets: int
    """Tokens predicted."""
    unknown: int
    """Tokens that stand for text which the vocabulary lacks."""
    nats: float
    """Sum of the losses of all targets."""

    def bits_per_byte(self, size: int) -> float:
        """Bits for each of `size` bytes."""
        return self.nats / math.log(2) / size


def as_stream(
    parts: Iterable[np.ndarray], eot_id: int, unk_id: int | None, size: int, prefix: tuple[int, ...] = ()
) -> Tokens:
    """Ids of a text of `size` bytes, in parts that hold its end-of-text tokens, with one more of those before them."""
    ids = np.concatenate([np.array([eot_id], np.uint32), *parts])
    unknown = 0 if unk_id is None else int(np.count_nonzero(ids == unk_id))
    documents = int(np.count_nonzero(ids == eot_id)) - 1
    return Tokens(ids=ids, documents=documents, bytes=size, unknown=unknown, prefix=prefix)


def whole_documents(pieces: Iterable[Piece]) -> list[tuple[str, bool]]:
    """The text of each document, put together from its pieces, and whether it ends there."""
    documents: list[tuple[str, bool]] = []
    parts: list[str] = []
    for piece in pieces:
        parts.append(piece.text)
        if piece.ends:
            documents.append(("".join(parts), True))
            parts = []
    return [*documents, ("".join(parts), False)] if parts else documents


def measure_baseline(
    module: str, model: str, pieces: list[Piece], context: int, batch_size: int, device: str
) -> Measured:
    """Measure a model of transformers in a process of its own.

    Args:
        module: runs as that process.
        model: name on the hub, or a local folder.
        pieces: the text.
        context: targets in a window, T, at most.
        batch_size: windows at a time, at most.
        device: as `train.device`.

    Raises:
        UserError: torch or transformers isn't installed, or the model cannot be had.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        hint = 'pip install "twinlm[baseline]"'
        raise UserError(f"--baseline: needs torch and transformers, found no {' and no '.join(missing)}; run: {hint}")
    texts = whole_documents(pieces)
    request = Request(model=model, documents=texts, context=context, batch_size=batch_size, device=device)
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(asdict(request)), text=True, capture_output=True
    )
    if done.returncode != 0:
        told = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise UserError(f"--baseline: {told[-1].removeprefix('error: ')}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))
