"""The epsilon of the norms is the documented one, changes no norm that occurs, and survives being squared."""

import numpy as np
import pytest

from lmcore.optim.epsilon import norm_epsilon


@pytest.mark.parametrize(("dtype", "documented"), [(np.float32, 1e-15), (np.float64, 1.5e-150)])
def test_it_is_lost_beside_a_norm_and_its_square_is_a_normal_number(dtype: type, documented: float):
    eps = dtype(norm_epsilon(np.dtype(dtype)))
    assert eps == pytest.approx(documented, rel=0.1, abs=0)
    assert eps * eps >= np.finfo(dtype).tiny
    smallest = eps / np.finfo(dtype).eps * 4
    assert smallest + eps == smallest
    assert dtype(1e-2) * eps + eps != eps, "beside a number of its own size it counts"
