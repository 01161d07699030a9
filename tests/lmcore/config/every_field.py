"""All fields of a config, and configs in which every group is there."""

import json
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any, get_args, get_type_hints

from lmcore.config import Config, DataConfig, LoraConfig, ModelConfig, OptimConfig, RopeScaling, from_dict

DEFAULTS = Config(
    model=ModelConfig(rope_scaling=RopeScaling(), lora=LoraConfig()),
    data=DataConfig(files=["a.txt"]),
    optim=OptimConfig(lr=1),
)
RESOLVED = from_dict(Config, json.loads(json.dumps(asdict(DEFAULTS))))
"""The same, every field given."""


def all_fields(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every field that has a value of its own."""
    for name, hint in get_type_hints(kind).items():
        group = next((t for t in (hint, *get_args(hint)) if is_dataclass(t)), None)
        if group is not hint:
            yield prefix + name, hint
        if group:
            yield from all_fields(group, f"{prefix}{name}.")
