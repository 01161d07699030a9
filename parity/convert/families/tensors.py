"""The tensors of a family's file as those of a Llama, and back, each when it is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from lmcore.config import ModelConfig
from lmcore.errors import UserError
from parity.convert.families.base import Family
from parity.convert.families.layout import STACKED, Layout
from parity.convert.names import Row, table
from parity.convert.tensors import Stored, Tensors

__all__ = ["from_family", "to_family"]


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a family's file, and those of a Llama that it holds."""

    name: str
    rows: tuple[Row, ...]
    layout: Layout

    def shape(self, model: ModelConfig) -> tuple[int, ...]:
        parts = [np.broadcast_to(np.int8(0), row.shape_in("hf")) for row in self.rows]
        return self.layout.join(parts, model).shape


def _tensors(family: Family, model: ModelConfig) -> list[_Tensor]:
    """Return the tensors of a family's file, in reading order."""
    holders: dict[str, tuple[str, Layout]] = {}
    for name, held in family.modules.items():
        modules, layout = ((held,), STACKED) if isinstance(held, str) else (held.modules, held.layout)
        holders |= dict.fromkeys(modules, (name, layout))
    found: dict[str, tuple[list[Row], Layout]] = {}
    for row in table(model):
        module, _, leaf = row.hf.rpartition(".")
        layer = re.search(r"\d+", module)
        name, layout = holders.get(re.sub(r"\d+", "*", module, count=1), (module, STACKED))
        name = name.replace("*", layer[0] if layer else "") + f".{leaf}"
        found.setdefault(name, ([], layout))[0].append(row)
    return [_Tensor(name, tuple(rows), layout) for name, (rows, layout) in found.items()]


def _reorder(name: str, array: np.ndarray, model: ModelConfig, order: np.ndarray) -> np.ndarray:
    """Return queries' or keys' rows with the features of each head in another order."""
    if model.rotary_dim == model.head_dim or not re.search(r"self_attn\.[qk]_(proj|norm)\.", name):
        return array
    return array.reshape(-1, model.head_dim, *array.shape[1:])[:, order].reshape(array.shape)


def _rotated_first(model: ModelConfig) -> np.ndarray:
    """Return where the families' order of a head's features, those that RoPE rotates first, has each of ours.

    Ours rotates i with i + H/2, for i < R/2; theirs i with i + R/2.
    """
    half, rotated = model.head_dim // 2, model.rotary_dim // 2
    first, others = np.arange(rotated), 2 * rotated + np.arange(half - rotated)
    return np.concatenate([first, others, rotated + first, half - rotated + others])


def from_family(tensors: Tensors, family: Family, model: ModelConfig) -> Tensors:
    """Return a Llama's tensors, by a Llama's names, of those in a family's file; each is converted when it is read.

    Raises:
        UserError: tensors are missing, unknown or wrongly shaped; the message names each.
    """
    expected = {each.name: each for each in _tensors(family, model)}
    shapes = {name: each.shape(model) for name, each in expected.items()}
    found = {name: stored.shape for name, stored in tensors.stored.items()}
    errors = [f"{name} {list(shape)} is in no row" for name, shape in found.items() if name not in expected]
    errors += [f"{name} {list(shape)} is missing" for name, shape in shapes.items() if name not in found]
    wrong = [name for name in shapes if name in found and shapes[name] != found[name]]
    errors += [f"{name} is {list(found[name])}, expected {list(shapes[name])}" for name in wrong]
    if errors:
        raise UserError(f"hf arrays do not fit the table of names: {'; '.join(errors)}")
    result = {}
    for name, each in expected.items():
        for index, row in enumerate(each.rows):
            part = partial(_part, tensors, each, model, index)
            result[row.hf] = Stored(row.shape_in("hf"), tensors.stored[name].dtype, part)
    return Tensors({row.hf: result[row.hf] for row in table(model)})


def _part(tensors: Tensors, each: _Tensor, model: ModelConfig, index: int) -> np.ndarray:
    row = each.rows[index]
    parts = each.layout.split(tensors[each.name], [row.shape_in("hf")[0] for row in each.rows], model)
    return _reorder(row.hf, parts[index], model, _rotated_first(model))


def to_family(weights: Mapping[str, np.ndarray], family: Family, model: ModelConfig) -> Tensors:
    """Return the tensors of a family's file, of a Llama's; each is converted when it is read.

    Args:
        weights: by a Llama's names.
        family: whose names and layouts the result has.
        model: shape of the model.
    """
    tensors = Tensors.of(weights)
    return Tensors(
        {
            each.name: Stored(
                each.shape(model), tensors.stored[each.rows[0].hf].dtype, partial(_whole, tensors, each, model)
            )
            for each in _tensors(family, model)
        }
    )


def _whole(tensors: Tensors, each: _Tensor, model: ModelConfig) -> np.ndarray:
    order = np.argsort(_rotated_first(model))
    parts = [_reorder(row.hf, tensors[row.hf], model, order) for row in each.rows]
    return each.layout.join(parts, model)
