"""The modules against plain formulas in NumPy and against the whole forward pass, at odd sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig
from torchlm.model import Decoder, RMSNorm, rotate

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=11)
GROUPED = replace(SHAPE, n_heads=6, n_kv_heads=2)


def decoder(config: ModelConfig = SHAPE, dtype: torch.dtype = torch.float64, remat: bool = False) -> Decoder:
    """A decoder whose random weights are large enough for differences to show."""
    model = Decoder(config, dtype, remat)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.5, generator=generator)
    return model


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def tokens(batch: int = 3, length: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, SHAPE.vocab_size, (batch, length)))


def close(found: torch.Tensor, expected: torch.Tensor | np.ndarray, tolerance: float = 1e-12) -> bool:
    expected = torch.as_tensor(expected)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_rmsnorm_is_its_formula_with_eps_inside_the_root():
    norm = RMSNorm(20, 1e-2).double()
    norm.weight.data = draws(20, seed=1)
    x = draws(2, 3, 20).numpy() * 0.1
    weight = norm.weight.detach().numpy()
    mean = (x**2).mean(-1, keepdims=True)
    assert close(norm(torch.from_numpy(x)).detach(), x / np.sqrt(mean + 1e-2) * weight)
    assert not close(norm(torch.from_numpy(x)).detach(), x / (np.sqrt(mean) + 1e-2) * weight, 1e-3)


def test_rotation_turns_half_split_pairs():
    x, angles = draws(2, 7, 5, 6), draws(1, 7, 3, seed=1)
    turned = rotate(x, angles.cos().tile(2), torch.cat([-angles.sin(), angles.sin()], dim=-1))
    plane = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * angles)[:, :, None]
    assert close(turned, torch.cat([plane.real, plane.imag], dim=-1))
    interleaved = torch.view_as_real(torch.complex(x[..., ::2], x[..., 1::2]) * torch.exp(1j * angles)[:, :, None])
    assert not close(turned, interleaved.flatten(-2), 1e-3)


def test_no_position_sees_a_later_one():
    model, ids = decoder(), tokens()
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % SHAPE.vocab_size
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(dim=-1).min() > 1e-3


ADDED = [replace(SHAPE, position=position) for position in ("learned", "sinusoidal", "none")]


@pytest.mark.parametrize("config", [SHAPE, GROUPED, replace(SHAPE, tie_embeddings=not SHAPE.tie_embeddings), *ADDED])
def test_cached_decoding_equals_the_whole_forward_pass(config: ModelConfig):
    model, ids = decoder(config), tokens()
    with torch.inference_mode():
        whole = model(ids)
        pads = torch.tensor([0, 2, 0])
        padded = torch.cat([torch.zeros(3, 2, dtype=torch.long), ids[:, :3]], dim=1)
        padded[1:2] = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids[1:2, :3]], dim=1)
        pads = torch.tensor([2, 2, 2])
        logits, cache = model.decode(padded, model.empty_cache(pads, 9))
        assert close(logits, whole[:, 2])
        for position in range(3, 7):
            logits, cache = model.decode(ids[:, position : position + 1], cache)
            assert close(logits, whole[:, position])
        assert not close(logits, whole[:, 5], 1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_named_as_in_hugging_face_llama(tied: bool):
    config = replace(SHAPE, tie_embeddings=tied)
    block = [
        *("input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        *("self_attn.o_proj.weight", "post_attention_layernorm.weight"),
        *("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
    ]
    layers = [f"layers.{i}.{name}" for i in range(2) for name in block]
    expected = ["embed_tokens.weight", *layers, "norm.weight", *([] if tied else ["lm_head.weight"])]
    assert list(Decoder(config).state_dict()) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_in_dtype_and_the_residual_stream_in_float32(dtype: torch.dtype):
    model, seen = decoder(dtype=dtype), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    assert model(tokens()).dtype == torch.float32
    proj = {kind for name, kind in seen.items() if name.endswith("_proj")}
    stream = ("embed_tokens", "embed_positions", "layers.0", "layers.1", "norm")
    rest = {kind for name, kind in seen.items() if name.endswith("layernorm") or name in stream}
    assert (proj, rest) == ({dtype}, {torch.float32})
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_bfloat16_is_near_float32_and_not_the_same():
    wide, narrow = decoder(dtype=torch.float32), decoder(dtype=torch.bfloat16)
    with torch.inference_mode():
        a, b = (torch.log_softmax(model(tokens()), -1) for model in (wide, narrow))
    assert 1e-6 < float((a.exp() * (a - b)).sum(-1).mean()) < 5e-2  # large random weights: far above a trained model's


def test_recomputation_gives_the_same_gradients_to_the_bit():
    gradients = []
    for remat in (False, True):
        model = decoder(replace(SHAPE, dropout=0.5), remat=remat).train()
        torch.manual_seed(0)
        model.hidden(tokens(), "native").square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    torch.manual_seed(1)
    model.zero_grad()
    model.hidden(tokens(), "native").square().mean().backward()
    assert not torch.equal(gradients[0][0], model.embed_tokens.weight.grad)
