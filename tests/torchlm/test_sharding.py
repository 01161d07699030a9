"""A run on any mesh is the run of one process, to rounding, and its checkpoints go on, to the bit, on any other."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lmcore.config import ModelConfig, ParallelConfig
from lmcore.config.io import load
from lmcore.errors import UserError
from lmcore.run.checkpoints import list_checkpoints
from lmcore.run.mesh import AXES, MeshShape
from parity.convert.states import read_state
from tests.launching import TOLERANCE, difference, rows, train, without_launcher
from tests.torchlm.sharded import config_of, measured
from torchlm.engine import Engine
from torchlm.model import Decoder
from torchlm.sharding import Sharding, check_sharding, layouts

DROPOUT = {"model": {"dropout": 0.2}, "train": {"dropout_masks": "threefry", "remat": True}}
MESHES: dict[int, list[dict[str, Any]]] = {
    2: [{"fsdp": 2}, {"tensor": 2}, {"tensor": 2, "sequence": True}, {"data": 2}],
    4: [
        {"data": 2, "fsdp": 2},
        {"fsdp": 2, "tensor": 2},
        {"data": 2, "tensor": 2, "sequence": True},
    ],
}
SAVED = {2: 2, 4: 1}
"""Number of processes -> which mesh saves its state."""
LOOSE = {"float32": 2e-6, "bfloat16": 5e-2}
RUNS = "runs/one", "runs/two"


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids="{} processes".format)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A folder with saved states, and what all cases have measured: the meshes, one restored, and lower precisions."""
    folder, count = tmp_path_factory.mktemp("sharded"), request.param
    cases = [{"parallel": mesh} | DROPOUT for mesh in MESHES[count]]
    cases[SAVED[count]] = cases[SAVED[count]] | {"save": str(folder / "saved"), "poisoned": True}
    restored = {"parallel": MESHES[count][0], "restore": str(folder / "saved"), "save": str(folder / "again")}
    lower = [{"parallel": MESHES[count][1], "train": {"precision": precision}} for precision in LOOSE]
    return folder, measured([*cases, restored | {"steps": 0} | DROPOUT, *lower], folder, count)


def test_every_mesh_trains_like_one_process(runs: tuple[Path, list[dict]]):
    for found in runs[1][: -1 - len(LOOSE)]:
        assert found["first"] == 0, "the same weights to the bit"
        assert found["still"] < -0.01, "it moves"
        names = ("loss", "grad_norm", "valid", "params", "moments", "logits")
        assert max(found[name] for name in names) <= TOLERANCE, found


def test_a_state_is_restored_on_another_mesh_to_the_bit(runs: tuple[Path, list[dict]]):
    folder, found = runs
    assert found[-1 - len(LOOSE)]["first"] == 0
    one = replace(config_of(DROPOUT), parallel=ParallelConfig())
    states = []
    for path in ("saved/state", "saved/whole", "again/state", "again/whole"):
        engine = Engine(one)
        engine.restore(folder / path)
        states.append(engine.state.params | engine._optimizer_tensors())
    assert int(states[0]["step"]) == int(states[0]["count"]) == 3
    assert states[0]["exp_avg.embed_tokens.weight"].abs().max() > 0
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all(torch.equal(t, other[name]) for name, t in states[0].items())


def test_each_part_is_written_once(runs: tuple[Path, list[dict]]):
    folder, _ = runs
    for item in ("params", "optimizer"):
        sizes = [
            [
                sum(t.numel() for t in load_file(file).values())
                for file in (folder / "saved" / name / item).glob("*.s*s")
            ]
            for name in ("state", "whole")
        ]
        assert sum(sizes[0]) == sum(sizes[1])
        assert max(sizes[0]) < 0.8 * sum(sizes[1])


def test_lower_precisions_are_near(runs: tuple[Path, list[dict]]):
    for found, tolerance in zip(runs[1][-len(LOOSE) :], LOOSE.values(), strict=True):
        assert found["loss"] + found["params"] > 0
        assert found["loss"] < tolerance, found


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            {"train": {"precision": "float16"}},
            "^train.precision: found 'float16', expected bfloat16 on a mesh",
        ),
        (
            {"train": {"compile": True}, "model": {"scan_layers": True}},
            "^model.scan_layers: found true with train",
        ),
    ],
)
def test_what_torch_cannot_do_on_a_mesh_is_one_line(case: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        check_sharding(config_of(case), MeshShape(tensor=2))
    check_sharding(config_of(case), MeshShape(data=2))


@pytest.mark.slow
def test_compilation_changes_nothing_but_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    by_block = [(True, {"fsdp": 2}), (True, {"tensor": 2, "sequence": True})]
    cases = [
        {"parallel": mesh, "train": {"compile": True, "remat": scan}, "model": {"scan_layers": scan}}
        for scan, mesh in [*by_block, (False, {"tensor": 2})]
    ]
    for case, found in zip(cases, measured(cases, tmp_path, 2, checked=False), strict=True):
        names = ("first", "loss", "grad_norm", "valid", "params", "moments", "logits")
        assert max(found[name] for name in names) <= TOLERANCE, (case, found)


def test_layouts_are_those_of_jax_transposed():
    model = ModelConfig(vocab_size=62, dim=24, n_layers=1, n_heads=4, bias=True, qk_norm=True, tie_embeddings=False)
    found = layouts(Decoder(model), MeshShape(fsdp=4, tensor=2))
    assert found["embed_tokens.weight"] == found["lm_head.weight"] == ("tensor", "fsdp")
    assert found["layers.0.self_attn.q_proj.weight"] == ("tensor", "fsdp")
    assert found["layers.0.mlp.down_proj.weight"] == ("fsdp", "tensor")
    assert found["layers.0.self_attn.q_proj.bias"] == ("tensor",)
    assert found["layers.0.self_attn.o_proj.bias"] == found["norm.weight"] == ("fsdp",)
    assert found["layers.0.self_attn.q_norm.weight"] == (None,), "of 6 elements"


@pytest.mark.parametrize(("sequence", "different"), [(False, 4), (True, 8)])
def test_native_masks_are_shared_where_the_same_is_computed(sequence: bool, different: int):
    seeds = []
    for place in itertools.product(range(2), repeat=3):
        sharding = object.__new__(Sharding)  # without the other processes
        sharding.shape, sharding.place = MeshShape(2, 2, 2), dict(zip(AXES, place, strict=True))
        seeds.append((sharding.mask_seed(sequence), sharding.batch_part))
    assert len({seed for seed, _ in seeds}) == different
    assert len(set(seeds)) == different, "never shared by two parts of the batch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text, and with the run of one process in runs/one."""
    folder = tmp_path_factory.mktemp("runs")
    [(code, error)] = without_launcher(train("torchlm", folder / "data", run_dir="runs/one"), folder, count=1)
    assert code == 0, error
    return folder


def test_a_run_on_a_mesh_is_the_run_of_one_and_goes_on_in_one(folder: Path):
    mesh = {"parallel__tensor": 2, "parallel__sequence": True}
    two = train("torchlm", folder / "data", run_dir="runs/two", **mesh)
    assert [code for code, _ in without_launcher(two, folder)] == [0, 0]
    assert difference(rows(folder / "runs/one"), rows(folder / "runs/two")) <= TOLERANCE
    assert len(list((folder / "runs/two/checkpoints/step_00000004/state/params").iterdir())) == 2
    samples = [[path.read_text() for path in sorted((folder / run / "samples").iterdir())] for run in RUNS]
    assert samples[0] == samples[1]
    states = [read_state(list_checkpoints(folder / run)[-1], load(folder / run / "config.yaml")) for run in RUNS]
    assert [state.moments and state.moments.count for state in states] == [8, 8]
    for name, array in states[0].params.items():
        np.testing.assert_allclose(states[1].params[name], array, rtol=0, atol=TOLERANCE)
    shutil.rmtree(folder / "runs/two/checkpoints/step_00000008")
    mesh = {"parallel__tensor": 1, "parallel__sequence": False}
    one = train("torchlm", folder / "data", run_dir="runs/two", **mesh)
    [(code, error)] = without_launcher([*one, "--train.resume=auto"], folder, count=1)
    assert code == 0, error
    assert "valid_loss" in rows(folder / "runs/two")[-1]
    assert difference(rows(folder / "runs/one"), rows(folder / "runs/two")) <= TOLERANCE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parallel__fsdp": 4}, "error: parallel: found fsdp 4, expected a divisor of the 2 processes of this run"),
        pytest.param(
            {"parallel__tensor": 2, "model__n_kv_heads": 1},
            "error: parallel.tensor: found 2, expected a divisor of ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_mesh_is_one_line_of_process_0(folder: Path, changed: dict[str, Any], message: str):
    arguments = train("torchlm", folder / "data", run_dir="runs/bad", **changed)
    (code, error), (other, silence) = without_launcher(arguments, folder)
    assert (code, other) == (2, 2)
    assert [line[: len(message)] for line in error.splitlines() if "Gloo" not in line] == [message]
    assert "error" not in silence
    assert not (folder / "runs" / "bad").exists()
