"""What is written is read back to the bit from a folder of any name; what Orbax wrote in vain is not called a save."""

import gc
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from jaxlm import checkpoint
from jaxlm.checkpoint import open_item, restore_state, save_state
from lmcore.errors import UserError

PARAMS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
OPTIMIZER = {"step": np.int32(3), "state": (np.ones(2, np.float32), {})}


@pytest.mark.parametrize("name", ["plain", "run[1]", "[!a]", "**", "a*b", "c?", "back\\slash", "x::y #%20"])
def test_a_folder_of_any_name_can_be_read(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    for sibling in ("axb", "cd", "r"):  # what a wildcard would find
        (tmp_path / sibling).mkdir()
    save_state(tmp_path / name / "state", PARAMS, OPTIMIZER)()
    read = restore_state(tmp_path / name / "state", params={"w": np.empty((2, 3), np.float32)})
    assert np.array_equal(read["params"]["w"], PARAMS["w"])
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["state"]
    assert all(not list((tmp_path / sibling).iterdir()) for sibling in ("axb", "cd", "r"))


def test_what_cannot_be_opened_is_not_called_a_save(tmp_path: Path, monkeypatch):
    @contextmanager
    def unchanged(folder: Path):
        yield folder.absolute()

    monkeypatch.setattr(checkpoint, "_without_wildcards", unchanged)
    (tmp_path / "run[1]").mkdir()
    with pytest.raises(OSError, match="was written and cannot be opened"):
        save_state(tmp_path / "run[1]" / "state", PARAMS, OPTIMIZER)()


def test_arrays_that_are_missing_are_not_called_a_save(tmp_path: Path, monkeypatch):
    described = checkpoint._described
    monkeypatch.setattr(checkpoint, "_described", lambda tree: described(tree)[tree is PARAMS :])
    with pytest.raises(OSError, match="was written with other arrays than there are"):
        save_state(tmp_path / "state", PARAMS, OPTIMIZER)()


def test_a_folder_for_temporary_files_with_wildcards_is_one_line(tmp_path: Path, monkeypatch):
    (tmp_path / "t[m]p").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t[m]p"))
    save_state(tmp_path / "state", PARAMS, OPTIMIZER)()
    with pytest.raises(UserError, match="in it and in TMPDIR"):
        save_state(tmp_path / "run[1]" / "state", PARAMS, OPTIMIZER)


def test_saving_again_and_again_leaves_nothing_behind(tmp_path: Path):
    def containers() -> int:
        gc.collect()
        return sum(type(thing) in (list, dict) for thing in gc.get_objects())

    counts = []
    for number in range(9):
        save_state(tmp_path / str(number), PARAMS, OPTIMIZER)()
        counts.append(containers())
    assert max(counts[4:]) - counts[3] < 20, counts  # 25 more after each save, where metrics are asked for


def test_describing_arrays_to_orbax_leaves_nothing_behind(tmp_path: Path):
    utils = pytest.importorskip("orbax.checkpoint._src.serialization.tensorstore_utils")
    save_state(tmp_path / "state", PARAMS, OPTIMIZER)()
    utils.build_kvstore_tspec(str(tmp_path), "w")
    before = sys.getallocatedblocks()
    for _ in range(500):
        utils.build_kvstore_tspec(str(tmp_path), "w")
    assert sys.getallocatedblocks() - before < 100  # 2,000 where TensorStore copies JSON: 4 a call


@pytest.mark.parametrize("name", ["plain/", "no slash", "a'b\"c/", "back\\slash/", "x::y #%20/", "é 文/"])
def test_a_folder_in_json_is_what_tensorstore_says(tmp_path: Path, name: str):
    save_state(tmp_path / "state", PARAMS, OPTIMIZER)()
    original = ts.KvStore.Spec.to_json.__wrapped__
    folder = {"driver": "file", "path": f"/{name}"}
    locked = folder | {"file_io_locking": {"mode": "non_atomic"}}
    for spec in map(ts.KvStore.Spec, (folder, locked, {"driver": "ocdbt", "base": folder}, {"driver": "memory"})):
        assert spec.to_json() == original(spec)
        assert spec.to_json(include_defaults=True) == original(spec, include_defaults=True)


@pytest.mark.parametrize("name", ["plain", "run[1]", "x::y #%20"])
def test_arrays_are_opened_and_read_one_at_a_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 100)
    large = {"layers.0.w": np.arange(300, dtype=np.float32).reshape(20, 15)}
    folder = tmp_path / name / "state"
    folder.parent.mkdir()
    save_state(folder, PARAMS | large, OPTIMIZER)()
    opened = open_item(folder, "params")
    store = ts.open({"driver": "zarr", "kvstore": checkpoint._store(folder / "params") | {"path": "layers.0.w/"}})
    assert store.result().chunk_layout.read_chunk.shape == (5, 5)
    assert {key: each.shape for key, each in opened.items()} == {"w": (2, 3), "layers.0.w": (20, 15)}
    for key, array in (PARAMS | large).items():
        assert np.array_equal(opened[key].read(), array)
    assert int(open_item(folder, "optimizer")["step"].read()) == 3
    restored = restore_state(folder, params={n: np.empty_like(array) for n, array in (PARAMS | large).items()})
    assert np.array_equal(restored["params"]["layers.0.w"], large["layers.0.w"])
    (folder / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"params: cannot be read .*; take another checkpoint"):
        open_item(folder, "params")
