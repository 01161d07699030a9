"""The command line: YAML by `--config`, any field by its dotted name, and one-line errors that name the field.

jsonargparse reads the dataclasses of `lmcore.config`, so help, types and defaults are written once, there. This file
adds what it leaves open: several values after a list field, the nearest name for a typo, and the choice of a run
folder. Importing it is cheap: `--help` must answer before any framework is loaded.
"""

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from lmcore import config as configs
from lmcore.config import Config
from lmcore.errors import UserError

__all__ = ["command_parser", "parse", "parse_arguments"]

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def command_parser(prog: str, description: str, usage: str) -> ArgumentParser:
    """An empty parser in the style of this project's commands; parse with `parse_arguments`."""
    return ArgumentParser(prog=prog, description=description, usage=f"{prog} {usage}", exit_on_error=False)


def parse(argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Read a whole `Config` from the command line, `run_dir` chosen.

    With `--train.resume auto`, a `run_dir` and no `--config`, the config saved in that run is the base.

    Raises:
        UserError: an option is unknown, has the wrong type, or does not fit the others.
    """
    parser = command_parser(prog, description, "[--config FILE] [--FIELD VALUE ...]")
    parser.add_argument("--config", action="config", help="YAML file; fields on the command line override it.")
    parser.add_argument("--run_dir", type=str | None, help="Folder of the run; null makes a new one under runs/.")
    for name, group in configs.GROUPS.items():
        parser.add_class_arguments(group, name)
    parsed = parse_arguments(parser, argv)
    files = [str(path) for path in parsed.config or []]
    resume = parsed.train.resume == "auto"
    if resume and not files and parsed.run_dir and (saved := Path(parsed.run_dir) / "config.yaml").exists():
        return _read_over(configs.load(saved), parser, argv)
    parsed.run_dir = parsed.run_dir or str(_choose_run_dir(Path(files[-1]).stem if files else "quickstart", resume))
    return _make_config(parsed)


def parse_arguments(parser: ArgumentParser, argv: Sequence[str] | None) -> Namespace:
    """Parse, turning jsonargparse's errors into one line.

    Raises:
        UserError: an option is unknown or has the wrong type.
    """
    import sys

    known = {name: action for action in parser._actions for name in action.option_strings}
    lists = {name for name, action in known.items() if "list[" in str(getattr(action, "_typehint", ""))}
    try:
        return parser.parse_args(_gather_lists(sys.argv[1:] if argv is None else list(argv), lists))
    except argparse.ArgumentError as error:
        raise UserError(_one_line(str(error), [name.removeprefix("--") for name in known])) from None


def _read_over(base: Config, parser: ArgumentParser, argv: Sequence[str] | None) -> Config:
    """Parse again with `base` as the defaults."""
    parser.set_defaults({name: value for name, value in configs.flatten(base) if value is not None})
    return _make_config(parse_arguments(parser, argv))


def _make_config(parsed: Namespace) -> Config:
    values = parsed.as_dict()
    return configs.from_dict(Config, {name: values[name] for name in values if name != "config"})


def _choose_run_dir(name: str, resume: bool) -> Path:
    """`runs/NAME`, or the first free `runs/NAME-2`, ...; to resume, the last one that exists."""
    taken = last = Path("runs", name)
    number = 1
    while taken.exists():
        last, number = taken, number + 1
        taken = Path("runs", f"{name}-{number}")
    return last if resume else taken


def _gather_lists(argv: list[str], lists: set[str]) -> list[str]:
    """Turn `--data.files a b --data.files c` into one JSON list, which is what jsonargparse reads."""
    gathered: dict[str, list[str]] = {}
    rest: list[str] = []
    name = None
    for word in argv:
        option, equals, value = word.partition("=")
        if option in lists and not value.startswith("["):
            name = option
            gathered.setdefault(name, []).extend([value] if equals else [])
        elif name and not word.startswith("--"):
            gathered[name].append(word)
        else:
            name = None
            rest.append(word)
    return rest + [f"{name}={json.dumps(values)}" if values else name for name, values in gathered.items()]


def _one_line(message: str, names: Iterable[str]) -> str:
    """Say in one line what jsonargparse says in several, with the nearest name for an unknown one."""
    message = " ".join(message.split())
    if match := re.match(r'Parser key "([^"]+)": Expected an? (.+?)\. Got value: (.*)', message):
        field, expected, found = match.groups()
        expected = re.sub(r"<class '(\w+)'>|typing\.", lambda m: m.group(1) or "", expected)
        if literal := re.fullmatch(r"Literal\[(.*)\]", expected):
            expected = "one of " + literal.group(1).replace("'", "")
        return f"{field}: found {found!r}, expected {_TYPES.get(expected, expected)}"
    if match := re.match(r'Parser key "config": File does not exist: (.*)', message):
        return f"--config: found no file {match.group(1)}, expected the path of a YAML file"
    if match := re.match(r'Parser key "([^"]+)": .*Option \'([^\']+)\' is not accepted', message):
        return _unknown(".".join(match.groups()), names)
    if match := re.match(r"Group '([^']+)' does not accept option '([^']+)'", message):
        return _unknown(".".join(match.groups()), names)
    if match := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        return _unknown(match.group(1).partition("=")[0], names)
    return message


_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list", "str": "a text"}


def _unknown(name: str, names: Iterable[str]) -> str:
    if "." not in name and not name.startswith("-"):
        return f"{name}: an argument too many; fields are given as --FIELD VALUE"
    by_name: dict[str, Any] = {n: n for n in names}
    by_name |= {n.rpartition(".")[2]: n for n in by_name}
    near = difflib.get_close_matches(name.removeprefix("--"), by_name, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(name.rpartition(".")[2], by_name, n=1, cutoff=0.6)
    hint = f"did you mean {by_name[near[0]]}?" if near else "see --help for the fields there are"
    return f"{name}: no such field; {hint}"
