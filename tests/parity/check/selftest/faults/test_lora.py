"""Faults of adapters do what their names say, and nothing else."""

import torch

from lmcore.config import LoraConfig, ModelConfig
from lmcore.model.lora import is_trained
from parity.check.selftest.faults import lora
from torchlm.lora import Adapter, LoraLinear, merge

LORA = LoraConfig(rank=2, alpha=6.0)


def layer(inputs: int, outputs: int) -> LoraLinear:
    made = LoraLinear(inputs, outputs, LORA)
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return made


def test_the_scale_is_missing():
    made = layer(3, 4)
    lora.unscaled(lambda self: None)(made)
    assert made.scale == 1 != LORA.scale


def test_a_and_b_change_places_where_they_fit():
    x = torch.ones(1, 4)
    square, flat = layer(4, 4), layer(4, 3)
    found = lora.swapped(Adapter.forward)(square, x)
    expected = x @ square.weight.T + 3 * x @ square.lora_B.weight @ square.lora_A.weight
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, square(x))
    torch.testing.assert_close(lora.swapped(Adapter.forward)(flat, x), flat(x), rtol=0, atol=0)


def test_the_base_is_trained_and_the_scale_missing_in_the_merge():
    model, name = ModelConfig(n_layers=1, dim=4, n_heads=1, lora=LORA), "layers.0.self_attn.q_proj.weight"
    assert not is_trained(model, name)
    assert lora.all_trained(is_trained)(model, name)
    params = {
        f"layers.0.self_attn.{target}.{leaf}": p
        for target in LORA.targets
        for leaf, p in layer(4, 4).named_parameters()
    }
    healthy, faulty = merge(params, model), lora.merged_unscaled(merge)(params, model)
    torch.testing.assert_close(healthy[name] - params[name], 3 * (faulty[name] - params[name]))
