"""The command line: YAML by `--config`, any field by its dotted name, and one-line errors that name the field.

jsonargparse reads the dataclasses of `lmcore.config`, so help, types and defaults are written once, there. This file
adds what it leaves open: several values after a list field, the nearest name for a typo, and the choice of a run
folder. Importing it is cheap: `--help` must answer before any framework is loaded.
"""

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from lmcore import config as configs
from lmcore.config import Config
from lmcore.errors import UserError

__all__ = ["add_no_verify", "command_parser", "named_as_options", "parse", "parse_arguments"]

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def command_parser(prog: str, description: str, usage: str) -> ArgumentParser:
    """An empty parser in the style of this project's commands; parse with `parse_arguments`."""
    usage = f"{prog} {usage}"
    return ArgumentParser(prog=prog, description=description, usage=usage, exit_on_error=False, allow_abbrev=False)


def add_no_verify(parser: ArgumentParser) -> None:
    """Add the option by which a command takes damaged files as they are."""
    parser.add_argument("--no_verify", action="store_true", help="Do not compare files with their checksums.")


def parse(argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Read a whole `Config` from the command line, `run_dir` chosen.

    With `--train.resume auto`, a `run_dir` and no `--config`, the config saved in that run is the base.

    Raises:
        UserError: an option is unknown, has the wrong type, or does not fit the others.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    words = ["--checkpoint.verify=false" if word == "--no_verify" else word for word in words]
    parser = command_parser(prog, description, "[--config FILE] [--FIELD VALUE ...] [--no_verify]")
    parser.add_argument("--config", action="config", help="YAML file; fields on the command line override it.")
    parser.add_argument("--run_dir", type=str | None, help="Folder of the run; null makes a new one under runs/.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    parsed = parse_arguments(parser, words)
    files = [str(path) for path in parsed.config or []]
    resume = parsed.train.resume == "auto"
    if resume and not files and parsed.run_dir and (saved := Path(parsed.run_dir) / "config.yaml").exists():
        parsed = parse_arguments(parser, ["--config", str(saved), *words])
    parsed.run_dir = parsed.run_dir or str(_choose_run_dir(Path(files[-1]).stem if files else "quickstart", resume))
    values = parsed.as_dict()
    return configs.from_dict(Config, {name: values[name] for name in values if name != "config"})


def parse_arguments(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Parse, turning jsonargparse's errors into one line.

    Raises:
        UserError: an option is unknown or has the wrong type, or a YAML file cannot be read.
    """
    known = _field_types(parser)
    lists = {f"--{name}" for name, hint in known.items() if get_origin(hint) is list or list[str] in get_args(hint)}
    words = sys.argv[1:] if argv is None else list(argv)
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):  # what Python makes of other bytes
            raise UserError(f"{word!a}: found bytes that are not UTF-8, expected text in UTF-8")
    words = _gather_lists(words, lists)
    files, words = _split_off(words, "--config")
    for file in files:
        _check_yaml(file)
    try:
        return parser.parse_args([*(f"--config={file}" for file in files), *words])
    except argparse.ArgumentError as error:
        raise UserError(_one_line(str(error), known)) from None


@contextmanager
def named_as_options(*groups: str) -> Iterator[None]:
    """Name fields of these groups as a command does that has them as options of its own: `seed` for `sample.seed`."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(rf"^(?:{'|'.join(groups)})\.", "--", str(error))) from error


def _field_types(parser: ArgumentParser) -> dict[str, Any]:
    """Dotted name -> type of all that can be set, those of nested groups included; None where there is no type."""
    known: dict[str, Any] = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if action.option_strings and (hint is not None or action.dest not in configs.GROUPS):
            known[action.dest] = hint
            if group := configs.group_in(hint):
                known |= {f"{action.dest}.{name}": kind for name, kind in get_type_hints(group).items()}
    return known


def _choose_run_dir(name: str, resume: bool) -> Path:
    """`runs/NAME`, or the first free `runs/NAME-2`, ...; to resume, the last one that exists."""
    taken = last = Path("runs", name)
    number = 1
    while taken.exists():
        last, number = taken, number + 1
        taken = Path("runs", f"{name}-{number}")
    return last if resume else taken


def _gather_lists(argv: list[str], lists: set[str]) -> list[str]:
    """Turn `--data.files a b --data.files c` into one YAML list, which is what jsonargparse reads."""
    gathered: dict[str, list[str]] = {}
    rest: list[str] = []
    name = None
    for word in argv:
        option, equals, value = word.partition("=")
        if option in lists and not _is_list(value):
            name = option
            gathered.setdefault(name, []).extend([value] if equals else [])
        elif name and not word.startswith("--"):
            gathered[name].append(word)
        else:
            name = None
            rest.append(word)
    for name, values in gathered.items():
        given = values[0] if len(values) == 1 and _is_list(values[0]) else _yaml_list(values)
        rest.append(f"{name}={given}" if values else name)
    return rest


def _yaml_list(texts: list[str]) -> str:
    """One line, every text in quotes; JSON's escapes of characters beyond 16 bits are not YAML's."""
    dumped = yaml.safe_dump(texts, default_flow_style=True, default_style='"', allow_unicode=True, width=math.inf)
    return dumped.removesuffix("\n")


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


def _split_off(argv: list[str], name: str) -> tuple[list[str], list[str]]:
    """Values of the option `name`, wherever it stands, and the other words."""
    values: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option != name:
            rest.append(word)
        elif equals:
            values.append(value)
        elif (following := next(words, None)) is not None:
            values.append(following)
        else:
            rest.append(word)
    return values, rest


def _check_yaml(path: str) -> None:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--config: found no file {path!r}, expected the path of a YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config: {path} cannot be read as YAML ({error})") from error
    groups = {name: found[name] for name in configs.GROUPS if name in found} if isinstance(found, dict) else {}
    for place, value in [(path, found), *((f"{path}: {name}", value) for name, value in groups.items())]:
        if not isinstance(value, dict):
            raise UserError(f"--config: {place} holds {value!r}, expected fields, each with its value")


def _one_line(message: str, known: dict[str, Any]) -> str:
    """Say in one line what jsonargparse says in several, with the nearest name for an unknown one."""
    message = " ".join(message.split())
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted|does not accept option '([^']+)'", message):
        group = re.match(r"Group '([^']+)'", message)
        return _unknown(".".join([*keys, *(group.groups() if group else ()), match.group(1) or match.group(2)]), known)
    if match := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        word = match.group(1).partition("=")[0]
        if word.startswith("-"):
            return _unknown(word, known)
        return f"{word}: an argument too many; fields are given as --FIELD VALUE"
    if match := re.match(r"argument (?:-\w/)?--([^\s/:]+)\S*: expected one argument", message):
        return f"{match.group(1)}: found no value, expected {_expected(match.group(1), known)}"
    field = ".".join(dict.fromkeys(keys))
    if match := re.search(r"(?:Got|Given) value: (.+?)(?: - Expected .*)?$", message):
        return f"{field}: found {match.group(1)!r}, expected {_expected(field, known)}"
    if match := re.search(r"Unable to load config ['\"](.*?)['\"]", message):
        return f"{field}: found {match.group(1)!r}, expected one of its fields, as in --{field}.FIELD VALUE"
    return message


def _expected(field: str, known: dict[str, Any]) -> str:
    hint = known.get(field)
    return "a value" if hint is None else configs.describe_type(hint)


def _unknown(name: str, known: Iterable[str]) -> str:
    bare = name.lstrip("-")

    def likeness(field: str) -> float:
        last, whole = _ratio(bare.rpartition(".")[2], field.rpartition(".")[2]), _ratio(bare, field)
        if last < 0.6 and whole < 0.8:
            return 0.0
        return last + whole if "." in bare else max(last, whole)

    best = max(map(likeness, known))
    near = [field for field in known if likeness(field) == best]
    hint = f"did you mean {' or '.join(near)}?" if best else "see --help for the fields there are"
    return f"{name}: no such field; {hint}"


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
