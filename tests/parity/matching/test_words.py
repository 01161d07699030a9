"""Names of libraries that mean the same have the same roles, and numbers count among those at their place."""

import pytest

from parity.matching.words import Number, components, numbers, read


def roles(name: str, in_block: bool = True) -> frozenset[str]:
    return read(components(name), in_block).roles


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("attention.query.kernel", "self_attn.q_proj.weight", {"attn", "self", "q", "weight"}),
        ("MultiHeadDotProductAttention_0.out.bias", "attn.c_proj.bias", {"attn", "self", "o", "bias"}),
        ("MlpBlock_3.wi.kernel", "mlp.c_fc.weight", {"mlp", "up", "weight"}),
        ("mlp.wo.kernel", "mlp.c_proj.weight", {"mlp", "down", "weight"}),
        ("mlp.wi_0.kernel", "mlp.gate_proj.weight", {"mlp", "gate", "weight"}),
        ("pre_attention_norm.scale", "input_layernorm.weight", {"norm", "n1", "weight"}),
        ("encoder_decoder_attention.key.kernel", "EncDecAttention.k.weight", {"attn", "cross", "k", "weight"}),
        ("Transformer.encoder_norm.scale", "norm_f.weight", {"norm", "weight"}),
        ("batch_stats.bn.mean", "bn.running_mean", {"norm", "mean"}),
        ("mlp/~/linear_0.w", "linear.weight", {"weight"}),
    ],
)
def test_names_of_libraries_have_the_same_roles(one: str, other: str, common: set[str]):
    assert common <= roles(one) & roles(other)


def test_roles_that_exclude_each_other_are_apart():
    assert "k" not in roles("attn.query.kernel")
    assert "self" not in roles("crossattention.query.kernel")
    assert roles("embeddings.position_embeddings.weight") & {"embed", "pos", "type"} == {"pos"}
    assert "nf" not in roles("norm_f.weight")
    assert "nf" in roles("norm_f.weight", in_block=False)


def test_an_output_is_a_head_outside_of_blocks_alone():
    assert "head" in roles("output.weight", in_block=False)
    assert "down" in roles("layer.output.dense.weight")
    assert "o" in roles("attention.output.dense.weight")


def test_numbers_count_among_their_siblings():
    names = [
        "layer1.0.conv1.weight",
        "layer1.1.conv1.weight",
        "layer1.1.conv2.weight",
        "layer2.0.conv1.weight",
        "fc7.weight",
    ]
    found = numbers([components(name) for name in names])
    assert found[2] == [Number(0, 2, False), Number(1, 2, False), Number(1, 2, True)]
    assert found[4] == []
