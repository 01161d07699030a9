"""The summed loss, whole and in chunks, with targets that do not count."""

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig
from torchlm import loss
from torchlm.loss import cross_entropy, loss_sum
from torchlm.model import Decoder

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)


def decoder() -> Decoder:
    model = Decoder(SHAPE, torch.float64)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.5, generator=generator)
    return model


def tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, SHAPE.vocab_size, (3, 7)))


def close(found: torch.Tensor, expected: torch.Tensor | np.ndarray, tolerance: float = 1e-12) -> bool:
    expected = torch.as_tensor(expected)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_cross_entropy_is_its_formula_and_ignored_targets_cost_nothing():
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 11)))
    targets = torch.tensor([[1, -1, 10], [0, 5, -1]])
    chances = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(chances, targets.numpy()[..., None].clip(0), -1)[..., 0])
    assert close(cross_entropy(logits, targets), np.where(targets == -1, 0, expected))
    assert not close(cross_entropy(logits, targets), expected, 1e-3)


def test_evaluation_in_chunks_gives_the_same_sum(monkeypatch: pytest.MonkeyPatch):
    model, targets = decoder(), tokens().roll(1, dims=1)
    trained = loss_sum(model, tokens(), targets)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", {"cpu": 1})
    monkeypatch.setattr(loss, "MIN_POSITIONS", 4)
    with torch.inference_mode():
        assert close(loss_sum(model, tokens(), targets), trained.detach())


def test_the_loss_is_the_sum_over_the_logits_of_the_whole_pass():
    model = decoder()
    targets = tokens().roll(1, dims=1)
    assert close(loss_sum(model, tokens(), targets), cross_entropy(model(tokens()), targets).sum())
    assert not close(loss_sum(model, tokens(), targets), cross_entropy(model(tokens()), targets).mean(), 1e-3)
