"""FLOPs per token counted by hand and by its definition, and peaks found by the names that devices give themselves."""

from dataclasses import replace

import pytest

from lmcore.config import ModelConfig
from lmcore.model.flops import flops_per_token, peak_flops

MODEL = ModelConfig(vocab_size=11, dim=10, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=7)


def test_a_small_model_counted_by_hand():
    projections = 10 * 30 + 10 * 6 + 10 * 6 + 30 * 10  # q, k, v, o
    feed_forward = 3 * 10 * 7  # gate, up, down
    weights = 2 * (projections + feed_forward) + 11 * 10  # the head, tied or not
    # Scores and their use: 2 products of 30 multiply-adds for each visible key, half of 8 on average; forward + 2 back.
    attention = 2 * 3 * (2 * 2 * 30) * 8 / 2
    assert flops_per_token(MODEL, 8) == 6 * weights + attention == 14_700


def test_tying_changes_nothing_and_everything_else_does():
    assert flops_per_token(replace(MODEL, tie_embeddings=False), 8) == flops_per_token(MODEL, 8)
    for change in ({"vocab_size": 12}, {"n_kv_heads": 5}, {"head_dim": 8}, {"ffn_dim": 8}, {"n_layers": 3}):
        assert flops_per_token(replace(MODEL, **change), 8) > flops_per_token(MODEL, 8)
    assert flops_per_token(MODEL, 9) - flops_per_token(MODEL, 8) == 6 * 2 * 30


def test_only_what_is_multiplied_counts_in_the_variants():
    for same in ({"mlp": "geglu"}, {"position": "learned"}, {"norm": "layernorm", "bias": True, "qk_norm": True}):
        assert flops_per_token(replace(MODEL, **same), 8) == flops_per_token(MODEL, 8)
    for mlp in ("gelu", "relu"):  # no gate: a matrix less in each of two layers
        assert flops_per_token(replace(MODEL, mlp=mlp), 8) == flops_per_token(MODEL, 8) - 6 * 2 * 10 * 7


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),  # v5e, as jax names it
        ("TPU v5", 459),  # v5p
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
    ],
)
def test_known_devices_have_their_peak(device: str, tera: int):
    assert peak_flops(device) == tera * 1e12


@pytest.mark.parametrize("device", ["cpu", "", "Apple M4", "NVIDIA T400 4GB", "NVIDIA B300", "AMD Instinct MI300X"])
def test_other_devices_have_none_rather_than_anothers(device: str):
    assert peak_flops(device) is None
