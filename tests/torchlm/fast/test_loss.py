"""The gradient made in the forward pass, chunk by chunk, against autograd's of the plain loss of all logits."""

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig
from torchlm import loss
from torchlm.loss import cross_entropy, loss_sum
from torchlm.model import Decoder

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def losses_and_gradients(
    dtype: torch.dtype, positions: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", {"cpu": 1})
    monkeypatch.setattr(loss, "MIN_POSITIONS", positions)
    model, generator = Decoder(SHAPE, dtype), torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, SHAPE.vocab_size, (3, 7)))
    targets = tokens.roll(1, dims=1).clone()
    targets[1, 2:5] = -1
    total = loss_sum(model, tokens, targets) if fused else cross_entropy(model(tokens), targets).sum()
    (total * 3).backward()
    return [total.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("positions", [1, 4, 100])
def test_the_gradients_made_in_chunks_are_those_of_the_plain_form(
    dtype: torch.dtype, positions: int, monkeypatch: pytest.MonkeyPatch
):
    chunked, plain = (losses_and_gradients(dtype, positions, fused, monkeypatch) for fused in (True, False))
    for found, expected in zip(chunked, plain, strict=True):
        assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()
    assert (chunked[1] / 3 - plain[1]).abs().max() > TOLERANCE[dtype] * plain[1].abs().max()
