"""Processes learn from the launcher's variables who they are; what goes wrong is said once, by who knows it."""

import pytest

from lmcore.errors import UserError, command
from lmcore.run.processes import ALONE, Elsewhere, Launched, Lost, Processes, attributed, first, launched, said_once
from tests.lmcore.run.folders import Member

VARIABLES = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Sets the launcher's variables, some of them otherwise or not at all."""

    def set_variables(**changed: str | None) -> None:
        for name, value in (VARIABLES | changed).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return set_variables


def test_a_process_without_a_launcher_is_alone(environment):
    environment(**dict.fromkeys(VARIABLES))
    assert launched() is None
    environment(WORLD_SIZE="1")
    assert launched() is None
    assert isinstance(ALONE, Processes)
    assert (ALONE.rank, ALONE.count) == (0, 1)
    assert (ALONE.sum([1.5, 2.0]), ALONE.largest(3), ALONE.broadcast("é")) == ([1.5, 2.0], 3, "é")


def test_the_launchers_variables_say_who_a_process_is(environment):
    environment()
    assert launched() == Launched(rank=1, count=4, local_rank=1, local_count=2, address="host", port=29501)
    environment(LOCAL_RANK=None, LOCAL_WORLD_SIZE=None)
    assert launched() == Launched(rank=1, count=4, local_rank=0, local_count=1, address="host", port=29501)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"MASTER_ADDR": None, "MASTER_PORT": ""}, r"^WORLD_SIZE: found '4' without MASTER_ADDR, MASTER_PORT; start"),
        ({"RANK": "one"}, r"^RANK, WORLD_SIZE, .*'one'; expected whole numbers"),
        ({"WORLD_SIZE": "many"}, r"'many'; expected whole numbers"),
        ({"LOCAL_RANK": "x"}, r"'x'; expected whole numbers"),
        ({"LOCAL_WORLD_SIZE": "two"}, r"'two'; expected whole numbers"),
        ({"RANK": "4"}, r"^RANK: found 4, expected from 0 to WORLD_SIZE - 1 = 3"),
        ({"RANK": "-1"}, r"^RANK: found -1, expected from 0"),
        ({"MASTER_PORT": "65535"}, r"^MASTER_PORT: found 65535, expected from 1 to 65534"),
    ],
)
def test_variables_that_are_missing_or_wrong_are_an_error_of_any_process(environment, capsys, changed, message):
    environment(**changed)
    with pytest.raises(UserError, match=message):
        launched()
    assert command(lambda argv: launched() and 0)([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1, "also where RANK is not 0"


def test_process_0_acts_first_and_the_others_then_find_what_it_made():
    made = []
    for rank in (0, 1, 2):
        assert first(Member(rank, 3), lambda rank=rank: made.append(rank) or rank) == rank  # type: ignore[misc]
    assert made == [0, 1, 2]


def test_where_process_0_fails_the_others_do_not_act():
    def fails() -> None:
        raise Special("no room")

    class Special(UserError):
        exit_code = 7

    with pytest.raises(Special):
        first(Member(0, 2), fails)
    with pytest.raises(Elsewhere) as error:
        first(Member(1, 2), lambda: pytest.fail("it acts"))
    assert (str(error.value), error.value.exit_code) == ("", 7)
    with pytest.raises(ZeroDivisionError):
        first(Member(0, 2), lambda: 1 / 0)
    with pytest.raises(Elsewhere) as error:
        first(Member(1, 2), lambda: None)
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("rank", "error", "printed"),
    [
        (0, UserError("no room"), "error: no room\n"),
        (1, UserError("no room"), "error: process 1: no room\n"),
        (1, Elsewhere(2), ""),
        (1, Lost(1, RuntimeError("Read error: reset. This is typically caused by …\nmore")),
         "error: process 1: another process of this run has ended or cannot be reached (Read error: reset)\n"),
    ],
)  # fmt: skip
def test_an_error_is_printed_by_the_process_that_has_it(
    environment, capsys, monkeypatch: pytest.MonkeyPatch, rank: int, error: UserError, printed: str
):
    @command
    def main(argv) -> None:
        with said_once(), attributed(Member(rank, 2)):
            raise error

    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    environment(RANK=str(rank), WORLD_SIZE="2")
    assert main([]) == error.exit_code
    assert capsys.readouterr().err == printed
    assert len(waited) == (not printed), "a silent process leaves process 0 time to print"


def test_an_error_of_all_processes_is_printed_by_process_0(environment, capsys, monkeypatch: pytest.MonkeyPatch):
    @command
    def main(argv) -> None:
        with said_once():
            raise UserError("--train.btch_size: no such field")

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for rank, lines in (("0", 1), ("1", 0)):
        environment(RANK=rank)
        assert main([]) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines
    environment(RANK="1", WORLD_SIZE=None)
    assert main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1, "one process, whatever RANK says"


def test_an_error_of_a_command_that_joins_no_others_is_printed_whatever_the_launcher_says(environment, capsys):
    @command
    def main(argv) -> None:
        raise UserError("run: found nothing")

    environment(RANK="1", WORLD_SIZE="2")
    assert main([]) == 2
    assert capsys.readouterr().err == "error: run: found nothing\n"
