"""Runs on meshes are compared with the run of one device: what is the same passes, and a fault does not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmcore.config import Config, ModelConfig, ParallelConfig
from lmcore.errors import UserError
from lmcore.run.mesh import MeshShape
from parity.check.mesh.ladder import Side, Topology, climb_meshes, mesh_config, topology
from parity.check.result import MESH_RUNG
from parity.check.subject import Subject

CONFIG = Config(
    model=ModelConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=24, max_seq_len=16)
)
TEXT = np.random.default_rng(0).integers(40, size=600).astype(np.int32)
SUBJECT = Subject("initial weights", CONFIG, None, None, TEXT, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,2", Topology(MeshShape(1, 2, 2))),
        ("2,1,1", Topology(MeshShape(data=2))),
        ("1,1,2,sequence", Topology(MeshShape(tensor=2), True)),
    ],
)
def test_a_mesh_is_read_from_the_command_line(text: str, expected: Topology):
    assert topology(text) == expected
    assert expected.parallel == ParallelConfig(
        data=expected.mesh.data, fsdp=expected.mesh.fsdp, tensor=expected.mesh.tensor, sequence=expected.sequence
    )


@pytest.mark.parametrize("text", ["", "2", "1,2", "1,2,x", "1,0,2", "1,2,2,2", "1,2,2,sequences"])
def test_what_is_no_mesh_is_named(text: str):
    with pytest.raises(UserError, match=r"--mesh: found .*, expected sizes of data, fsdp and tensor, such as 1,2,2"):
        topology(text)


def test_processes_share_a_mesh_evenly():
    assert topology("1,2,2", 2).processes == 2
    with pytest.raises(UserError, match=r"--processes: found 3, expected a divisor of the 4 devices of --mesh 1,2,2"):
        topology("1,2,2", 3)


@pytest.mark.parametrize(("meshes", "batch"), [(["2,1,1"], 4), (["1,2,2", "2,1,1"], 4), (["1,4,1", "3,1,1"], 24)])
def test_all_meshes_can_split_the_batch(meshes: Sequence[str], batch: int):
    made = mesh_config(CONFIG, [topology(text) for text in meshes], "float64")
    assert (made.train.batch_size, made.train.grad_accum, made.train.precision) == (batch, 2, "float64")


def test_a_model_that_a_mesh_cannot_split_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"parallel.tensor: found 4, expected a divisor of model.n_heads = 2"):
        list(climb_meshes(SUBJECT, [topology("1,1,4")], ["float64"]))


@pytest.mark.slow
def test_a_sharded_run_is_the_run_of_one_device_in_both_twins():
    lines = list(climb_meshes(SUBJECT, [topology("1,2,1")], ["float64"]))
    assert [line.what for line in lines if not line.ok] == []
    assert {line.rung for line in lines} == {MESH_RUNG}
    for label in ("JAX", "torch"):
        own = [line for line in lines if line.what.startswith(f"{label}, fsdp 2: ")]
        same = [line.what.partition(": ")[2] for line in own if line.limit == "identical"]
        assert same == ["initial state", "from one device", "restored on one device"]
        assert len(own) == 8
    assert lines[-1].what == "JAX against torch, fsdp 2"
    assert lines[-1].max_rel < 1e-12


def test_a_fault_on_the_mesh_fails_and_the_sound_mesh_does_not(tmp_path: Path):
    one = topology("1,2,1")
    config = mesh_config(CONFIG, [one], "float64")
    side = Side("jax", tmp_path, TEXT, [config], [one])
    side.run()
    assert all(line.ok for line in side.compare(config, one))
    side.on_mesh(one, "jax: gradients divided twice")
    failed = next(line for line in side.compare(config, one) if not line.ok)
    assert failed.what == "JAX, fsdp 2: state after one update"
    assert failed.max_rel == pytest.approx(0.5, abs=0.3)
    other = replace(config, train=replace(config.train, seed=1))
    assert other != config
