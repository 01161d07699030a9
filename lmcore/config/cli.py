"""The command line: YAML by `--config`, any field by its dotted name, and one-line errors that name the field.

jsonargparse reads the dataclasses of `lmcore.config.schema`, so help, types and defaults are written once, there. This
file adds what it leaves open: files that are read by `lmcore.parsing` and checked before they become defaults, several
values after a list field, values that begin with a dash, the nearest name for a typo, and the choice of a run folder.
Values are texts on the command line and have types of their own in a file; a plain word means the same in both.
Importing it is cheap: `--help` must answer before any framework is loaded.
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
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader, set_parsing_settings

from lmcore import config as configs
from lmcore.config import Config
from lmcore.config.shipped import config_path
from lmcore.errors import UserError, is_unicode, shown
from lmcore.parsing import parse_json, parse_scalar, parse_yaml, read_yaml

__all__ = ["add_config", "add_no_verify", "command_parser", "named_as_options", "parse", "parse_arguments"]

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def _load(text: str) -> Any:
    """What jsonargparse takes a word for; a comment, say, is a text and not nothing."""
    value = parse_yaml(text)
    return text if value is None else value


set_loader("twinlm", _load, (yaml.YAMLError, ValueError))

OPTION = re.compile(r"--[A-Za-z][\w.\-]*(=.*)?", re.DOTALL)
"""What looks like an option: no other word that begins with a dash does."""


def command_parser(prog: str, description: str, usage: str) -> ArgumentParser:
    """An empty parser in the style of this project's commands; parse with `parse_arguments`."""
    usage = f"{prog} {usage}"
    return ArgumentParser(
        prog=prog, description=description, usage=usage, exit_on_error=False, allow_abbrev=False, parser_mode="twinlm"
    )


def add_config(parser: ArgumentParser) -> None:
    """Add `--config`, which may be given several times."""
    names = "YAML file, or the bare name of a shipped config; options override it."
    parser.add_argument("--config", action="config", help=names)


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
    add_config(parser)
    parser.add_argument("--run_dir", type=str | None, help="Folder of the run; null makes a new one under runs/.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    parsed = parse_arguments(parser, words)
    files = [str(path) for path in parsed.config or []]
    resume = parsed.train.resume == "auto"
    if resume and not files and parsed.run_dir and (saved := Path(parsed.run_dir) / "config.yaml").exists():
        parsed = parse_arguments(parser, ["--config", str(saved), *words])
    parsed.run_dir = parsed.run_dir or str(_choose_run_dir(Path(files[-1]).stem if files else "quickstart", resume))
    return _config(parsed)


def parse_arguments(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Parse; the fields of every `--config` become defaults, which options override.

    With `--print_config`, print the config that the other words make, if it is a possible one, and end the program.

    Raises:
        UserError: an option is unknown or has the wrong type, or a YAML file cannot be read.
    """
    known = _field_types(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    for word in words:
        if not is_unicode(word):  # what Python makes of other bytes
            raise UserError(f"{word!a}: found bytes that are not UTF-8, expected text in UTF-8")
    files: list[str] = []
    printing = "config" in known and "--print_config" in words
    if "config" in known:
        files, words = _split_off(words, "--config")
        words = [word for word in words if word != "--print_config"]
    for file in files:
        parser.set_defaults(_defaults(parser, file, known))
    try:
        parsed = parser.parse_args(_joined(_gather_lists(words, known), parser, known))
    except argparse.ArgumentError as error:
        raise UserError(_one_line(str(error), known)) from None
    if "config" in known:
        parsed.config = files
    if printing:
        print(configs.to_yaml(_config(parsed)), end="")
        raise SystemExit(0)
    return parsed


def _config(parsed: Namespace) -> Config:
    values = parsed.as_dict()
    return configs.from_dict(Config, {name: values[name] for name in ("run_dir", *configs.GROUPS) if name in values})


def _defaults(parser: ArgumentParser, named: str, known: dict[str, Any]) -> dict[str, Any]:
    """Dotted name -> value of what a YAML file sets, nested groups filled up with what was set before."""
    path = config_path(named, "--config")
    try:
        found = read_yaml(path)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    groups = {name: found[name] for name in configs.GROUPS if name in found} if isinstance(found, dict) else {}
    for place, value in [(str(path), found), *((f"{path}: {name}", value) for name, value in groups.items())]:
        if not isinstance(value, dict):
            raise UserError(f"--config: {place} holds {shown(value)}, expected fields, each with its value")
    for name in _names(found):
        if name not in known and name not in configs.GROUPS:
            raise UserError(f"{_unknown(name, known)} ({path})")
    try:
        configs.check_types(Config, found)
    except UserError as error:
        raise UserError(f"{error} ({path})") from error
    defaults: dict[str, Any] = {}
    for name, value in found.items():
        fields = {f"{name}.{field}": inner for field, inner in value.items()} if name in groups else {name: value}
        for field, inner in fields.items():
            before = parser.get_default(field) if isinstance(inner, dict) else None
            before = before.as_dict() if isinstance(before, Namespace) else before
            defaults[field] = before | inner if isinstance(before, dict) else inner
    return defaults


def _names(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted name of everything in a file that has a value of its own."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


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


def _gather_lists(argv: list[str], known: dict[str, Any]) -> list[str]:
    """Turn `--data.files a b --data.files c` into one YAML list, which is what jsonargparse reads.

    A field of a config takes a JSON list of texts too; an option of a command, such as `--prompt`, takes words alone.
    """
    lists = {f"--{name}" for name, hint in known.items() if get_origin(hint) is list or list[str] in get_args(hint)}
    gathered: dict[str, list[str]] = {}
    rest: list[str] = []
    name = None
    for word in argv:
        option, equals, value = word.partition("=")
        if option in lists:
            name = option
            gathered.setdefault(name, []).extend([value] if equals else [])
        elif name and not OPTION.fullmatch(word):
            gathered[name].append(word)
        else:
            name = None
            rest.append(word)
    for name, values in gathered.items():
        texts = _texts(values[0]) if len(values) == 1 and "." in name else None
        rest.append(f"{name}={_yaml_list(values if texts is None else texts)}" if values else name)
    return rest


def _yaml_list(texts: list[str]) -> str:
    """One line, every text in quotes; JSON's escapes of characters beyond 16 bits are not YAML's."""
    dumped = yaml.safe_dump(texts, default_flow_style=True, default_style='"', allow_unicode=True, width=math.inf)
    return dumped.removesuffix("\n")


def _texts(text: str) -> list[str] | None:
    """The texts of a JSON list, or None where it is none."""
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _joined(argv: list[str], parser: ArgumentParser, known: dict[str, Any]) -> list[str]:
    """Join an option and its one value, which may begin with a dash, and write numbers as they are meant.

    Raises:
        UserError: a number, a truth value or null is expected and not found.
    """
    single = {name for action in parser._actions if action.nargs is None for name in action.option_strings}
    single |= {f"--{name}" for name, hint in known.items() if hint is not None}
    words: list[str] = []
    for word in argv:
        if words and words[-1] in single and not OPTION.fullmatch(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return [_meant(word, known) for word in words]


def _meant(word: str, known: dict[str, Any]) -> str:
    """`--train.steps=0100` -> `--train.steps=100`: every plain word as `lmcore.parsing` understands it."""
    option, equals, text = word.partition("=")
    name = option.removeprefix("--")
    hint = known.get(name)
    if not equals or not option.startswith("--") or not set(get_args(hint) or [hint]) <= {int, float, bool, NoneType}:
        return word
    try:
        value = parse_scalar(text.strip()) if text.strip() else text  # an empty variable of a shell is not null
    except yaml.YAMLError:
        value = text
    if not configs.fits(value, hint):
        raise UserError(f"{_named(name)}: found {shown(text)}, expected {configs.describe_type(hint)}")
    return f"{option}={json.dumps(value)}"


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
        return f"{_named(match.group(1))}: found no value, expected {_expected(match.group(1), known)}"
    field = ".".join(dict.fromkeys(keys))
    if match := re.search(r"(?:Got|Given) value: ?(.*?)(?: - Expected .*)?$", message):
        return f"{_named(field)}: found {shown(match.group(1))}, expected {_expected(field, known)}"
    if match := re.search(r"Unable to load config ['\"](.*?)['\"]", message):
        return f"{field}: found {shown(match.group(1))}, expected one of its fields, as in --{field}.FIELD VALUE"
    return message


def _named(field: str) -> str:
    """A field of a config by its name, an option of a command as it is typed."""
    return field if "." in field or field in configs.GROUPS else f"--{field}"


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
