"""The epsilon that optax and torch use differently; beside the table, which `--help` reads without NumPy."""

import numpy as np

__all__ = ["norm_epsilon"]


def norm_epsilon(dtype: np.dtype) -> float:
    """Return the epsilon of two norms: Muon's, before it orthogonalizes a matrix, and Adafactor's root mean square.

    optax adds it, or its square, to the norm, where torch takes the maximum of the two. It is therefore so small that
    adding it changes no norm that occurs, and still large enough where squares underflow: 1e-15 in float32, 1.5e-150
    in float64.
    """
    return 1e4 * float(np.sqrt(np.finfo(dtype).tiny))
