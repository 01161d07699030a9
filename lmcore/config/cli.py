"""The command line: YAML files by `--config`, any field by its dotted name, and one-line errors that name the field.

jsonargparse reads the dataclasses of `lmcore.config.schema`, so help, types and defaults are written once, there. This
module adds what jsonargparse lacks: YAML files are read by `lmcore.parsing` and checked before they become defaults,
a list field takes several values, a value may begin with a dash, a typo gets the nearest name, and a run gets a folder.
On the command line every value is a string, in a file it has a type; a plain scalar means the same in both.
Importing this module is cheap, since `--help` must answer before any framework is loaded.
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
    """Parse a command-line value for jsonargparse; what YAML reads as null (a comment, say) stays a string."""
    value = parse_yaml(text)
    return text if value is None else value


set_loader("twinlm", _load, (yaml.YAMLError, ValueError))

OPTION = re.compile(r"--[A-Za-z][\w.\-]*(=.*)?", re.DOTALL)
"""Matches an option. Other arguments that begin with a dash, such as -1, are values."""


def command_parser(prog: str, description: str, usage: str) -> ArgumentParser:
    """Return an empty parser in the style of this project's commands; parse with `parse_arguments`.

    Args:
        prog: how the command is called, such as `python -m jaxlm.train`.
        description: what `--help` says the command does.
        usage: its arguments, without `prog`.
    """
    usage = f"{prog} {usage}"
    return ArgumentParser(
        prog=prog, description=description, usage=usage, exit_on_error=False, allow_abbrev=False, parser_mode="twinlm"
    )


def add_config(parser: ArgumentParser) -> None:
    """Add `--config`, which may be given more than once."""
    names = "YAML file, or the bare name of a shipped config; options override it."
    parser.add_argument("--config", action="config", help=names)


def add_no_verify(parser: ArgumentParser) -> None:
    """Add `--no_verify`, which makes a command read files without comparing their checksums."""
    parser.add_argument("--no_verify", action="store_true", help="Do not compare files with their checksums.")


def parse(argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Read a complete `Config` from the command line and choose its `run_dir`.

    The base is the config saved in the run, with `--train.resume auto`, a `run_dir` and no `--config`, or the model and
    tokenizer of `--train.init_from`.

    Args:
        argv: command-line arguments; None takes those of the process.
        prog: how the command is called.
        description: what `--help` says the command does.

    Raises:
        UserError: an option is unknown, has the wrong type, or does not fit the others.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    words = ["--checkpoint.verify=false" if word == "--no_verify" else word for word in words]
    parser = command_parser(prog, description, "[--config FILE] [--FIELD VALUE ...] [--no_verify]")
    add_config(parser)
    parser.add_argument("--run_dir", type=str | None, help="Folder of the run; null creates a new one under runs/.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    first = [word for word in words if word != "--print_config"]
    parsed = parse_arguments(parser, first)
    files, source = [str(path) for path in parsed.config or []], parsed.train.init_from
    resume = parsed.train.resume == "auto"
    if resume and (source or not files) and parsed.run_dir and (saved := Path(parsed.run_dir) / "config.yaml").exists():
        words = ["--config", str(saved), *words]
    elif source is not None:
        from lmcore.model.pretrained import open_pretrained

        pretrained = open_pretrained(source, parsed.data.dir, verify=parsed.checkpoint.verify)
        parser.set_defaults(pretrained.fields())
    if source is not None or words != first:
        parsed = parse_arguments(parser, words)
    parsed.run_dir = parsed.run_dir or str(_choose_run_dir(Path(files[-1]).stem if files else "quickstart", resume))
    return _config(parsed)


def parse_arguments(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Parse the command line; the fields of each `--config` file become defaults, which options override.

    With `--print_config`, print the config that the other arguments define, if it is valid, and exit.

    Raises:
        UserError: an option is unknown or has the wrong type, or a YAML file cannot be read.
    """
    known = _field_types(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    for word in words:
        if not is_unicode(word):  # Python decodes bytes that are not UTF-8 to lone surrogates
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
    """Return dotted name -> value for all that a YAML file sets; nested groups are merged with earlier defaults."""
    path = config_path(named, "--config")
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    groups = {name: content[name] for name in configs.GROUPS if name in content} if isinstance(content, dict) else {}
    for place, value in [(str(path), content), *((f"{path}: {name}", value) for name, value in groups.items())]:
        if not isinstance(value, dict):
            raise UserError(f"--config: {place} holds {shown(value)}, expected fields, each with its value")
    for name in _names(content):
        if name not in known and name not in configs.GROUPS:
            raise UserError(f"{_unknown(name, known)} ({path})")
    try:
        configs.check_types(Config, content)
    except UserError as error:
        raise UserError(f"{error} ({path})") from error
    defaults: dict[str, Any] = {}
    for name, value in content.items():
        fields = {f"{name}.{field}": inner for field, inner in value.items()} if name in groups else {name: value}
        for field, inner in fields.items():
            before = parser.get_default(field) if isinstance(inner, dict) else None
            before = before.as_dict() if isinstance(before, Namespace) else before
            defaults[field] = before | inner if isinstance(before, dict) else inner
    return defaults


def _names(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every leaf in the nested mapping of a file."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@contextmanager
def named_as_options(*groups: str) -> Iterator[None]:
    """Rename fields of these groups in errors to the command's own options: `--seed` for `sample.seed`."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(rf"^(?:{'|'.join(groups)})\.", "--", str(error))) from error


def _field_types(parser: ArgumentParser) -> dict[str, Any]:
    """Return dotted name -> type for all that can be set, nested groups included; None where there is no type."""
    known: dict[str, Any] = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if action.dest.endswith(".help"):  # jsonargparse's own, of a nested group
            continue
        if action.option_strings and (hint is not None or action.dest not in configs.GROUPS):
            known[action.dest] = hint
            if group := configs.group_in(hint):
                known |= {f"{action.dest}.{name}": kind for name, kind in get_type_hints(group).items()}
    return known


def _choose_run_dir(name: str, resume: bool) -> Path:
    """Return `runs/NAME`, or the first free `runs/NAME-2`, ...; to resume, the last one that exists."""
    taken = last = Path("runs", name)
    number = 1
    while taken.exists():
        last, number = taken, number + 1
        taken = Path("runs", f"{name}-{number}")
    return last if resume else taken


def _gather_lists(argv: list[str], known: dict[str, Any]) -> list[str]:
    """Merge `--data.files a b --data.files c` into one YAML list, the form that jsonargparse reads.

    A config field also takes a JSON list of strings. A command's own option, such as `--prompt`, does not: a prompt
    may look like a JSON list.
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
        strings = _json_strings(values[0]) if len(values) == 1 and "." in name else None
        rest.append(f"{name}={_yaml_list(values if strings is None else strings)}" if values else name)
    return rest


def _yaml_list(strings: list[str]) -> str:
    """Write strings as a YAML list on one line, all quoted; JSON would escape characters beyond 16 bits otherwise."""
    dumped = yaml.safe_dump(strings, default_flow_style=True, default_style='"', allow_unicode=True, width=math.inf)
    return dumped.removesuffix("\n")


def _json_strings(text: str) -> list[str] | None:
    """Return the strings of a JSON list, or None if the text is not one."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _joined(argv: list[str], parser: ArgumentParser, known: dict[str, Any]) -> list[str]:
    """Join each option and its single value, which may begin with a dash, and normalize scalars.

    Raises:
        UserError: an option takes a number, a boolean or null, and its value is none of them.
    """
    single = {name for action in parser._actions if action.nargs is None for name in action.option_strings}
    single |= {f"--{name}" for name, hint in known.items() if hint is not None}
    words: list[str] = []
    for word in argv:
        if words and words[-1] in single and not OPTION.fullmatch(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return [_normalized(word, known) for word in words]


def _normalized(word: str, known: dict[str, Any]) -> str:
    """Rewrite a scalar as `lmcore.parsing` reads it: `--train.steps=0100` becomes `--train.steps=100`."""
    option, equals, text = word.partition("=")
    name = option.removeprefix("--")
    hint = known.get(name)
    if not equals or not option.startswith("--") or not set(get_args(hint) or [hint]) <= {int, float, bool, NoneType}:
        return word
    try:
        value = parse_scalar(text.strip()) if text.strip() else text  # an empty shell variable is not null
    except yaml.YAMLError:
        value = text
    if not configs.fits(value, hint):
        raise UserError(f"{_named(name)}: found {shown(text)}, expected {configs.describe_type(hint)}")
    return f"{option}={json.dumps(value)}"


def _split_off(argv: list[str], name: str) -> tuple[list[str], list[str]]:
    """Return the values of option `name`, wherever it stands, and the remaining arguments."""
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
    """Reduce a message of jsonargparse to one line, with the nearest name for an unknown option."""
    message = " ".join(message.split())
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted|does not accept option '([^']+)'", message):
        group = re.match(r"Group '([^']+)'", message)
        return _unknown(".".join([*keys, *(group.groups() if group else ()), match.group(1) or match.group(2)]), known)
    if match := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        word = match.group(1).partition("=")[0]
        if word.startswith("-"):
            return _unknown(word, known)
        return f"{word}: unexpected argument; set a field as --FIELD VALUE"
    if match := re.match(r"argument (?:-\w/)?--([^\s/:]+)\S*: expected one argument", message):
        return f"{_named(match.group(1))}: found no value, expected {_expected(match.group(1), known)}"
    field = ".".join(dict.fromkeys(keys))
    if match := re.search(r"NestedArg\(key=['\"]([^'\"]+)", message):
        return _unknown(f"{field}.{match.group(1)}", known)
    if match := re.search(r"(?:Got|Given) value: ?(.*?)(?: - Expected .*)?$", message):
        return f"{_named(field)}: found {shown(match.group(1))}, expected {_expected(field, known)}"
    if match := re.search(r"Unable to load config ['\"](.*?)['\"]", message):
        return f"{field}: found {shown(match.group(1))}, expected one of its fields, as in --{field}.FIELD VALUE"
    return message


def _named(field: str) -> str:
    """Return a config field by its name, and an option of a command as it is typed."""
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
