"""Further implementations of the Llama architecture, which read an export and compute logits on a CPU.

Each is one file with one function; `WITNESSES` lists them. Rung 9 compares their logits with those of the twins.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmcore.errors import UserError

__all__ = ["WITNESSES", "Witness", "choose"]


@dataclass(frozen=True)
class Witness:
    """One implementation."""

    name: str
    module: str
    """File of this package that has its function."""
    packages: tuple[str, ...]
    """What must be installed, by the names of modules."""

    @property
    def missing(self) -> str:
        """Return the names of packages that are not installed, or an empty string."""
        return ", ".join(name for name in self.packages if importlib.util.find_spec(name) is None)

    def logits(self, folder: Path, tokens: np.ndarray) -> np.ndarray:
        """Return the logits B T V, in float32, of token ids B T.

        Args:
            folder: a Hugging Face Llama folder with a tokenizer.
            tokens: token ids.

        Raises:
            UserError: it cannot hold this model.
        """
        return importlib.import_module(f"parity.check.witnesses.{self.module}").logits(folder, tokens)


WITNESSES = {
    witness.name: witness
    for witness in (
        Witness("ctranslate2", "ctranslate2", ("ctranslate2", "transformers")),
        Witness("mlx", "mlx", ("mlx", "mlx_lm")),
        Witness("onnxruntime-genai", "onnxruntime_genai", ("onnxruntime_genai", "onnxruntime", "onnx_ir")),
        Witness("llama.cpp", "llama_cpp", ("llama_cpp", "gguf")),
    )
}


def choose(words: list[str]) -> tuple[str, ...]:
    """Return the names of the witnesses that a command line asks for.

    Args:
        words: names, which must be installed, or `all`, of which those that are not installed are skipped visibly.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    for word in words:
        if word != "all" and word not in WITNESSES:
            raise UserError(f"--witness: found {word!r}, expected all, or any of {', '.join(WITNESSES)}")
        if word != "all" and (missing := WITNESSES[word].missing):
            raise UserError(f"--witness: {word} needs {missing}, not installed here; pip install 'twinlm[witness]'")
    return tuple(WITNESSES) if "all" in words else tuple(dict.fromkeys(words))
