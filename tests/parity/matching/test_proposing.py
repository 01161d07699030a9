"""A row is certain only where words, values or a run decide; everything else says what it may also be."""

import numpy as np

from parity.matching.proposing import leaves, propose
from parity.matching.values import equal_leaves

RNG = np.random.default_rng(0)


def proposed(jax: dict, torch: dict, values: bool = False):
    sides = [
        {n: RNG.standard_normal(a) if isinstance(a, tuple) else a for n, a in side.items()} for side in (jax, torch)
    ]
    found = leaves(*sides, {}, {})
    return propose(found, equal_leaves(found.jax, found.torch, *sides) if values else {})


def reasons(found) -> dict[str, str]:
    return {path: row.reason for row in found.rows for path in row.jax}


def test_words_make_certain_and_squares_do_not():
    found = proposed(
        {"up.kernel": (4, 8), "up.bias": (8,), "q.kernel": (4, 4), "q.bias": (4,), "k.bias": (4,)},
        {"up.weight": (8, 4), "up.bias": (8,), "q.weight": (4, 4), "q.bias": (4,), "k.bias": (4,)},
    )
    assert reasons(found)["up.kernel"] == reasons(found)["q.bias"] == ""
    assert "its shape leaves a choice: transpose (1, 0), as 1 of its kind; or as it is" in reasons(found)["q.kernel"]


def test_a_layout_follows_others_of_its_kind():
    jax = {"a.weight": (8, 4), "b.weight": (4, 4)}
    found = proposed(jax, jax)
    assert [row.change for row in found.rows] == [None, None]
    assert "as it is, as 1 of its kind" in reasons(found)["b.weight"]


def test_norms_without_words_are_uncertain():
    found = proposed({"LayerNorm_0.scale": (4,), "LayerNorm_1.scale": (4,)}, {"x.weight": (4,), "y.weight": (4,)})
    assert {row.jax[0]: row.torch[0] for row in found.rows} == {
        "LayerNorm_0.scale": "x.weight",
        "LayerNorm_1.scale": "y.weight",
    }
    assert all("it may also be" in reason for reason in reasons(found).values())


def test_values_decide_a_square_and_an_order():
    one, other = RNG.standard_normal((2, 4, 4))
    found = proposed(
        {"Dense_0.kernel": one, "Dense_1.kernel": other}, {"x.weight": other, "y.weight": one.T}, values=True
    )
    assert {row.jax[0]: row.value for row in found.rows} == {
        "Dense_0.kernel": ("y.weight", (1, 0)),
        "Dense_1.kernel": "x.weight",
    }
    assert set(reasons(found).values()) == {""}


def test_what_one_side_alone_has_is_in_no_row():
    found = proposed({"fc.kernel": (4, 8), "extra.kernel": (7, 7)}, {"fc.weight": (8, 4), "other.weight": (3, 2)})
    assert (found.only_jax, found.only_torch) == (["extra.kernel"], ["other.weight"])


def test_a_head_that_jax_ties_is_a_copy():
    found = proposed({"embed.embedding": (9, 4)}, {"embed.weight": (9, 4), "lm_head.weight": (9, 4)})
    [row] = found.rows
    assert (row.torch, repr(row.change)) == (("embed.weight", "lm_head.weight"), "copies(2)")
    assert "JAX has one" in row.reason
