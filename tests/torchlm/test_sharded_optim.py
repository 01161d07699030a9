"""Every optimizer updates the parts of matrices as it updates the whole."""

from pathlib import Path
from typing import Any

import pytest

from lmcore.optim.table import OPTIMIZERS
from tests.launching import TOLERANCE
from tests.torchlm.sharded import measured

MESHES: dict[int, list[dict[str, Any]]] = {
    2: [{"fsdp": 2}, {"tensor": 2}],
    4: [{"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}, {"data": 2, "tensor": 2}],
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_optimizer_updates_parts_like_the_whole(count: int, tmp_path: Path):
    model = {"bias": True, "n_layers": 3}  # an odd number of matrices of one shape
    cases = [
        {"parallel": mesh, "optim": {"name": name, "clip": clip}, "model": model}
        for mesh in MESHES[count]
        for name, clip in zip(sorted(OPTIMIZERS), (0.0, 1.0, 0.1, 1.0, 1.0), strict=True)
    ]
    for case, found in zip(cases, measured(cases, tmp_path, count), strict=True):
        assert found["still"] < -1e-3
        names = ("first", "loss", "grad_norm", "valid", "params", "moments")
        assert max(found[name] for name in names) <= TOLERANCE, (case, found)
