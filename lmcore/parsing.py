"""Parse YAML and JSON safely: bounded in size, depth and aliases, without duplicate keys, with one scalar syntax.

A plain scalar means the same in a file and on the command line, by YAML 1.2's core schema: `0100` is one hundred,
`1e-3` is a number, `1:30` and `2024-01-01` are strings. From YAML 1.1, `yes`, `no`, `on`, `off` and `1_000` are kept.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lmcore.errors import UserError

__all__ = ["MAX_JSON_BYTES", "parse_json", "parse_scalar", "parse_yaml", "read_json", "read_text", "read_yaml"]

MAX_DEPTH = 64
"""Maximum nesting depth of lists and mappings."""
MAX_VALUES = 100_000
"""Maximum number of values in a YAML file; values that aliases repeat count each time."""
MAX_DIGITS = 100
MAX_YAML_BYTES = 4 << 20
MAX_JSON_BYTES = 64 << 20

WHOLE = re.compile(r"[-+]?\d+(_\d+)*|0x[0-9a-fA-F]+")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
SPECIAL = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)
WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **{form: True for word in ("true", "yes", "on") for form in (word, word.title(), word.upper())},
    **{form: False for word in ("false", "no", "off") for form in (word, word.title(), word.upper())},
}
TEXT = "tag:yaml.org,2002:str"


def read_yaml(path: Path, what: str = "YAML") -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        what: kind of file, for the message "cannot be read as ...".

    Raises:
        UserError: the file is missing, invalid or too large, or has a duplicate key.
    """
    try:
        return parse_yaml(read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as {what} ({error})") from error


def read_json(path: Path, hint: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        hint: what to do about an invalid file; the end of the message.

    Raises:
        UserError: the file is missing, invalid or too large, or has a duplicate key.
    """
    try:
        return parse_json(read_text(path, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})" + (f"; {hint}" if hint else "")) from error


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: it is invalid or nested too deep, or has a duplicate key.
    """
    too_deep = f"lists or objects are nested more than {MAX_DEPTH} deep"
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(too_deep) from None
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level if isinstance(outer, list | dict) for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError(too_deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML text with one document.

    Raises:
        yaml.YAMLError: it is invalid, nested too deep or too long, or has a duplicate key.
    """
    return _Builder(text).document()


def read_text(path: Path, limit: int = MAX_YAML_BYTES) -> str:
    """Read a UTF-8 file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or larger than `limit` bytes.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content.decode("utf-8-sig")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(n for n in names if names.count(n) > 1)!r} in one object")
    return fields


def _inside(value: list[Any] | dict[str, Any]) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value)


def parse_scalar(text: str) -> Any:
    """Return the value of a plain scalar: null, a boolean, a number, or the string itself.

    Raises:
        yaml.YAMLError: it is an integer with more than MAX_DIGITS digits.
    """
    if text in WORDS:
        return WORDS[text]
    if WHOLE.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise yaml.YAMLError(f"found a number of {len(text):,} digits, expected at most {MAX_DIGITS}")
        return int(text, 16 if text.startswith("0x") else 10)
    if NUMBER.fullmatch(text):
        return float(text)
    if special := SPECIAL.fullmatch(text):
        return float("".join(special.groups()))
    return text


def _line(event: Any) -> int:
    return event.start_mark.line + 1


class _Builder:
    """Builds plain values from the events of PyYAML's parser and counts them, so that aliases cannot exhaust memory."""

    def __init__(self, text: str):
        self.events = yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.anchors: dict[str, tuple[Any, int] | None] = {}
        """Name of an anchor -> (value, number of values in it); None while its value is being built."""
        self.count = 0

    def document(self) -> Any:
        """Return the value of the only document."""
        documents = 0
        value = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise yaml.YAMLError(f"line {_line(event)} begins a second document, expected one")
                value = self._value(next(self.events), 0)
        return value

    def _value(self, event: Any, depth: int) -> Any:
        line, anchor = _line(event), event.anchor
        if isinstance(event, yaml.AliasEvent):
            return self._alias(anchor, line)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"line {line}: lists or mappings are nested more than {MAX_DEPTH} deep")
        if event.tag not in (None, "!", TEXT):
            raise yaml.YAMLError(f"line {line}: found the tag {event.tag!r}, expected plain values")
        before = self.count
        self._add(1, line)
        if anchor is not None:
            self.anchors[anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value = parse_scalar(event.value) if event.implicit[0] else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                value.append(self._value(event, depth + 1))
        else:
            value = self._mapping(depth)
        if anchor is not None:
            self.anchors[anchor] = value, self.count - before
        return value

    def _alias(self, anchor: str, line: int) -> Any:
        if anchor not in self.anchors:
            raise yaml.YAMLError(f"line {line}: found *{anchor}, expected &{anchor} before it")
        anchored = self.anchors[anchor]
        if anchored is None:
            raise yaml.YAMLError(f"line {line}: &{anchor} contains itself")
        value, count = anchored
        self._add(count, line)
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        """Return a mapping; keys are always strings, and the mapping's own keys override those merged by `<<`."""
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            line = _line(key)
            if not isinstance(key, yaml.ScalarEvent):
                raise yaml.YAMLError(f"line {line}: found a list, mapping or alias as a key, expected a string")
            name = key.value
            if name in lines:
                both = f"line {line}" if line == lines[name] else f"lines {lines[name]} and {line}"
                raise yaml.YAMLError(f"duplicate key {name!r}, {both}; keep one, with all that belongs to it")
            lines[name] = line
            value = self._value(next(self.events), depth + 1)
            if name != "<<" or not key.implicit[0]:
                own[name] = value
                continue
            sources = value if isinstance(value, list) else [value]
            if not all(isinstance(source, dict) for source in sources):
                raise yaml.YAMLError(f"line {line}: found something else after <<, expected mappings to merge")
            for source in reversed(sources):  # the first mapping takes precedence
                merged |= source
        return merged | own

    def _add(self, count: int, line: int) -> None:
        self.count += count
        if self.count > MAX_VALUES:
            raise yaml.YAMLError(
                f"line {line}: found more than {MAX_VALUES:,} values, those that aliases repeat included"
            )
