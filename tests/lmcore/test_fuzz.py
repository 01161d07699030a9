"""Whatever a config holds, it is taken or refused in one line, at once: no traceback, no hang."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.config import cli, flatten, load, to_yaml
from lmcore.errors import UserError
from lmcore.model.memory import check_memory
from lmcore.parsing import parse_yaml
from tests.lmcore.mutations import changed_fields, changed_text, write

SECONDS = 5.0


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
