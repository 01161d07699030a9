"""Folders of adapters as peft has them: `adapter_config.json` and `adapter_model.safetensors`.

A field that our adapters cannot express is refused by name, all of them in one error; an unknown field is refused too,
since it may change the model. Only safetensors are read: a pickle can run code.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.config import ADAPTED, LoraConfig
from lmcore.errors import UserError, shown
from lmcore.files import check_sums, write_sums
from lmcore.model.lora import is_adapter
from parity.convert.companions import read_fields
from parity.convert.shards import read_tensors, write_tensors
from parity.convert.tensors import Tensors

__all__ = ["Adapters", "is_peft", "read_peft", "write_peft"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the name that a parameter has in transformers."""
LAYER = re.compile(r"model\.layers\.\d+\.(\w+)\.(\w+)\.lora_[AB]\.weight")

ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
}
"""Field that may change the model -> the values that our adapters support."""

HARMLESS = {
    *("r", "lora_alpha", "lora_dropout", "base_model_name_or_path", "target_modules"),  # read separately
    *("init_lora_weights", "inference_mode", "auto_mapping", "revision", "peft_version", "exclude_modules"),
    *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
"""Fields that do not change the mathematics of an adapter that is there."""


@dataclass(frozen=True)
class Adapters:
    """The contents of a peft folder."""

    lora: LoraConfig
    weights: Tensors
    """By the names of Hugging Face's Llama, followed by `lora_A.weight` or `lora_B.weight`."""
    base: str
    """Name or path of the model that they adapt, as the folder has it; empty where it names none."""


def is_peft(path: Path) -> bool:
    """Return whether a path is a folder of adapters."""
    return (path / CONFIG).is_file()


def read_peft(folder: Path, verify: bool = True) -> Adapters:
    """Read a folder of adapters.

    Args:
        folder: made by peft, or by `write_peft`, which adds SHA256SUMS.
        verify: whether to compare its files with them.

    Raises:
        UserError: it cannot be read, or needs what our adapters lack; the message names each reason.
    """
    if verify:
        check_sums(folder)
    problems: list[str] = []
    fields = read_fields(folder / CONFIG, problems)
    for name, value in fields.items():
        if name in ONLY and value not in ONLY[name]:
            problems.append(f"{name}: found {shown(value)}, expected {ONLY[name][0]!r}")
        elif name not in ONLY and name not in HARMLESS and value not in (None, False, [], {}, ""):
            problems.append(f"{name}: found {shown(value)}, which our adapters do not have")
    weights = Tensors({})
    if (folder / WEIGHTS).is_file():
        stored = read_tensors(folder / WEIGHTS, problems).stored
        weights = Tensors({name.removeprefix(PREFIX): tensor for name, tensor in stored.items()})
    else:
        problems.append(f"{WEIGHTS} is missing; only safetensors are read, since a pickle can run code")
    places = {name: LAYER.fullmatch(name) for name in weights}
    unknown = [name for name, place in places.items() if place is None or ADAPTED.get(place[2]) != place[1]]
    problems += [f"{name} is no adapter of a Llama's linear layer" for name in unknown]
    found = {place[2] for place in places.values() if place is not None}
    targets = [name for name in ADAPTED if name in found]
    try:
        lora = LoraConfig(
            rank=_number(fields, "r", int, 8),
            alpha=float(_number(fields, "lora_alpha", float, 8)),
            dropout=float(_number(fields, "lora_dropout", float, 0.0)),
            targets=targets,
        )
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(f"{folder}: cannot be converted: {'; '.join(problems)}")
    return Adapters(lora, weights, fields.get("base_model_name_or_path") or "")


def _number(fields: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """Return a number of the config; where it is missing, peft's default."""
    value = fields.get(name, default)
    if not (type(value) is int or (kind is float and type(value) is float)):
        raise UserError(f"{name}: found {shown(value)}, expected {'an integer' if kind is int else 'a number'}")
    return value


def write_peft(folder: Path, lora: LoraConfig, weights: Tensors, base: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads, with the checksums of its files.

    Args:
        folder: an existing folder to write into.
        lora: of the model.
        weights: all of the model's, by Hugging Face's names; those of the adapters are written.
        base: name or path of the model that they adapt.
    """
    adapters = {PREFIX + name: each for name, each in weights.stored.items() if is_adapter(name)}
    write_tensors(folder / WEIGHTS, Tensors(adapters), {"format": "pt"})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    write_sums(folder)
