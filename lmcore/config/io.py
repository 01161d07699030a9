"""Convert configs to and from plain values and YAML: check names and types, save with the run, and load."""

import difflib
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lmcore.config.schema import Config
from lmcore.config.values import Derived
from lmcore.errors import UserError, is_unicode, shown
from lmcore.files import check_stamp, replace_file, stamp
from lmcore.parsing import parse_yaml, read_text

__all__ = [
    "GROUPS",
    "check_types",
    "describe_type",
    "differences",
    "fits",
    "flatten",
    "from_dict",
    "group_in",
    "load",
    "save",
    "to_dict",
    "to_yaml",
]

GROUPS: dict[str, type] = {f.name: f.default_factory for f in fields(Config) if f.name != "run_dir"}  # type: ignore
"""Name of each group of fields -> its class."""


def group_in(hint: Any) -> type | None:
    """Return the config class among the types in a field's annotation, or None."""
    return next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)  # type: ignore[return-value]


def describe_type(hint: Any) -> str:
    """Describe in words the values that a field of this type takes."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is list:
        return "a list of strings"
    if is_dataclass(hint):
        return "fields, each with its value"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string", NoneType: "null"}
    return words[hint] if hint in words else " or ".join(map(describe_type, get_args(hint)))


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value matches the type of a field."""
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
    """Check the names and types, but not the ranges, of nested plain values.

    Args:
        cls: `Config` or one of its groups.
        values: a mapping of field names to values; fields may be missing.
        prefix: what an error message puts before a field's name: the group's name and a dot.

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
    """Build a config object from nested plain values such as YAML holds.

    Args:
        cls: `Config` or one of its groups.
        values: a mapping of field names to values; a missing field takes its default.
        prefix: what an error message puts before a field's name: the group's name and a dot.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of range.
    """
    check_types(cls, values, prefix)
    hints = get_type_hints(cls)

    def convert(name: str, value: Any) -> Any:
        group = group_in(hints[name])
        if group and value is not None:
            return from_dict(group, value, f"{prefix}{name}.")
        return float(value) if hints[name] is float else value

    return cls(**{name: convert(name, value) for name, value in values.items()})


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field of a config, including those of its groups."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two configs differ: dotted name -> (old value, new value)."""
    before, after = dict(flatten(old)), dict(flatten(new))
    names = [*before, *(name for name in after if name not in before)]
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def to_dict(config: Any) -> dict[str, Any]:
    """Return nested plain values from which `from_dict` builds the same config; derived values are left unset."""

    def plain(name: str, value: Any) -> Any:
        if is_dataclass(value):
            return to_dict(value)
        return unset[name] if isinstance(value, Derived) else value

    unset = {f.name: f.default for f in fields(config)}
    return {f.name: plain(f.name, getattr(config, f.name)) for f in fields(config)}


def to_yaml(config: Config) -> str:
    """Return the config as YAML, without derived values."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def save(config: Config, path: Path) -> None:
    """Write the config as YAML, without derived values, below a line with its checksum."""
    replace_file(path, stamp(to_yaml(config)))


def load(path: Path, verify: bool = True) -> Config:
    """Load a config that `save` wrote.

    Raises:
        UserError: the file is missing, is not a config, or does not match its checksum.
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
        raise UserError(f"{path}: found no {', '.join(missing)}, expected a complete config: its end is cut off")
    return config
