"""Rung 9, further lines: witnesses, each another implementation that reads the same weights from an export."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmcore.config import TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from parity.backends.base import CANONICAL, Pair
from parity.check.result import Result, judge
from parity.check.rungs.base import Options
from parity.check.rungs.transformers import third_implementation
from parity.check.witnesses import WITNESSES
from parity.convert import names as mapping
from parity.convert.families import LLAMA
from parity.difference import difference, tolerance

__all__ = ["further_implementations", "witnesses"]

POSITIONS = 64
"""Maximum number of positions: a witness computes the angle at position p in float32, with up to p roundings."""
BYTES = 257
"""Number of tokens of a byte tokenizer."""


def further_implementations(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 9: transformers, and the witnesses that `--witness` names."""
    yield from third_implementation(pair, options)
    yield from witnesses(pair, options)


def witnesses(pair: Pair, options: Options) -> Iterator[Result]:
    """Compare each witness's logits with the twins'; all compute in float32, whose tolerance applies."""
    if not options.witnesses:
        return
    reason = "; ".join(LLAMA.differences(pair.config.model))
    if pair.dtype == "bfloat16":
        reason = "witnesses compute in float32"
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room, "export")
        folder.mkdir()
        try:
            if not reason:
                _export(folder, pair)
        except UserError as error:
            reason = str(error)
        rows = pair.rows(2, min(pair.context - 1, POSITIONS))  # one position is left, which some want to generate
        for name in options.witnesses:
            yield _compared(name, pair, folder, rows, reason)


def _export(folder: Path, pair: Pair) -> None:
    """Write the weights in float32 as a Hugging Face folder, with a tokenizer, which some need, and none uses here."""
    from parity.convert.huggingface import write_folder

    params = mapping.convert_names(pair.start, pair.config.model, CANONICAL, "hf")
    weights = {name: array.astype(np.float32) for name, array in params.items()}
    write_folder(folder, pair.config, weights, _tokenizer(pair.config.model.vocab_size))


def _tokenizer(vocab_size: int) -> Tokenizer:
    """Return a tokenizer of at most as many tokens as the model has."""
    if vocab_size >= BYTES:
        return tokenizers.train(TokenizerConfig(kind="bytes"), [])
    return tokenizers.train(TokenizerConfig(kind="chars"), ["".join(map(chr, range(48, 48 + vocab_size - 2)))])


def _compared(name: str, pair: Pair, folder: Path, rows: np.ndarray, reason: str) -> Result:
    """Return the line of one witness."""
    what = f"{name}, logits, {len(rows)} × {rows.shape[1]}"
    if missing := WITNESSES[name].missing:
        reason = f"{missing} is not installed: pip install 'twinlm[witness]'"
    theirs = None
    try:
        theirs = None if reason else WITNESSES[name].logits(folder, rows)
    except UserError as error:
        reason = str(error)
    except Exception as error:  # another project's code: what it raises is its own, and the other lines stand
        reason = f"cannot compute: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if theirs is None:
        return Result(rung=9, what=what, dtype=pair.dtype, verdict="skipped", note=reason)
    ours, _ = pair.each("witness", lambda twin: pair.loaded(twin).logits(rows))
    note = "computes in float32" * (pair.dtype == "float64")
    return judge(9, what, pair.dtype, [difference("logits", ours, theirs)], tolerance("logits", "float32"), note)
