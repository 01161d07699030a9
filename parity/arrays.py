"""Arrays by name, and the smallest change of them: what every comparison computes with, without either framework."""

from typing import Literal

import numpy as np

__all__ = ["Arrays", "moved_by_one_ulp", "scaled_matrix"]

Arrays = dict[str, np.ndarray]
"""Name -> array, in order."""


def moved_by_one_ulp(
    params: Arrays, seed: int, precision: Literal["bfloat16", "float16", "float32", "float64"] = "float32"
) -> Arrays:
    """Return every weight moved to the next representable number, up or down at random.

    Args:
        params: real weights by name.
        seed: of the directions.
        precision: of the matmuls; for the 16-bit types the next number is theirs, else that of the array's own type.
    """
    rng = np.random.default_rng(seed)
    moved = {}
    step = {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(precision)
    for name, value in params.items():
        up = rng.random(value.shape) < 0.5
        if step is not None:
            moved[name] = (value * np.where(up, 1 + step, 1 - step)).astype(value.dtype)
        else:
            moved[name] = np.nextafter(value, np.where(up, np.inf, -np.inf).astype(value.dtype))
    return moved


def scaled_matrix(matrix: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Return a matrix scaled up; one of zeros, as an adapter's B is at first, is drawn instead, so that faults show.

    Args:
        matrix: of a model's weights.
        scale: factor.
        rng: draws the values in place of zeros.
    """
    return (matrix * scale if matrix.any() else rng.uniform(-0.5, 0.5, matrix.shape)).astype(matrix.dtype)
