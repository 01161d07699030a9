"""Every kind of model is split over the axis `tensor` without a difference, with and without sequence parallelism."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.launching import TOLERANCE
from tests.torchlm.sharded import measured
from torchlm.tensor_parallel import own_part, whole_last

MODELS: list[dict[str, Any]] = [
    {"bias": True, "qk_norm": True, "tie_embeddings": True},
    {"bias": True, "norm": "layernorm", "position": "learned", "norm_placement": "post", "mlp": "gelu"},
    {"vocab_size": 61, "position": "sinusoidal", "norm_placement": "sandwich", "mlp": "relu"},
    {"vocab_size": 61, "position": "none", "norm": "none", "mlp": "geglu", "previous_tokens": 2},
]
MESHES: dict[int, list[dict[str, Any]]] = {
    2: [{"tensor": 2}, {"tensor": 2, "sequence": True}],
    4: [{"fsdp": 2, "tensor": 2, "sequence": True}, {"data": 2, "fsdp": 2}, {"data": 2, "tensor": 2}],
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_kind_of_model_is_split_without_a_difference(count: int, tmp_path: Path):
    cases = [{"parallel": mesh, "model": model} for mesh in MESHES[count] for model in MODELS]
    cases += [
        case | {"model": {"dropout": 0.3}, "train": {"dropout_masks": "threefry"}} for case in cases[:: len(MODELS)]
    ]
    for case, found in zip(cases, measured(cases, tmp_path, count), strict=True):
        assert found["still"] < -1e-2
        names = ("first", "loss", "grad_norm", "valid", "params", "moments", "logits")
        assert max(found[name] for name in names) <= TOLERANCE, (case, found)


def test_what_is_whole_stays_as_it_is():
    x = torch.randn(2, 3)
    assert own_part(x) == (x, None)
    assert whole_last(x, None) is x
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert torch.equal(whole_last(x, dist.group.WORLD), x)
    finally:
        dist.destroy_process_group()
