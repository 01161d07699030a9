"""Models in which every part shows, as a Hugging Face folder and as torchlm's logits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmcore.config import Config, ModelConfig, RopeScaling, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from parity.check.witnesses import WITNESSES
from parity.convert.huggingface import write_folder
from parity.convert.names import convert_names, numpy_to_torch, table
from torchlm.model import Decoder

MODEL = ModelConfig(
    vocab_size=310, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, max_seq_len=64, rope_theta=300
)
SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_seq_len=16)
MODELS = {
    "tied": MODEL,
    "untied": replace(MODEL, tie_embeddings=False, n_kv_heads=4),
    "eps": replace(MODEL, norm_eps=0.1),
    "llama3": replace(MODEL, rope_scaling=SCALING),
    "bias": replace(MODEL, bias=True),
}
TOKENS = np.random.default_rng(5).integers(0, 300, (2, 33), dtype=np.int32)


def difference(name: str, model: ModelConfig, folder: Path, other: ModelConfig | None = None) -> float:
    """Largest difference of a witness's logits from torchlm's, of the largest logit; `other` is torchlm's model."""
    rng = np.random.default_rng(1)
    scales = {row.torch: 0.2 if len(row.shape) > 1 else 1.0 for row in table(model)}
    weights = {
        row.torch: (scales[row.torch] * rng.standard_normal(row.shape_in("torch"))).astype(np.float32)
        for row in table(model)
    }
    tokenizer = tokenizers.train(TokenizerConfig(kind="bytes"), [])
    write_folder(folder, Config(model=model), convert_names(weights, model, "torch", "hf"), tokenizer)
    decoder = Decoder(other or model, torch.float32)
    decoder.load_state_dict({key: numpy_to_torch(array) for key, array in weights.items()})
    with torch.inference_mode():
        ours = decoder.eval()(torch.from_numpy(TOKENS)).numpy()
    theirs = WITNESSES[name].logits(folder, TOKENS)
    assert theirs.shape == ours.shape
    assert theirs.dtype == np.float32
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., float]:
    """Compares a witness with torchlm; it is skipped where it is not installed."""

    def compared(name: str, model: str, other: ModelConfig | None = None) -> float:
        if missing := WITNESSES[name].missing:
            pytest.skip(f"{missing} is not installed: pip install 'twinlm[witness]'")
        return difference(name, MODELS[model], tmp_path, other)

    return compared
