"""safetensors files: one, or several with an index, read and written one tensor at a time.

The library opens and checks each file; its own reader and writer hold all of a file in memory, so the tensors' bytes
are read and written here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lmcore.errors import UserError
from parity.convert.companions import read_fields
from parity.convert.tensors import Stored, Tensors, finite, row_blocks

__all__ = ["INDEX", "SINGLE", "read_metadata", "read_tensors", "write_shards", "write_tensors"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

SHARD_BYTES = 5 * 10**9
"""A larger model is written in shards of at most this size."""

STORED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""Name of a dtype in safetensors -> the dtype, for those that are read and written."""
NAMES = {np.dtype(dtype): name for name, dtype in STORED.items()} | {np.dtype(np.int64): "I64"}
"""Dtype -> its name, for those that are written: the number of a step too."""


def read_tensors(path: Path, problems: list[str]) -> Tensors:
    """Open a safetensors file, or a folder of them, and check every tensor.

    Args:
        path: a file, or a folder with `model.safetensors` or an index of several.
        problems: what is wrong is added here, by name.
    """
    if path.is_file():
        folder, files, index = path.parent, [path.name], None
    else:
        folder, (files, index) = path, _files(path, problems)
    stored: dict[str, Stored] = {}
    holder: dict[str, str] = {}
    for file in files:
        if not (folder / file).is_file():
            problems.append(f"{file} is missing")
            continue
        for name, tensor in _open(folder / file, problems).items():
            if name in stored:
                problems.append(f"{name} is in {holder[name]} and in {file}")
            elif index is not None and index.get(name) != file:
                problems.append(f"{name} is in {file}, the index says {index.get(name)}")
            else:
                stored[name], holder[name] = tensor, file
                array = tensor.read()
                if not finite(array):
                    bad = array.size - np.count_nonzero(np.isfinite(array))
                    problems.append(f"{name}: found {bad:,} values that are NaN or infinite, expected none")
    readable = {file for file in files if (folder / file).is_file()}
    for name, file in (index or {}).items():
        if name not in stored and file in readable:
            problems.append(f"{name} is not in {file}, where the index puts it")
    return Tensors(stored)


def _files(folder: Path, problems: list[str]) -> tuple[list[str], dict[str, str] | None]:
    """Return the names of a folder's safetensors files, and the index (tensor -> file) where there is one."""
    if (folder / SINGLE).exists():
        return [SINGLE], None
    index = folder / INDEX
    if index.exists():
        found = read_fields(index, problems).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            problems.append(f"{index.name} has no weight_map")
            return [], None
        files = sorted(set(found.values()))
        # A link of that name may lead elsewhere, as in the hub's cache; the index, which came with the model, may not.
        outside = [file for file in files if file in ("", ".", "..") or set(file) & set("/\\\0")]
        problems += [f"{index.name}: found {file!r}, expected the name of a file in the folder" for file in outside]
        return [file for file in files if file not in outside], found
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        problems.append(
            f"{pickles[0]} is a pickle, which can run code when it is read, so only safetensors are; "
            "save the model again with transformers"
        )
    else:
        problems.append(f"{SINGLE} is missing")
    return [], None


def _open(path: Path, problems: list[str]) -> dict[str, Stored]:
    """Return the tensors of one file, whose header the library has checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            header, begin = _header(path)
    except (OSError, SafetensorError) as error:
        problems.append(f"{path.name} cannot be read ({error})")
        return {}
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in STORED:
            problems.append(f"{name}: found type {entry['dtype']}, expected one of {', '.join(STORED)}")
            continue
        shape, dtype = tuple(entry["shape"]), np.dtype(STORED[entry["dtype"]])
        tensors[name] = _stored(path, shape, dtype, begin + entry["data_offsets"][0])
    return tensors


def _stored(path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> Stored:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

    def read() -> np.ndarray:
        try:
            data = np.fromfile(path, np.uint8, size, offset=offset)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
        if data.size != size:
            raise UserError(f"{path}: was cut off while it was read; restore it")
        return data.view(dtype).reshape(shape)

    return Stored(shape, dtype, read)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a file says of each tensor, and where the first begins."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a file holds beside its tensors, or the first file of a folder.

    Raises:
        UserError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    problems: list[str] = []
    files = [path] if path.is_file() else [path / name for name in _files(path, problems)[0][:1]]
    try:
        for file in files:
            with safe_open(file, framework="numpy") as opened:
                return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        problems.append(f"{files[0].name} cannot be read ({error})")
    raise UserError(f"{path}: {'; '.join(problems)}")


def write_tensors(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write one file.

    Args:
        path: the file.
        tensors: read one at a time.
        metadata: texts to keep beside them.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, each in tensors.stored.items():
        begin, end = end, end + _bytes(each)
        header[name] = {"dtype": NAMES[each.dtype], "shape": list(each.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, each in tensors.stored.items():
            array = tensors[name]
            assert (array.shape, array.dtype) == (each.shape, each.dtype), name
            for block in row_blocks(array):
                file.write(block.reshape(-1).view(np.uint8).data)


def write_shards(folder: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write `model.safetensors`, or several files of at most `SHARD_BYTES` and their index."""
    shards: list[dict[str, Stored]] = [{}]
    room = SHARD_BYTES
    for name, each in tensors.stored.items():
        if shards[-1] and _bytes(each) > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = each
        room -= _bytes(each)
    if len(shards) == 1:
        write_tensors(folder / SINGLE, tensors, metadata)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, Tensors(shard), metadata)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(map(_bytes, tensors.stored.values()))}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(stored: Stored) -> int:
    return int(np.prod(stored.shape, dtype=np.int64)) * stored.dtype.itemsize
