"""Linear layers merged and laid out for decoding against the plain model."""

from dataclasses import replace

import pytest
import torch

from lmcore.config import ModelConfig
from torchlm.fast.decoding import for_decoding
from torchlm.model import Decoder

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=16)


def decoder(dtype: torch.dtype, **changes: object) -> Decoder:
    model = Decoder(replace(SHAPE, **changes), dtype).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.parametrize("mlp", ["swiglu", "geglu", "gelu", "relu"])
@pytest.mark.parametrize("changes", [{}, {"bias": True, "qk_norm": True}, {"tie_embeddings": False}])
def test_merged_matmuls_are_the_same_model(mlp: str, changes: dict):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        model = decoder(dtype, mlp=mlp, **changes)
        tokens, pads = torch.arange(12).view(2, 6), torch.tensor([0, 2])
        with torch.inference_mode():
            expected, _ = model.decode(tokens, model.empty_cache(pads, 8))
            found, _ = for_decoding(model).decode(tokens, model.empty_cache(pads, 8))
            model.layers[0].self_attn.k_proj.weight.neg_()
            wrong, _ = for_decoding(model).decode(tokens, model.empty_cache(pads, 8))
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
        assert (wrong - expected).abs().max() > tolerance * expected.abs().max()
