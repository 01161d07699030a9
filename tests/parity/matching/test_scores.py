"""Words, numbers and modules decide which leaf is which; what is known decides before them."""

import numpy as np

from parity.matching.leaves import leaves_of
from parity.matching.scores import pair


def paired(jax: dict, torch: dict, known: np.ndarray | None = None) -> dict[str, str]:
    sides = [leaves_of(side, {}, {}) for side in (jax, torch)]
    return {sides[0][i].source: sides[1][k].source for i, k in pair(*sides, known).pairs.items()}


D = (8,)


def test_roles_tell_names_of_two_libraries_apart():
    jax = {f"attention.{n}.bias": D for n in ("query", "key", "value", "out")} | {"mlp.wo.bias": D}
    torch = {f"self_attn.{n}.bias": D for n in ("v_proj", "k_proj", "q_proj", "o_proj")} | {"mlp.fc2.bias": D}
    assert paired(jax, torch) == {
        "attention.query.bias": "self_attn.q_proj.bias",
        "attention.key.bias": "self_attn.k_proj.bias",
        "attention.value.bias": "self_attn.v_proj.bias",
        "attention.out.bias": "self_attn.o_proj.bias",
        "mlp.wo.bias": "mlp.fc2.bias",
    }


def test_layers_are_paired_by_number():
    jax = {f"layers_{i}.x.bias": D for i in range(12)}
    assert paired(jax, {f"h.{i}.y.bias": D for i in range(12)}) == {
        f"layers_{i}.x.bias": f"h.{i}.y.bias" for i in range(12)
    }


def test_modules_that_correspond_decide_where_words_do_not():
    jax = {"zig.kernel": (3, 4), "zig.bias": D, "zag.kernel": (5, 6), "zag.bias": D}
    torch = {"foo.weight": (6, 5), "foo.bias": D, "bar.weight": (4, 3), "bar.bias": D}
    assert paired(jax, torch)["zig.bias"] == "bar.bias"


def test_a_weight_is_no_bias_and_a_known_pair_stays():
    assert paired({"a.scale": D}, {"a.bias": D}) == {}
    assert paired({"a.scale": D}, {"a.bias": D}, np.ones((1, 1))) == {"a.scale": "a.bias"}
