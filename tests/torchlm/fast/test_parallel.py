"""A batch split over cores gives the loss and gradients of the whole batch."""

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig, TrainConfig
from torchlm.fast.parallel import SplitLoss
from torchlm.loss import loss_sum
from torchlm.model import Decoder

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=1, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("cores", [2, 3])
def test_the_parts_gradients_sum_to_the_batchs(dtype: torch.dtype, tolerance: float, cores: int):
    model = Decoder(SHAPE, dtype)
    for p in model.parameters():
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (6, 7)))
    targets = tokens.roll(1, 1)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return [loss.detach(), *torch.autograd.grad(loss * 3, list(model.parameters()))]

    split = SplitLoss(loss_sum, TrainConfig(batch_size=6, cpu_devices=cores))
    assert split.parts == cores
    expected = gradients(loss_sum(model, tokens, targets))
    part = gradients(loss_sum(model, tokens[: 6 - 6 // cores], targets[: 6 - 6 // cores]))
    for found, whole, less in zip(gradients(split(model, tokens, targets)), expected, part, strict=True):
        assert (found - whole).abs().max() <= tolerance * whole.abs().max()
        assert (less - whole).abs().max() > tolerance * whole.abs().max()


def test_a_process_splits_its_own_part_of_a_micro_batch():
    train = TrainConfig(batch_size=12, grad_accum=2, cpu_devices=4)
    assert [SplitLoss(loss_sum, train, count).parts for count in (1, 2, 6)] == [3, 3, 1]
