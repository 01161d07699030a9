"""Configs as plain values and as YAML: checked by name and type, saved with the run, and read again."""

import difflib
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lmcore.config.schema import Config, Derived
from lmcore.errors import UserError, is_unicode, shown
from lmcore.files import check_stamp, replace_file, stamp
from lmcore.parsing import parse_yaml, read_text

__all__ = [
    "GROUPS",
    "as_given",
    "check_types",
    "describe_type",
    "differences",
    "fits",
    "flatten",
    "from_dict",
    "group_in",
    "load",
    "save",
    "to_yaml",
]

GROUPS: dict[str, type] = {f.name: f.default_factory for f in fields(Config) if f.name != "run_dir"}  # type: ignore
"""Name of each group of fields -> its class."""


def group_in(hint: Any) -> type | None:
    """The config class among the types that a field may have, if there is one."""
    return next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)  # type: ignore[return-value]


def describe_type(hint: Any) -> str:
    """What a field of this type takes, in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is list:
        return "a list of texts"
    if is_dataclass(hint):
        return "fields, each with its value"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    return words[hint] if hint in words else " or ".join(map(describe_type, get_args(hint)))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field has."""
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if hint is int:
        return type(value) is int or isinstance(value, Derived)
    if isinstance(hint, type):
        return type(value) is hint
    return any(fits(value, kind) for kind in get_args(hint))


def check_types(cls: type, values: Any, prefix: str = "") -> None:
    """Check names and types of nested plain values, whatever else they may be.

    Args:
        cls: `Config` or one of its groups.
        values: a mapping of field names to values, perhaps not of all.
        prefix: what a message puts before the name of a field: the group's name and a dot.

    Raises:
        UserError: a key is unknown, or a value is of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"{prefix.rstrip('.') or 'config'}: found {shown(values)}, expected fields, each with its value"
        )
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise UserError(f"{prefix}{shown(name)[1:-1]}: no such field{hint}")
        group = group_in(hints[name])
        if group and not (value is None and hints[name] is not group):
            check_types(group, value, f"{prefix}{name}.")
        elif not fits(value, hints[name]):
            raise UserError(f"{prefix}{name}: found {shown(value)}, expected {describe_type(hints[name])}")
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise UserError(f"{prefix}{name}: found {shown(value)}, expected {describe_type(hints[name])} of 64 bits")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not is_unicode(text):
                raise UserError(f"{prefix}{name}: found {text!a}, half a surrogate pair, expected Unicode text")


def from_dict(cls: type, values: Any, prefix: str = "") -> Any:
    """Make `cls`, a config class, from nested plain values such as YAML holds.

    Args:
        cls: `Config` or one of its groups.
        values: a mapping of field names to values.
        prefix: what a message puts before the name of a field: the group's name and a dot.

    Raises:
        UserError: a key is unknown, or a value is of the wrong type or impossible.
    """
    check_types(cls, values, prefix)
    hints = get_type_hints(cls)

    def made(name: str, value: Any) -> Any:
        group = group_in(hints[name])
        return from_dict(group, value, f"{prefix}{name}.") if group and value is not None else value

    return cls(**{name: made(name, value) for name, value in values.items()})


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field of a config, groups opened."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ: dotted name -> (old value, new value)."""
    before, after = dict(flatten(old)), dict(flatten(new))
    names = [*before, *(name for name in after if name not in before)]
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def as_given(config: Any) -> dict[str, Any]:
    """Nested plain values that make the same config, what was derived not given: `from_dict` derives it again."""

    def plain(name: str, value: Any) -> Any:
        if is_dataclass(value):
            return as_given(value)
        return unset[name] if isinstance(value, Derived) else value

    unset = {f.name: f.default for f in fields(config)}
    return {f.name: plain(f.name, getattr(config, f.name)) for f in fields(config)}


def to_yaml(config: Config) -> str:
    """The config as YAML, what was derived not given."""
    return yaml.safe_dump(as_given(config), sort_keys=False, allow_unicode=True)


def save(config: Config, path: Path) -> None:
    """Write the config as YAML under a line with its checksum, what was derived not given."""
    replace_file(path, stamp(to_yaml(config)))


def load(path: Path, verify: bool = True) -> Config:
    """Read a config that `save` wrote.

    Raises:
        UserError: the file is missing, is not a config, or is not what was written.
    """
    try:
        text = read_text(path)
        stamped = not verify or check_stamp(path, text)
        values = parse_yaml(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a config ({error})") from error
    try:
        config = from_dict(Config, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    missing = [] if stamped else [name for name in GROUPS if name not in values]
    if missing:
        raise UserError(f"{path}: found no {', '.join(missing)}, expected a whole config: its end is cut off")
    return config
