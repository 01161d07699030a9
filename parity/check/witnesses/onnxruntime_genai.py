"""ONNX Runtime GenAI: its model builder writes an ONNX graph, and ONNX Runtime executes it."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.errors import UserError

__all__ = ["logits"]


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the logits B T V of token ids B T.

    Raises:
        UserError: the model builder refuses the model.
    """
    import onnxruntime_genai as genai

    with tempfile.TemporaryDirectory() as room:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-o", f"{room}/onnx"]
        options = ["-p", "fp32", "-e", "cpu", "-c", f"{room}/cache"]
        done = subprocess.run([*builder, *options], capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"the model builder of onnxruntime-genai failed: {done.stderr.strip().splitlines()[-1]}")
        model = genai.Model(f"{room}/onnx")
        return np.concatenate([_logits(genai, model, row[None]) for row in tokens])


def _logits(genai: Any, model: Any, tokens: np.ndarray) -> np.ndarray:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=tokens.shape[1] + 1, batch_size=1)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(tokens.astype(np.int32))
    return np.array(generator.get_output("logits"))
