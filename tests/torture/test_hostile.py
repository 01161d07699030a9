"""Hostile files are refused or harmless, and one that is not is seen."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.torture import hostile
from tests.torture.damage import Refused
from tests.torture.hostile import Case, Lab
from tests.torture.hostile_cases import Code
from tests.torture.hostile_pages import EVIL, check_page


@pytest.mark.slow
def test_hostile_files_are_refused_or_harmless(tmp_path: Path):
    outcomes = list(hostile.faults(8, tmp_path))
    assert [outcome for outcome in outcomes if outcome.verdict == "lost"] == []
    assert len(outcomes) == 8
    assert sum(outcome.verdict == "refused" for outcome in outcomes) >= 4


def executes(lab: Lab) -> None:
    pickle.loads(pickle.dumps(Code(lab.marker)))


def writes(lab: Lab) -> None:
    (lab.outside / "new").write_text("x")


def copies(lab: Lab) -> None:
    Path("out").mkdir()
    Path("out", "copy").write_bytes((lab.outside / "secret.txt").read_bytes())


def commands_the_terminal(lab: Lab) -> None:
    print("a\x1b[2J")


def ends_by_a_traceback(lab: Lab) -> None:
    raise KeyError("x")


def refuses_without_a_word(lab: Lab) -> None:
    raise Refused(2)


def refuses_by_another_code(lab: Lab) -> None:
    print("error: no")
    raise Refused(1)


def refuses(lab: Lab) -> None:
    print("error: no")
    raise Refused(2)


def accepts(lab: Lab) -> None:
    """Say nothing."""


@pytest.mark.parametrize(
    ("does", "neutral", "verdict", "detail"),
    [
        (executes, True, "lost", "it was executed"),
        (writes, True, "lost", "it changed files outside of its folder"),
        (copies, True, "lost", "it copied a file from outside to out/copy"),
        (commands_the_terminal, True, "lost", "command 0: printed the control character '\\x1b'"),
        (ends_by_a_traceback, True, "lost", "command 0: traceback: KeyError: 'x'"),
        (refuses_without_a_word, True, "lost", "command 0: exit code 2 with 0 errors: "),
        (refuses_by_another_code, True, "lost", "command 0: exit code 1 with 1 errors: error: no"),
        (accepts, False, "lost", "command 0: accepted"),
        (accepts, True, "survived", ""),
        (refuses, False, "refused", ""),
    ],
)
def test_what_is_lost_is_seen(tmp_path: Path, does: Callable, neutral: bool, verdict: str, detail: str):
    lab = Lab(tmp_path)
    case = Case("control", lambda lab, folder: [partial(does, lab)], neutral)
    outcome = hostile.inject(lab, case, tmp_path / "case")
    assert (outcome.verdict, outcome.detail) == (verdict, detail)


def test_a_page_that_does_not_escape_is_seen():
    assert check_page("<p>evil()</p>") == ""
    with pytest.raises(ValueError, match="executes or fetches"):
        check_page(f"<p>{EVIL}</p>")
    with pytest.raises(ValueError, match="not on the page"):
        check_page("<p></p>")
