"""`python -m lmcore.config.reference`: print docs/config.md, the reference of all config fields."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from docstring_parser import parse_from_object

from lmcore import config as configs
from lmcore.errors import command

__all__ = ["main", "reference"]

OPENING = """# Every field of a config

Printed by `python -m lmcore.config.reference`; `--help` has the same descriptions. A field is set in a YAML file
(`--config`), in the group that heads its table, or on the command line as `--GROUP.FIELD VALUE`, which wins. `run_dir`
stands alone: the folder of the run; null creates a new one under `runs/`.
"""


def reference() -> str:
    """Return the page as Markdown."""
    parts = [OPENING]
    for name, group in configs.GROUPS.items():
        parts.append(_table(name, group))
        for field, hint in get_type_hints(group).items():
            parts += [
                _table(f"{name}.{field}", inner)
                for inner in get_args(hint)
                if isinstance(inner, type) and is_dataclass(inner)
            ]
    return "\n".join(parts)


def _table(name: str, group: type) -> str:
    docstring = parse_from_object(group)
    rows = [f"## {name}\n", f"{docstring.short_description}\n", "| field | type | default | |", "|---|---|---|---|"]
    described = {parameter.arg_name: parameter.description for parameter in docstring.params}
    rows += _rows(group, described)
    return "\n".join(rows) + "\n"


def _rows(group: type, described: dict[str, str | None]) -> Iterator[str]:
    hints = get_type_hints(group)
    for field in fields(group):
        text = " ".join((described.get(field.name) or "").split())
        cells = [f"`{field.name}`", configs.describe_type(hints[field.name]), f"`{_default(field)}`", text]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: Field) -> str:
    """Return a default as YAML writes it."""
    value: Any = field.default_factory() if callable(field.default_factory) else field.default
    named = {None: "null", True: "true", False: "false", "": '""'}
    return named[value] if isinstance(value, bool | str | None) and value in named else str(value)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the reference page."""
    print(reference(), end="")


if __name__ == "__main__":
    sys.exit(main())
