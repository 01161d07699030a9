"""A recording comes back from its file as it was; what is none is refused in one line."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from lmcore.errors import UserError
from parity.ports.recording import Recording, load, save
from parity.ports.side import Updated

RNG = np.random.default_rng(0)
FULL = Recording(
    activations={"layer": RNG.standard_normal(3), "layer (2)": RNG.standard_normal(3)},
    modules={"layer": ("w",)},
    outputs={"output['y']": RNG.standard_normal((2, 3)), "output[0]": np.array([1 + 2j, 3 - 1j])},
    loss=float("nan"),
    grads={"w": RNG.standard_normal(2)},
    input_grads={"input[0]": RNG.standard_normal((2, 2))},
    state={"norm.mean": np.zeros(2)},
    framework="jax",
    subject="model",
    dtype="float32",
    facts={"jax": "0"},
    args=({"x": np.arange(3), "mask": None}, [np.ones(2, bool), 2.5], (np.float32(1),)),
    weights={"w": RNG.standard_normal(2).astype(np.float32), "n": np.array(3)},
    trained=("w",),
    noise={"grads/w": 1e-7, "loss": 0.0},
    narrow={"JAX: exp in float32": "float32"},
    updates=(
        Updated({"w": np.ones(2)}, {"mu": {"w": np.zeros(2)}}),
        Updated({"w": np.ones(2)}, {"mu": {"w": np.ones(2)}}),
    ),
    optimizer="Adam",
    batches=((np.arange(2),), (np.arange(2),)),
    curve=(1.0, 0.5),
    moved_curves=((1.0, 0.5), (1.0, 0.6)),
    notes=("a note",),
)


def same(one, other) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Updated):
        return same(vars(one), vars(other))
    if hasattr(one, "dtype"):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other or (one != one and other != other)


def test_a_recording_comes_back_as_it_was(tmp_path: Path):
    save(tmp_path / "file", FULL)
    found = load(tmp_path / "file")
    for each in fields(Recording):
        assert same(getattr(FULL, each.name), getattr(found, each.name)), each.name
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not same(vars(FULL), vars(replace(FULL, curve=(1.0,))))


def test_what_is_no_recording_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "file"
    with pytest.raises(UserError, match="no such file, expected a recording by parity"):
        load(path)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="cannot be read as a recording"):
        load(path)
    save_file({"w": np.ones(2)}, path)
    with pytest.raises(UserError, match="found no recording, expected a file by parity"):
        load(path)
    save_file({"w": np.ones(2)}, path, {"schema": "parity.recording", "version": "99", "recording": "{}"})
    with pytest.raises(UserError, match="found a recording of version 99, expected 1"):
        load(path)
    save(path, FULL)
    data = path.read_bytes()
    for end in (10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="cannot be read as a recording"):
            load(path)


DAMAGES = {
    "no list": lambda facts: [],
    "no modules": lambda facts: {name: facts[name] for name in facts if name != "modules"},
    "no loss": lambda facts: {name: facts[name] for name in facts if name != "loss"},
    "another type": lambda facts: facts | {"dtype": "foo"},
    "another framework": lambda facts: facts | {"framework": "mlx"},
    "no noise": lambda facts: facts | {"noise": None},
    "no tensor": lambda facts: facts | {"args": {"tuple": [{"array": "missing"}]}},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_json_of_another_form_is_refused_in_one_line(damage: str, tmp_path: Path):
    save(tmp_path / "file", FULL)
    with safe_open(tmp_path / "file", "numpy") as file:
        about, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = DAMAGES[damage](json.loads(about["recording"]))
    save_file(arrays, tmp_path / "file", about | {"recording": json.dumps(facts)})
    with pytest.raises(UserError, match=r"file: cannot be read as a recording: "):
        load(tmp_path / "file")


@pytest.mark.parametrize(("tree", "said"), [({0: np.ones(1)}, "the key 0, expected strings"), (slice(2), "slice")])
def test_what_json_cannot_hold_is_refused_when_written(tree: object, said: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"inputs/args\\[0\\]: found .*{said}|inputs/args\\[0\\]: found {said}"):
        save(tmp_path / "file", replace(FULL, args=(tree,)))
    assert not list(tmp_path.iterdir())
