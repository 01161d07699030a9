"""The mesh that a config asks for, what cannot be split over it, and how each parameter is."""

from dataclasses import replace

import pytest

from lmcore.config import Config, LoraConfig, ModelConfig, ParallelConfig, TrainConfig
from lmcore.errors import UserError
from lmcore.run.mesh import MeshShape, check_mesh, mesh_shape, split_axes

CONFIG = Config(
    model=ModelConfig(vocab_size=512, dim=64, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=32),
    train=TrainConfig(batch_size=8, grad_accum=2),
)


@pytest.mark.parametrize(
    ("parallel", "devices", "expected"),
    [
        (ParallelConfig(), 1, MeshShape()),
        (ParallelConfig(), 8, MeshShape(data=8)),
        (ParallelConfig(fsdp=2, tensor=2), 8, MeshShape(2, 2, 2)),
        (ParallelConfig(data=1, fsdp=-1), 8, MeshShape(fsdp=8)),
        (ParallelConfig(data=2, fsdp=1, tensor=-1), 8, MeshShape(2, 1, 4)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(parallel: ParallelConfig, devices: int, expected: MeshShape):
    assert mesh_shape(parallel, devices) == expected
    assert expected.size == devices


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(fsdp=3), "parallel: found fsdp 3, expected a divisor of the 8 processes of this run; change"),
        (ParallelConfig(data=2, fsdp=2), "parallel: found data 2 × fsdp 2, expected the 8 processes of this run"),
        (ParallelConfig(data=1), "parallel: found one device, expected the 8 processes"),
    ],
)
def test_axes_that_do_not_multiply_to_the_devices_are_refused(parallel: ParallelConfig, message: str):
    with pytest.raises(UserError) as caught:
        mesh_shape(parallel, 8, "processes")
    assert str(caught.value).startswith(message)


def test_no_two_axes_take_what_is_left():
    with pytest.raises(UserError, match=r"parallel.fsdp: found -1, expected a number, since parallel.data is -1"):
        ParallelConfig(fsdp=-1)
    with pytest.raises(UserError, match=r"parallel.tensor: found 0, expected at least 1"):
        ParallelConfig(tensor=0)


@pytest.mark.parametrize(
    ("mesh", "sequence", "message"),
    [
        (MeshShape(fsdp=3), False, "parallel.fsdp: found 3, expected a divisor of model.dim = 64"),
        (MeshShape(tensor=3), False, "parallel.tensor: found 3, expected a divisor of model.n_heads = 4"),
        (MeshShape(tensor=4), False, "parallel.tensor: found 4, expected a divisor of model.n_kv_heads = 2"),
        (MeshShape(data=2, fsdp=4), False, "train.batch_size: found 8 (4 sequences at a time with train.grad_accum 2)"),
    ],
)
def test_what_cannot_be_split_is_named(mesh: MeshShape, sequence: bool, message: str):
    with pytest.raises(UserError) as caught:
        check_mesh(CONFIG, mesh)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("axis", "mesh"), [("fsdp", MeshShape(fsdp=2)), ("tensor", MeshShape(2, 1, 2))])
def test_adapters_are_not_split(axis: str, mesh: MeshShape):
    adapted = replace(CONFIG, model=replace(CONFIG.model, lora=LoraConfig(rank=2)))
    with pytest.raises(UserError, match=rf"parallel.{axis}: found 2 with model.lora, expected 1: only data parallel"):
        check_mesh(adapted, mesh)
    check_mesh(adapted, MeshShape(data=2))


def test_sequence_parallelism_splits_the_positions():
    odd = replace(CONFIG, train=replace(CONFIG.train, seq_len=31), parallel=ParallelConfig(sequence=True))
    with pytest.raises(UserError, match=r"parallel.tensor: found 2, expected a divisor of train.seq_len = 31"):
        check_mesh(odd, MeshShape(tensor=2))
    check_mesh(CONFIG, MeshShape(2, 2, 2))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("layers.0.self_attn.q_proj.kernel", (64, 64), ("fsdp", "tensor")),
        ("layers.0.self_attn.o_proj.kernel", (64, 64), ("tensor", "fsdp")),
        ("layers.0.mlp.gate_proj.kernel", (64, 96), ("fsdp", "tensor")),
        ("layers.0.mlp.down_proj.kernel", (96, 64), ("tensor", "fsdp")),
        ("embed_tokens.weight", (512, 64), ("tensor", "fsdp")),
        ("embed_tokens.weight", (513, 64), (None, "fsdp")),
        ("lm_head.kernel", (64, 512), ("fsdp", "tensor")),
        ("embed_positions.weight", (32, 64), (None, "fsdp")),
        ("layers.0.input_layernorm.weight", (64,), ("fsdp",)),
        ("layers.0.self_attn.q_norm.weight", (15,), (None,)),
        ("layers.0.self_attn.q_proj.bias", (64,), ("tensor",)),
        ("layers.0.self_attn.o_proj.bias", (64,), ("fsdp",)),
    ],
)
def test_each_parameter_is_split_by_its_layer(name: str, shape: tuple[int, ...], expected: tuple[str | None, ...]):
    assert split_axes(name, shape, MeshShape(1, 2, 2)) == expected
    assert split_axes(name, shape, MeshShape(data=4)) == (None,) * len(shape)
