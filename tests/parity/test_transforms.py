"""Each transform gives torch's layout and the way back, and says what does not fit it."""

import numpy as np
import pytest

from parity.transforms import (
    Transform,
    chain,
    concat,
    copies,
    flip,
    identity,
    reorder,
    reshape,
    shared,
    split,
    stack,
    transpose,
    unstack,
)

RNG = np.random.default_rng(0)
A = RNG.standard_normal((6, 4))
B, C = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 4))

THERE = [
    (identity(), [A], [A]),
    (transpose(), [A], [A.T]),
    (transpose(1, 0), [A, B], [A.T, B.T]),
    (reshape(2, 3, -1), [A], [A.reshape(2, 3, 4)]),
    (flip(0), [A], [A[::-1]]),
    (split(3), [A], [A[:2], A[2:4], A[4:]]),
    (split([1, 3], axis=1), [A], [A[:, :1], A[:, 1:]]),
    (concat(), [B, A, C], [np.concatenate([B, A, C])]),
    (concat(axis=1), [B, C], [np.concatenate([B, C], axis=1)]),
    (stack(axis=-1), [B, C], [np.stack([B, C], axis=-1)]),
    (unstack(axis=1), [B], list(B.T)),
    (reorder(2, 0, 1), [A, B, C], [C, A, B]),
    (chain(reshape(2, 3, 4), transpose(2, 0, 1), unstack()), [A], list(A.reshape(2, 3, 4).transpose(2, 0, 1))),
    (chain(transpose(), concat(), flip(1)), [B, C], [np.concatenate([B.T, C.T])[:, ::-1]]),
    (chain(), [A, B], [A, B]),
]


@pytest.mark.parametrize(("transform", "jax", "torch"), THERE, ids=lambda value: str(value)[:40])
def test_values_go_to_torchs_layout_and_back(transform: Transform, jax: list[np.ndarray], torch: list[np.ndarray]):
    bound = transform.bind(tuple(array.shape for array in jax))
    assert bound.shapes == tuple(array.shape for array in torch)
    for found, expected in zip(bound.forward(jax), torch, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(bound.inverse(torch), jax, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_moves_values_is_its_own_adjoint():
    """Gradients come back by the inverse: ⟨forward(a), b⟩ = ⟨a, inverse(b)⟩."""
    for transform, jax, _ in THERE:
        bound = transform.bind(tuple(array.shape for array in jax))
        other = [RNG.standard_normal(shape) for shape in bound.shapes]
        there = sum(float((x * y).sum()) for x, y in zip(bound.forward(jax), other, strict=True))
        back = sum(float((x * y).sum()) for x, y in zip(jax, bound.inverse(other), strict=True))
        assert there == pytest.approx(back), transform


def test_gradients_of_copies_are_summed_and_shared_values_must_be_equal():
    several = copies(3).bind((B.shape,))
    assert [array is B for array in several.forward([B])] == [True] * 3
    np.testing.assert_array_equal(several.inverse([B, C, C])[0], B + C + C)
    one = shared().bind((B.shape, B.shape))
    assert shared().shares
    assert chain(shared(), transpose()).shares
    np.testing.assert_array_equal(one.forward([B, B.copy()])[0], B)
    with pytest.raises(ValueError, match="found different values, expected equal ones"):
        one.forward([B, C])


@pytest.mark.parametrize(
    ("transform", "shapes", "message"),
    [
        (transpose(0, 2), [(2, 3)], r"found axes \(0, 2\), expected an order of the 2"),
        (reshape(5, -1), [(2, 3)], "cannot reshape"),
        (split(4), [(6, 4)], "an axis of 6 cannot be split into 4 equal parts"),
        (split([1, 2]), [(6, 4)], r"found parts \[1, 2\], expected a sum of 6"),
        (split(2), [(6, 4), (6, 4)], "found 2 arrays, expected 1"),
        (concat(), [(2, 3), (2, 4)], "must match exactly"),
        (stack(), [(2, 3), (2, 4)], "same shape"),
        (reorder(0, 0), [(2,), (2,)], r"found the order \(0, 0\), expected one of the 2 arrays"),
        (shared(), [(2, 3), (3, 2)], r"found shapes \[2, 3\], \[3, 2\], expected equal ones"),
        (chain(reshape(6), transpose(1, 0)), [(2, 3)], r"transpose\(1, 0\) of \[6\]: found axes \(1, 0\)"),
    ],
)
def test_what_does_not_fit_is_said(transform: Transform, shapes: list[tuple[int, ...]], message: str):
    with pytest.raises(ValueError, match=message):
        transform.bind(tuple(shapes))
