"""llama.cpp, by way of our GGUF file in float32."""

import tempfile
from pathlib import Path

import numpy as np

from parity.convert.companions import Companions
from parity.convert.gguf import write_gguf
from parity.convert.huggingface import read_folder
from parity.convert.tensors import convert_tensors

__all__ = ["logits"]

F32 = 0
"""ggml's number of the type, for the KV cache, which is float16 by default."""


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the logits B T V of token ids B T.

    Raises:
        UserError: GGUF cannot hold the model or its tokenizer.
    """
    from llama_cpp import Llama

    read = read_folder(folder)
    weights = convert_tensors(read.weights, read.config.model, "hf", "torch")
    with tempfile.TemporaryDirectory() as room:
        path = Path(room, "model.gguf")
        write_gguf(path, folder.name, read.config.model, weights, read.tokenizer, Companions(), "f32")
        size = tokens.shape[1]
        model = Llama(str(path), n_ctx=size, type_k=F32, type_v=F32, n_threads=1, logits_all=True, verbose=False)
        answers = []
        for row in tokens:
            model.reset()
            model.eval(row.tolist())
            answers.append(np.array(model.scores[: len(row)], np.float32))
    return np.stack(answers)
