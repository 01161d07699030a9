"""Compare a run with a baseline model, whatever their tokenizers, by bits per byte on the same text.

Both models read the same documents, each through its own tokenizer, as one stream in which end-of-text follows each
document. One more end-of-text precedes the first document, as input only: the first token of the text is predicted like
any other, and every token, including end-of-text, is predicted exactly once. The sum of all bits is divided by the
number of UTF-8 bytes of the documents. A model with a token that begins a document, in addition to one that ends it,
reads that token before each document, but does not predict it.

The stream is split into windows of T targets that don't overlap. In a window, a token sees the window's earlier tokens
and the last token of the window before, nothing further back. T is the run's `train.seq_len`, or the baseline's context
length if that is shorter, and the same for both models. T counts tokens: longer tokens fit more text into a window,
which is one of the advantages of a good tokenizer.

The baseline is a causal language model of `transformers`, which runs in torch. It runs in a separate process, so that
jaxlm can use it too where torch is installed.
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
    """Input of the baseline's process."""

    model: str
    """Name on the hub, or a local folder."""
    documents: list[tuple[str, bool]]
    """(text, whether the document ends there) of each document; only the last may not end."""
    context: int
    """Maximum number of targets per window, T."""
    batch_size: int
    """Maximum number of windows per batch."""
    device: str
    """As `train.device`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Result of a model on a text."""

    parameters: int
    context: int
    """Targets per window, T."""
    targets: int
    """Number of tokens predicted."""
    unknown: int
    """Number of unknown tokens, which stand for text that the vocabulary lacks."""
    nats: float
    """Sum of the losses of all targets."""

    def bits_per_byte(self, size: int) -> float:
        """Return the bits per byte for a text of `size` bytes."""
        return self.nats / math.log(2) / size


def as_stream(
    parts: Iterable[np.ndarray], eot_id: int, unk_id: int | None, size: int, prefix: tuple[int, ...] = ()
) -> Tokens:
    """Join a text's ids into one stream that starts with an additional end-of-text.

    Args:
        parts: token ids of the text, end-of-text after each document included.
        eot_id: id of end-of-text.
        unk_id: id of the unknown token, if there is one.
        size: number of UTF-8 bytes of the text.
        prefix: ids that begin each document.
    """
    ids = np.concatenate([np.array([eot_id], np.uint32), *parts])
    unknown = 0 if unk_id is None else int(np.count_nonzero(ids == unk_id))
    documents = int(np.count_nonzero(ids == eot_id)) - 1
    return Tokens(ids=ids, documents=documents, bytes=size, unknown=unknown, prefix=prefix)


def whole_documents(pieces: Iterable[Piece]) -> list[tuple[str, bool]]:
    """Join the pieces of each document; return (text, whether the document ends there) for each."""
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
    """Evaluate a model of transformers on a text, in a separate process.

    Args:
        module: Python module that the process runs.
        model: name on the hub, or a local folder.
        pieces: the text.
        context: maximum number of targets per window, T.
        batch_size: maximum number of windows per batch.
        device: as `train.device`.

    Raises:
        UserError: torch or transformers isn't installed, or the model cannot be loaded.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        hint = 'pip install "twinlm[baseline]"'
        raise UserError(f"--baseline: needs torch and transformers, found no {' and no '.join(missing)}; run: {hint}")
    documents = whole_documents(pieces)
    request = Request(model=model, documents=documents, context=context, batch_size=batch_size, device=device)
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(asdict(request)), text=True, capture_output=True
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise UserError(f"--baseline: {lines[-1].removeprefix('error: ')}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))
