"""A few commands and corpora of the torture suite, and that what should be called lost is."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.torture import commands, corpora
from tests.torture.commands import Case, drawn, judge, run
from tests.torture.corpora import CORPORA, prepare

CHEAP = ("lmcore.prepare", "lmcore.describe", "torchlm.train")
CASE = Case("lmcore.describe", ())
SOME = ("crlf.txt", "nul.txt", "unmarked.txt", "twice.jsonl", "null.jsonl", "cut.txt.zst")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return drawn(150)


def corpus(name: str) -> corpora.Corpus:
    return next(corpus for corpus in CORPORA if corpus.name == name)


def test_the_same_cases_are_drawn_each_time(cases: list[Case]):
    assert list(map(str, drawn(150))) == list(map(str, cases))
    assert {case.module for case in cases} == set(commands.COMMANDS)


@pytest.mark.filterwarnings("ignore")
def test_mutated_commands_end_well(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in commands.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = {"PLAN": "none", "JAX": str(tmp_path / "none")}
    chosen = [case for case in cases if case.module in CHEAP][:24]
    outcomes = [run(case, tmp_path / str(number) / "here", made) for number, case in enumerate(chosen)]
    assert [outcome for outcome in outcomes if outcome.verdict == "lost"] == []
    assert {outcome.verdict for outcome in outcomes} == {"survived", "refused"}


def test_a_refusal_is_one_line_exit_code_2_and_nothing_written():
    assert judge(CASE, 2, "", "error: no\n", set()).verdict == "refused"
    assert judge(CASE, 2, "", "note: by the way\nerror: no\n", set()).verdict == "refused"
    assert judge(CASE, 0, "", "", set()).verdict == "survived"
    assert judge(CASE, 130, "begun", "interrupted\n", set()).verdict == "survived"


@pytest.mark.parametrize(
    ("code", "stopped", "said", "written"),
    [
        (2, "", "error: no\nand more\n", set()),
        (2, "", "no\n", set()),
        (2, "", "error: no\n", {"run"}),
        (3, "", "error: no\n", set()),
        (130, "hang", "", set()),
        (1, "", "Traceback (most recent call last):\n", set()),
        ("traceback", "", "ValueError", set()),
    ],
)
def test_all_else_is_lost(code: int, stopped: str, said: str, written: set[str]):
    assert judge(CASE, code, stopped, said, written).verdict == "lost"


def test_a_command_that_raises_or_hangs_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commands, "BEGUN", 0.1)
    monkeypatch.setattr(commands, "LIMIT", 0.2)
    for name, main in (("raises", lambda argv: 1 / 0), ("hangs", lambda argv: time.sleep(60))):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(main=main))
        outcome = run(Case(name, ()), tmp_path / name, {"PLAN": "none"})
        assert outcome.verdict == "lost"
        assert {"raises": "ZeroDivisionError", "hangs": "hang"}[name] in outcome.detail


@pytest.mark.parametrize("name", [*SOME, pytest.param("shared.parquet", marks=pytest.mark.slow)])
def test_a_corpus_is_refused_or_read_to_the_letter(name: str, tmp_path: Path):
    outcome = prepare(corpus(name), tmp_path / "new")
    assert outcome.verdict == ("refused" if corpus(name).documents is None else "survived"), outcome.detail


def test_other_documents_too_much_memory_and_no_refusal_are_lost(tmp_path: Path):
    good = corpus("crlf.txt")
    wrong = [replace(good, documents=["a\r\nb"]), replace(good, limit_mb=5), replace(good, documents=None)]
    outcomes = [prepare(each, tmp_path / str(number)) for number, each in enumerate(wrong)]
    assert [outcome.verdict for outcome in outcomes] == ["lost"] * 3
    assert "other documents" in outcomes[0].detail
    assert "peak memory" in outcomes[1].detail
    assert "expected a refusal, exit code 0" in outcomes[2].detail
