"""What one side computed, as one safetensors file: written where one framework is, compared where none is.

docs/recording.md describes the format.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from lmcore.errors import UserError, shown
from parity.arrays import Arrays, moved_by_one_ulp
from parity.ports.side import BITS, DType, Framework, Port, Side, Updated, carrier

__all__ = ["FACTORS", "VERSION", "Recording", "load", "narrowest", "noise", "record_port", "save"]

VERSION = 1
"""Of the file format."""
SCHEMA = "parity.recording"
FACTORS = (1.0, -0.5, 2.0)
"""Factor of the gradients in each update that is compared: with equal ones, Adam's corrected moments never change."""
DRAWS = 3
"""Number of runs from moved weights that measure a side's noise."""
SECTIONS = ("inputs", "weights", "activations", "outputs", "grads", "input_grads", "state")
"""Fields of a recording that are arrays by name."""
FIELDS = (
    *(
        "framework",
        "subject",
        "dtype",
        "train",
        "facts",
        "loss",
        "loss_size",
        "modules",
        "trained",
        "frozen",
        "noise",
        "narrow",
        "optimizer",
    ),
    *("curve", "moved_curves", "notes", "likely", "like"),
)
"""Fields that are JSON."""


@dataclass(frozen=True, kw_only=True)
class Recording(Side):
    """What one side computed, with what it was computed from."""

    framework: Framework
    subject: str
    """The model, for people."""
    dtype: str
    facts: dict[str, str]
    """Versions and machine."""
    args: tuple[Any, ...]
    """Trees of NumPy arrays."""
    weights: Arrays
    trained: tuple[str, ...]
    frozen: tuple[str, ...] = ()
    """Names of parameters whose gradient the model itself does not ask for."""
    noise: dict[str, float] = field(default_factory=dict)
    """`section/name` -> by how much any value is rounded: see `noise`."""
    narrow: dict[str, str] = field(default_factory=dict)
    """Operation whose result is narrower than `dtype` -> its type."""
    updates: tuple[Updated, ...] = ()
    train: bool = False
    """Whether modules were in training mode."""
    optimizer: str = ""
    """Class of the optimizer, where it has one."""
    batches: tuple[tuple[Any, ...], ...] = ()
    curve: tuple[float, ...] = ()
    """Loss of each step of training."""
    moved_curves: tuple[tuple[float, ...], ...] = ()
    """The same from moved weights."""
    notes: tuple[str, ...] = ()
    likely: tuple[str, ...] = ()
    """Sentences that name the likely causes of what differs from the recording that this one was made like."""
    like: str = ""
    """Digest of that recording."""

    def digest(self) -> str:
        """Return the SHA-256 of what was computed."""
        digest = hashlib.sha256(self.subject.encode())
        for section in ("weights", "outputs", "grads"):
            for name, array in getattr(self, section).items():
                digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def record_port(
    port: Port, weights: Arrays, *, subject: str, facts: Mapping[str, str], grads: Arrays | None = None
) -> Recording:
    """Return all that a side computes from these weights, by its own names.

    Args:
        port: the side.
        weights: its parameters and statistics.
        subject: the model, for people.
        facts: versions and machine.
        grads: gradients of the updates, by the side's names; None for its own.
    """
    request, side = port.request, port.run(weights)
    narrow = port.narrow() if BITS[request.dtype] > 16 else {}
    updates: list[Updated] = []
    curve, moved = np.array([]), []
    if request.optimizer is not None:
        grads = side.grads if grads is None else grads
        updates = port.updates(weights, grads, FACTORS)
        if request.batches:
            curve = port.curve(weights)
            kind = narrowest(narrow, request.dtype)
            moved = [port.curve(_moved(weights, port, draw, kind)) for draw in range(DRAWS)]
    return Recording(
        **vars(side),
        framework=port.framework,
        subject=subject,
        dtype=request.dtype,
        train=request.train,
        facts=dict(facts),
        args=request.args,
        weights=port.weights | weights,
        trained=port.trained,
        frozen=port.frozen,
        narrow=narrow,
        updates=tuple(updates),
        optimizer=port.optimizer,
        batches=tuple(request.batches),
        curve=tuple(map(float, curve)),
        moved_curves=tuple(tuple(map(float, each)) for each in moved),
    )


def noise(port: Port, weights: Arrays, side: Side, grads: Arrays | None = None) -> dict[str, float]:
    """Return how much each value of a side is rounded, as `Recording.noise`.

    That is the change when all weights move by one unit in the last place; and where the side computes in a narrower
    type than is compared in, or in 16 bits, also the difference from what it computes in float32.

    Args:
        port: the side.
        weights: those that `side` was computed from.
        side: the values from unmoved weights.
        grads: those of the updates; None for the side's own.
    """
    kind = narrowest(getattr(side, "narrow", {}), port.request.dtype)
    step = kind if BITS[kind] == 16 else None
    runs = [port.run(_moved(weights, port, draw, step)) for draw in range(DRAWS if step else 1)]
    updates: Sequence[Updated] = ()
    if kind != port.request.dtype or BITS[kind] == 16:
        other = port.in_dtype("float32")
        runs.append(other.run(weights))
        if port.request.optimizer is not None:
            updates = other.updates(weights, side.grads if grads is None else grads, FACTORS)
    found: dict[str, float] = {}
    for run in runs:
        for section in ("activations", "outputs", "grads", "input_grads", "state"):
            _note_changes(found, section, getattr(side, section), getattr(run, section))
        found["loss"] = max(abs(run.loss - side.loss), found.get("loss", 0.0))
    for number, (one, other_one) in enumerate(zip(getattr(side, "updates", ()), updates, strict=False)):
        _note_changes(found, f"updates/{number}/params", one.params, other_one.params)
        for moment, values in one.moments.items():
            _note_changes(found, f"updates/{number}/{moment}", values, other_one.moments.get(moment, {}))
    return found


def _note_changes(found: dict[str, float], section: str, before: Arrays, after: Arrays) -> None:
    """Add the largest changes of real values to `found`, under `section/name`, where they are larger than before."""
    for name, value in before.items():
        if name in after and value.shape == after[name].shape and value.dtype.kind in "fc":
            change = np.abs(value - after[name])
            size = float(change.max(initial=0.0, where=np.isfinite(change)))
            found[f"{section}/{name}"] = max(size, found.get(f"{section}/{name}", 0.0))


def narrowest(narrow: Mapping[str, str], dtype: str) -> DType:
    """Return the narrowest type that a side computes in: `dtype`, or one of its narrower operations."""
    return cast(DType, min([dtype, *narrow.values()], key=lambda kind: BITS.get(kind, 16)))


def _moved(weights: Arrays, port: Port, draw: int, kind: DType | None = None) -> Arrays:
    """Return the weights, the real ones moved by one unit in the last place of a type; None for that of the request."""
    kind = kind or port.request.dtype
    real = {name: value for name, value in weights.items() if value.dtype.kind == "f"}
    narrow = {name: value.astype(carrier(kind)) for name, value in real.items()}
    return weights | {
        name: value.astype(real[name].dtype) for name, value in moved_by_one_ulp(narrow, draw, kind).items()
    }


def save(path: Path, recording: Recording) -> None:
    """Write a recording, in one step: a file that is there is replaced when all is written."""
    from safetensors.numpy import save as as_bytes

    arrays: Arrays = {}
    for section in SECTIONS[1:]:
        arrays |= {f"{section}/{name}": value for name, value in getattr(recording, section).items()}
    for number, update in enumerate(recording.updates):
        arrays |= {f"updates/{number}/params/{name}": value for name, value in update.params.items()}
        for kind, values in update.moments.items():
            arrays |= {f"updates/{number}/{kind}/{name}": value for name, value in values.items()}
    facts = {name: getattr(recording, name) for name in FIELDS}
    facts["args"] = _shape_of(recording.args, "inputs/args", arrays)
    facts["batches"] = _shape_of(recording.batches, "inputs/batches", arrays)
    facts["order"] = list(arrays)
    facts["complex"] = [name for name, array in arrays.items() if array.dtype.kind == "c"]
    plain = {name: _plain(array) for name, array in arrays.items()}
    partial = path.with_name(f"{path.name}.partial")
    about = {"schema": SCHEMA, "version": str(VERSION), "recording": json.dumps(facts)}
    partial.write_bytes(as_bytes(plain, about))  # safetensors' own file would be readable by its owner alone
    partial.replace(path)


def load(path: Path) -> Recording:
    """Read a recording.

    Raises:
        UserError: the file is missing, is no recording, or one of another version.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a recording by parity.record")
    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            found = about.get("version") if about.get("schema") == SCHEMA else None
            if found is None:
                raise UserError(f"{path}: found no recording, expected a file by parity.record")
            if found != str(VERSION):
                raise UserError(f"{path}: found a recording of version {found}, expected {VERSION}; record it again")
            facts = json.loads(about["recording"])
            return _read(facts, {name: file.get_tensor(name) for name in facts["order"]})
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: cannot be read as a recording: {reason}") from error


def _read(facts: dict[str, Any], arrays: Arrays) -> Recording:
    """Return the recording of a file's JSON and tensors; what is missing or of another type raises some error."""
    for name in facts["complex"]:
        arrays[name] = np.array(arrays[name], order="C").view(np.result_type(arrays[name], np.complex64))[..., 0]
    read: dict[str, Any] = {section: _section(arrays, f"{section}/") for section in SECTIONS[1:]}
    updates: list[Updated] = []
    while update := _section(arrays, f"updates/{len(updates)}/"):
        kinds = list(dict.fromkeys(name.partition("/")[0] for name in update))
        by_kind = {kind: _section(update, f"{kind}/") for kind in kinds}
        updates.append(Updated(by_kind.pop("params"), by_kind))
    read |= {name: facts[name] for name in FIELDS if name in facts}
    if read["dtype"] not in BITS or read["framework"] not in ("jax", "torch"):
        raise ValueError(f"found {read['dtype']!r} of {read['framework']!r}")
    read |= {name: _filled(facts[name], arrays) for name in ("args", "batches")}
    read |= {name: tuple(facts.get(name, ())) for name in ("trained", "frozen", "curve", "notes", "likely")}
    read |= {name: dict(facts[name]) for name in ("facts", "noise", "narrow")} | {"loss": float(facts["loss"])}
    read["modules"] = {name: tuple(under) for name, under in facts["modules"].items()}
    read["moved_curves"] = tuple(map(tuple, facts["moved_curves"]))
    return Recording(**read, updates=tuple(updates))


def _plain(array: np.ndarray) -> np.ndarray:
    """Return an array as safetensors holds it: complex values as pairs, along a last axis."""
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    return np.array(array, order="C")


def _section(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _shape_of(tree: Any, name: str, arrays: Arrays) -> Any:
    """Return a tree as JSON, its arrays replaced by the names under which they are added to `arrays`."""
    if isinstance(tree, Mapping):
        if odd := [key for key in tree if not isinstance(key, str)]:
            raise UserError(f"{name}: found the key {odd[0]!r}, expected strings alone, as a recording holds no others")
        return {"dict": {key: _shape_of(child, f"{name}[{key!r}]", arrays) for key, child in tree.items()}}
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return {type(tree).__name__: [_shape_of(child, f"{name}[{i}]", arrays) for i, child in enumerate(tree)]}
    if hasattr(tree, "dtype"):
        arrays[name] = np.asarray(tree)
        return {"array": name}
    if not isinstance(tree, str | int | float | bool | None):
        raise UserError(f"{name}: found {shown(tree)}, expected arrays, numbers, strings, and dicts, tuples and lists")
    return {"value": tree}


def _filled(shape: Any, arrays: Arrays) -> Any:
    """Return the tree that `_shape_of` wrote down."""
    [(kind, inner)] = shape.items()
    if kind == "dict":
        return {key: _filled(child, arrays) for key, child in inner.items()}
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](_filled(child, arrays) for child in inner)
    return arrays[inner] if kind == "array" else inner
