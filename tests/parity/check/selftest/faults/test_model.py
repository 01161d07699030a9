"""Faults of the model do what their names say, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import torchlm.loss
from lmcore.config import ModelConfig
from lmcore.model.init import initial_weight
from parity.check.selftest.faults import model
from parity.convert.names import convert_names, table
from torchlm.model import RMSNorm, rotate

RNG = np.random.default_rng(0)


def test_interleaved_pairs_are_those_of_gpt_j():
    angles = np.array([0.3, 1.1])
    cos, sin = np.cos(angles), np.sin(angles)
    x = RNG.standard_normal((1, 1, 1, 4))
    tables = torch.tensor(np.tile(cos, 2))[None, None], torch.tensor(np.concatenate([-sin, sin]))[None, None]
    found = model.interleaved(rotate)(torch.tensor(x), *tables)
    expected = np.empty_like(x)
    expected[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    expected[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_query_heads_attend_to_the_next_key_head_in_turn():
    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.repeat(v, q.shape[2] // k.shape[2], axis=2)  # each query head's value head, as n // G

    value = np.array([10.0, 20.0]).reshape(1, 1, 2, 1)
    found = model.tiled_heads(attend)(np.zeros((1, 1, 6, 1)), value, value)
    assert found[0, 0, :, 0].tolist() == [10, 20, 10, 20, 10, 20]


def test_a_norm_with_another_eps_and_one_after_its_weight():
    x, weight = RNG.standard_normal((2, 3)), np.array([1.0, 2.0, 3.0])
    norm = RMSNorm(3, 0.1)
    norm.weight.data = torch.tensor(weight)
    rms = np.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(norm(torch.tensor(x)).detach(), x / rms * weight, rtol=1e-12)
    weighted = np.sqrt(((x * weight) ** 2).mean(-1, keepdims=True) + 0.1)
    found = model.weight_before_norm(RMSNorm.forward)(norm, torch.tensor(x)).detach()
    np.testing.assert_allclose(found, x * weight / weighted, rtol=1e-12)
    init = RMSNorm.__init__
    model.eps_times_ten(init)(norm, 3, 0.1)
    assert norm.eps == pytest.approx(1.0)


def test_losses_are_averaged_by_sequence_and_ignored_targets_count():
    tokens, targets = torch.zeros(2, 3), torch.tensor([[1, 2, 3], [4, -1, -1]])

    def total(_: object, tokens: torch.Tensor, targets: torch.Tensor, key: object = None) -> torch.Tensor:
        return torch.where(targets == -1, 0, targets).sum().double()

    assert float(total(None, tokens, targets)) == 10
    assert float(model.mean_of_means(total)(None, tokens, targets)) == (6 / 3 + 4 / 1) / 2 * 4
    logits = torch.zeros(1, 3, 5)
    healthy = torchlm.loss.cross_entropy(logits, torch.tensor([[1, -1, -1]]))
    counted = model.counts_ignored(torchlm.loss.cross_entropy)(logits, torch.tensor([[1, -1, -1]]))
    assert float(healthy.sum()) == pytest.approx(np.log(5))
    assert float(counted.sum()) == pytest.approx(3 * np.log(5))


def test_only_the_output_kernel_is_not_transposed():
    config = ModelConfig(vocab_size=7, dim=6, n_layers=1, n_heads=3, n_kv_heads=1, ffn_dim=5)
    name = "layers.0.self_attn.o_proj.weight"
    healthy = convert_names(arrays(config), config, "jax", "torch")
    faulty = model.no_transpose(convert_names)(arrays(config), config, "jax", "torch")
    assert {n for n in healthy if not np.array_equal(healthy[n], faulty[n])} == {name}
    np.testing.assert_array_equal(faulty[name], arrays(config)["layers.0.self_attn.o_proj.kernel"])


def arrays(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {row.jax: rng.standard_normal(row.shape) for row in table(config)}


def test_only_projections_onto_the_residual_stream_start_larger():
    config = replace(ModelConfig(), n_layers=8)
    for name, factor in (("layers.0.mlp.down_proj.kernel", 4), ("layers.0.mlp.up_proj.kernel", 1)):
        healthy = initial_weight(0, name, (4, 4), config)
        found = model.unscaled_outputs(initial_weight)(0, name, (4, 4), config)
        np.testing.assert_allclose(found, factor * healthy, rtol=1e-6)


def test_a_config_that_a_function_receives_is_changed():
    assert model.changed(dim=48)(lambda config, more: (config.dim, more))(ModelConfig(dim=24), 1) == (48, 1)
    assert model.gelu({"swiglu": 1, "geglu": 2}) == {"swiglu": 2, "geglu": 2}
    assert model.rounded(lambda x: x + 2**-30)(torch.ones(1, dtype=torch.float64)).item() == 1, (
        "float32 has no such digit"
    )
