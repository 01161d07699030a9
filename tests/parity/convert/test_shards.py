"""safetensors files, one tensor at a time: the library reads what we write, and we read what it writes."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lmcore.errors import UserError
from parity.convert import shards, tensors
from parity.convert.shards import read_metadata, read_tensors, write_shards, write_tensors
from parity.convert.tensors import Tensors

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def arrays() -> dict[str, np.ndarray]:
    """Every dtype, a transposed matrix, and shapes without rows or values."""
    rng = np.random.default_rng(0)
    made = {f"{np.dtype(d).name}": rng.standard_normal((7, 5)).astype(d) for d in DTYPES}
    return made | {
        "transposed": made["float32"].T,
        "vector": np.ones(3, np.float32),
        "none": np.ones((0, 4), np.float32),
    }


def bits(found: Tensors | dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in sorted(found.items())}


@pytest.mark.parametrize("block", [1, 40, 1 << 26])
def test_the_library_reads_what_we_write(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block)
    file = tmp_path / "a.safetensors"
    write_tensors(file, Tensors.of(arrays()), {"format": "pt", "note": "naïve"})
    assert bits(load_file(file)) == bits(arrays())
    with safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "pt", "note": "naïve"}
    assert read_metadata(file)["note"] == "naïve"
    problems: list[str] = []
    assert bits(read_tensors(file, problems)) == bits(arrays())
    assert problems == []


def test_we_read_what_the_library_writes(tmp_path: Path):
    save_file({name: np.ascontiguousarray(a) for name, a in arrays().items()}, tmp_path / "model.safetensors")
    problems: list[str] = []
    assert bits(read_tensors(tmp_path, problems)) == bits(arrays())
    assert problems == []
    assert read_metadata(tmp_path) == {}


def test_files_have_the_permissions_of_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_shards(tmp_path, Tensors.of(arrays()), {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_large_models_are_split_and_their_index_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 400)
    write_shards(tmp_path, Tensors.of(arrays()), {"a": "b"})
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) == 3
    index = json.loads((tmp_path / shards.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays().values())
    problems: list[str] = []
    assert bits(read_tensors(tmp_path, problems)) == bits(arrays())
    assert read_metadata(tmp_path) == {"a": "b"}
    (tmp_path / files[1]).unlink()
    read_tensors(tmp_path, problems)
    assert problems == [f"{files[1]} is missing"]


def test_a_file_that_is_cut_off_is_reported(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    write_tensors(file, Tensors.of(arrays()), {})
    problems: list[str] = []
    opened = read_tensors(file, problems)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a.safetensors: was cut off while it was read"):
        dict(opened)
    file.unlink()
    with pytest.raises(UserError, match=r"a.safetensors: cannot be read"):
        dict(opened)
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        read_metadata(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        read_metadata(tmp_path)
    read_tensors(tmp_path, problems)
    assert "model.safetensors cannot be read" in problems[-1]


def test_tensors_that_cannot_be_taken_are_named(tmp_path: Path):
    save_file({"a": np.ones(2, np.int8), "b": np.array([1, np.nan, np.inf])}, tmp_path / "model.safetensors")
    problems: list[str] = []
    read_tensors(tmp_path, problems)
    assert problems == [
        "a: found type I8, expected one of F64, F32, F16, BF16",
        "b: found 2 values that are NaN or infinite, expected none",
    ]
