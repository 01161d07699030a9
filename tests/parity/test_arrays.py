"""The smallest change of weights."""

import ml_dtypes
import numpy as np

from parity.arrays import moved_by_one_ulp, scaled_matrix


def test_the_noise_is_exactly_one_ulp_and_of_both_signs():
    params = {"w": np.random.default_rng(0).standard_normal((30, 30)).astype(np.float32)}
    moved = moved_by_one_ulp(params, 0)["w"]
    apart = moved.view(np.int32) - params["w"].view(np.int32)
    assert set(np.unique(apart)) == {-1, 1}
    assert not np.array_equal(moved, moved_by_one_ulp(params, 1)["w"])


def test_an_ulp_of_bfloat16_changes_its_rounding():
    weights = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    moved = moved_by_one_ulp({"w": weights}, 0, "bfloat16")["w"]
    assert moved.dtype == np.float32
    np.testing.assert_allclose(np.abs(moved / weights - 1), 2.0**-8, rtol=1e-3)
    small = moved_by_one_ulp({"w": weights}, 0)["w"]
    changed = [np.mean(w.astype(ml_dtypes.bfloat16) != weights.astype(ml_dtypes.bfloat16)) for w in (moved, small)]
    assert changed[0] > 0.7
    assert changed[1] < 0.01


def test_a_matrix_is_scaled_and_one_of_zeros_is_drawn():
    rng, matrix = np.random.default_rng(0), np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(scaled_matrix(matrix, 4.0, rng), 4 * matrix)
    drawn = scaled_matrix(0 * matrix, 4.0, rng)
    assert (drawn.dtype, drawn.all(), np.abs(drawn).max() <= 0.5) == (np.float32, True, True)
