"""Stacks and fused matrices are cut where the other side has their parts apart, and only there."""

import numpy as np

from parity.matching.leaves import cut_parts, cut_stacks, leaves_of


def made(shapes: dict):
    return leaves_of(shapes, {}, {})


def test_stacked_layers_are_cut_into_views():
    blocks = {f"h.{i}.{n}": s for i in range(3) for n, s in (("fc.weight", (6, 4)), ("fc.bias", (6,)))}
    stacked = made({"layers.fc.kernel": (3, 4, 6), "layers.fc.bias": (3, 6), "norm.scale": (4,)})
    cut = cut_stacks(stacked, made(blocks | {"norm.weight": (4,)}))
    assert [(leaf.source, leaf.parts, leaf.shape) for leaf in cut[:2]] == [
        ("norm.scale", ("norm", "scale"), (4,)),
        ("layers.fc.kernel", ("layers", "0", "fc", "kernel"), (4, 6)),
    ]
    assert len(cut) == 7
    array = np.zeros((3, 4, 6))
    cut[2].of(array)[...] = 1
    assert array.sum(axis=(1, 2)).tolist() == [0, 24, 0]


def test_layers_apart_on_both_sides_stay():
    leaves = made({"0.kernel": (3, 3), "1.kernel": (3, 3), "2.kernel": (3, 3)})
    assert cut_stacks(leaves, made({f"{i}.weight": (3, 3) for i in range(3)})) == leaves


def test_queries_keys_and_values_are_cut_in_their_proportions():
    apart = made({"attn.query.kernel": (8, 4, 2), "attn.key.kernel": (8, 2, 2), "attn.value.kernel": (8, 2, 2)})
    cut = cut_parts(made({"attn.qkv_proj.weight": (16, 8), "attn.out.weight": (8, 8)}), apart, reverse=True)
    assert [leaf.shape for leaf in cut] == [(8, 8), (4, 8), (4, 8), (8, 8)]
    assert [sorted(leaf.extra) for leaf in cut] == [["q"], ["k"], ["v"], []]
    fused = made({"attn.c_attn.weight": (24, 8)})
    assert cut_parts(fused, made({"attn.qkv.kernel": (8, 24)}), reverse=True) == fused


def test_gates_of_an_lstm_and_a_gru_are_cut():
    torch = made({"rnn.weight_ih_l0": (20, 3), "rnn.bias_ih_l0": (20,)})
    cut = cut_parts(torch, made({f"cell.i{g}.kernel": (3, 5) for g in "ifgo"}), reverse=True)
    assert [sorted(leaf.extra) for leaf in cut] == [["ii"], ["if"], ["ig"], ["io"], []]
    cut = cut_parts(
        made({"rnn.weight_hh_l0": (15, 5)}), made({f"cell.h{g}.kernel": (5, 5) for g in "rzn"}), reverse=True
    )
    assert [leaf.cuts[0].start for leaf in cut] == [0, 5, 10]
