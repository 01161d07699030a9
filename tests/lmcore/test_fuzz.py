"""Whatever a config holds, it is taken or refused in one line, at once: no traceback, no hang."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.config import Config, cli, flatten, load, to_dict, to_yaml
from lmcore.errors import UserError
from lmcore.model.memory import check_memory
from lmcore.parsing import parse_yaml

VALID = to_yaml(Config())
PLAIN = json.dumps(to_dict(Config()))
NAMES = [name for name, _ in flatten(Config())]
SECONDS = 5.0

NUMBERS = st.one_of(st.integers(-(10**30), 10**30), st.floats(), st.sampled_from([0, 1, -1, 2**63, 10**12]))
WORDY = st.one_of(st.text(max_size=8), st.sampled_from(["false", "1e-3", "0100", "auto"]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDY)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=3)


@st.composite
def changed_fields(draw: st.DrawFn) -> dict[str, Any]:
    """A valid config in which a few fields have any value, or a group is something else."""
    config: dict[str, Any] = json.loads(PLAIN)
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)):
        group, _, field = name.rpartition(".")
        place = config[group] if group else config
        if not isinstance(place, dict) or draw(st.integers(0, 9)) == 0:
            config[group or field] = draw(VALUES)
        else:
            place[draw(st.text(max_size=5)) if draw(st.integers(0, 9)) == 0 else field] = draw(VALUES)
    return config


PIECES = ["\n", "  ", "\t", ":", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "!!x ", "'", '"', "|\n", "#", "%", "? "]
PIECES += ["---\n", "\0", "\ufeff", "1e999"]


@st.composite
def changed_text(draw: st.DrawFn) -> str:
    """A valid file with pieces of YAML, or of itself, put in, repeated or cut out."""
    text = VALID
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.integers(0, 60)))
        put = draw(st.sampled_from(PIECES) | st.text(max_size=3) | st.just(text[begin:end] * 2))
        text = text[:begin] + put * draw(st.sampled_from([1, 1, 1, 80, 2000])) + text[end:]
    return text


def one_line(do: Callable[[], Any]) -> Any:
    """What `do` returns, or None where it refuses in one line."""
    begin, made, message = time.process_time(), None, "-"
    try:
        made = do()
    except UserError as error:
        message = str(error)
    assert time.process_time() - begin < SECONDS
    assert 0 < len(message) < 2000
    assert "\n" not in message
    return made


def write(path: Path, drawn: str | dict[str, Any]) -> None:
    text = drawn if isinstance(drawn, str) else yaml.safe_dump(drawn, allow_unicode=True)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def check_file(path: Path, drawn: str | dict[str, Any]) -> None:
    """Reading a file ends well; what is accepted survives saving, and can be weighed."""
    write(path, drawn)
    config = one_line(lambda: load(path))
    if config is not None:
        path.write_text(to_yaml(config), encoding="utf-8")
        assert load(path) == config
        one_line(lambda: check_memory(config, training=True))


def check_command(path: Path, drawn: str | dict[str, Any]) -> None:
    """The command line says of a file what reading it says."""
    write(path, drawn)
    parsed = one_line(lambda: cli.parse(["--config", str(path), "--run_dir", "r"], prog="prog", description=""))
    loaded = one_line(lambda: load(path))
    assert parsed == (None if loaded is None else replace(loaded, run_dir="r"))


def run(check: Callable[[Path, Any], None], strategy: st.SearchStrategy[Any], examples: int, path: Path) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(strategy)
    def test(drawn: Any) -> None:
        check(path, drawn)

    test()


MUTATED = pytest.mark.parametrize("strategy", [changed_fields(), changed_text()], ids=["fields", "text"])


@MUTATED
def test_a_mutated_config_is_taken_or_refused_in_one_line(strategy: st.SearchStrategy[Any], tmp_path: Path):
    run(check_file, strategy, 150, tmp_path / "c.yaml")


@pytest.mark.slow
@MUTATED
def test_thousands_of_mutated_configs_are_taken_or_refused(strategy: st.SearchStrategy[Any], tmp_path: Path):
    run(check_file, strategy, 3000, tmp_path / "c.yaml")


def test_the_command_line_agrees_with_reading_the_file(tmp_path: Path):
    run(check_command, changed_fields(), 25, tmp_path / "c.yaml")


@pytest.mark.slow
def test_the_command_line_agrees_with_reading_a_thousand_files(tmp_path: Path):
    run(check_command, changed_fields() | changed_text(), 1000, tmp_path / "c.yaml")


FIELDS = st.sampled_from(["train.steps", "optim.lr", "log.wandb", "optim.warmup_steps"])
WORDS = st.text(alphabet="0123456789abxeEy_.+-:~nulofIN[]{}*! ", max_size=6)


def check_word(path: Path, drawn: tuple[str, str]) -> None:
    """A plain word has the same value on the command line and in a file."""
    name, word = drawn
    group, _, field = name.partition(".")
    try:
        [*found] = parse_yaml(f"- {word}")
    except yaml.YAMLError:
        return
    if not word.strip() or len(found) != 1 or isinstance(found[0], list | dict) or word.strip().startswith(("!", "- ")):
        return  # not a plain word
    path.write_text(f"{group}:\n  {field}: {word}\n", encoding="utf-8")

    def value(*argv: str) -> Any:
        config = one_line(lambda: cli.parse([*argv, "--run_dir", "r"], prog="prog", description=""))
        return None if config is None else dict(flatten(config))[name]

    assert repr(value("--config", str(path))) == repr(value(f"--{name}={word}"))


@pytest.mark.slow
def test_a_word_means_the_same_in_a_file_and_on_the_command_line(tmp_path: Path):
    run(check_word, st.tuples(FIELDS, WORDS), 400, tmp_path / "c.yaml")
