"""Linear layers merged and laid out for decoding against the plain model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lmcore.config import LoraConfig, ModelConfig
from lmcore.model.quantize import WeightFormat, dequantize, quantize
from torchlm.fast import linear as module
from torchlm.fast.decoding import for_decoding
from torchlm.lora import add_adapters
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
            copy = for_decoding(model)
            found, _ = copy.decode(tokens, copy.empty_cache(pads, 8))
            model.layers[0].self_attn.k_proj.weight.neg_()
            copy = for_decoding(model)
            wrong, _ = copy.decode(tokens, copy.empty_cache(pads, 8))
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
        assert (wrong - expected).abs().max() > tolerance * expected.abs().max()


@pytest.mark.parametrize("weights", ["full", "int8"])
def test_without_bfloat16_instructions_a_bfloat16_model_decodes_in_float32(
    weights: WeightFormat, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CPU_BFLOAT16", False)
    tokens, pads, found = torch.arange(12).view(2, 6), torch.tensor([0, 2]), []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            copy = for_decoding(decoder(dtype), weights)
            found.append(copy.decode(tokens, copy.empty_cache(pads, 8))[0])
        model = decoder(torch.bfloat16)
        own, _ = model.decode(tokens, model.empty_cache(pads, 8))
    assert torch.equal(*found)
    assert not torch.equal(own, found[0])


@pytest.mark.parametrize("changes", [{}, {"bias": True}, {"tie_embeddings": False}, {"attention_softcap": 3.0}])
@pytest.mark.parametrize("dim", [20, 32])
def test_int8_weights_are_the_model_of_what_they_stand_for(changes: dict, dim: int):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)):
        model = decoder(dtype, dim=dim, **changes)
        other = decoder(dtype, dim=dim, **{**changes, "tie_embeddings": False})
        weights = {name: p.detach() for name, p in model.named_parameters()}
        weights["lm_head.weight"] = model.head.detach()
        for name, p in weights.items():
            if p.ndim == 2 and "embed" not in name:
                array = dequantize(quantize(p.numpy()), np.dtype(str(p.dtype).removeprefix("torch.")))
                weights[name] = torch.from_numpy(array)
        other.load_state_dict(weights)
        for sequences in (1, 2, 6):  # each read in another way
            tokens, pads = torch.arange(6 * sequences).view(sequences, 6) % 61, torch.zeros(sequences, dtype=torch.long)
            with torch.inference_mode():
                expected, _ = other.decode(tokens, other.empty_cache(pads, 8))
                copy = for_decoding(model, "int8")
                found, _ = copy.decode(tokens, copy.empty_cache(pads, 8))
                full, _ = model.decode(tokens, model.empty_cache(pads, 8))
            assert (found - expected).abs().max() <= tolerance * expected.abs().max()
            if dtype != torch.bfloat16:
                assert (full - expected).abs().max() > 100 * tolerance * expected.abs().max()


def test_adapters_are_merged_into_int8_weights():
    lora = LoraConfig(rank=2, alpha=5.0, targets=["q_proj", "down_proj"])
    model = add_adapters(Decoder(replace(SHAPE, lora=lora)).eval())
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.5, generator=generator)
    tokens, pads = torch.arange(12).view(2, 6), torch.tensor([0, 2])
    with torch.inference_mode():
        expected, _ = model.decode(tokens, model.empty_cache(pads, 8))
        found, _ = for_decoding(model, "int8").decode(tokens, model.empty_cache(pads, 8))
        for block in model.layers:
            block.self_attn.q_proj.lora_B.weight.zero_()
        without, _ = model.decode(tokens, model.empty_cache(pads, 8))
    assert (found - expected).abs().max() < 0.1 * (without - expected).abs().max()
