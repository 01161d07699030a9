"""CTranslate2, an inference engine in C++ with its own converter from Hugging Face folders."""

import tempfile
from pathlib import Path

import numpy as np

from lmcore.errors import UserError
from lmcore.parsing import read_json

__all__ = ["logits"]


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the logits B T V of token ids B T.

    Raises:
        UserError: the RoPE frequencies are scaled, which its converter takes and version 4.8 does not compute.
    """
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    if read_json(folder / "config.json").get("rope_scaling"):
        raise UserError("model.rope_scaling: ctranslate2 computes without it, so it is no witness of this model")
    with tempfile.TemporaryDirectory() as converted:
        TransformersConverter(str(folder)).convert(converted, force=True)
        generator = ctranslate2.Generator(converted, device="cpu", compute_type="float32", intra_threads=1)
        return np.array(generator.forward_batch(tokens.tolist()))
