"""Proves what the terminal shows: the numbers, the time left, and the model's text untouched."""

import io
import re

import pytest

from lmcore.run import progress
from lmcore.run.progress import Progress

ROW = {"step": 100, "tokens": 409600, "loss": 2.3449, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 12345.4}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def shown(terminal: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_without_a_terminal_a_report_is_one_plain_line(clock: list[float]):
    file = io.StringIO()
    with Progress(900, file=file) as bar:
        clock[0] += 16.25
        bar.update(ROW)
        bar.update(ROW | {"valid_loss": 2.5, "valid_bits_per_byte": 0.9}, mfu=0.4123)
    numbers = "step 100/900  loss 2.345  lr 1.0e-3  12,345 tokens/s"
    assert file.getvalue().splitlines() == [
        f"{numbers}  2:10 left",
        f"{numbers}  MFU 41.2%  valid loss 2.500  0.900 bits/byte",
    ]


def test_lines_align_from_first_step_to_last():
    file = io.StringIO()
    with Progress(1000, file=file) as bar:
        for step in (1, 1000):
            bar.update({"step": step})
    assert [line.split("  0:")[0] for line in file.getvalue().splitlines()] == ["step     1/1,000", "step 1,000/1,000"]


def test_lines_are_flushed_at_once():
    flushed = []

    class File(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    with Progress(900, file=File()) as bar:
        bar.say("now")
        assert flushed[-1:] == ["now\n"]


def test_time_left_counts_neither_resumed_steps_nor_after_the_first_report_compilation(clock: list[float]):
    file = io.StringIO()
    with Progress(900, start_step=600, file=file) as bar:
        for step, seconds in ((610, 20.0), (620, 1.0), (630, 3.0)):
            clock[0] += seconds
            bar.update({"step": step})
    left = [line.rsplit("  ", 1)[1] for line in file.getvalue().splitlines()]
    # 290 steps at 2 s; 280 at 0.1 s; 270 at 0.2 s, the mean of both reports after the first.
    assert left == ["9:40 left", "0:28 left", "0:54 left"]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (59.6, "1:00"), (130, "2:10"), (3723, "1:02:03")])
def test_durations_read_as_clocks(seconds: float, text: str):
    assert progress._clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(1e-3, "1.0e-3"), (2.5e-10, "2.5e-10"), (0.0, "0.0e0"), (1.0, "1.0e0")])
def test_learning_rates_are_short(value: float, text: str):
    assert progress._scientific(value) == text


@pytest.mark.parametrize("on_terminal", [False, True])
def test_model_text_is_neither_markup_nor_control_codes(terminal: Terminal, on_terminal: bool):
    file = terminal if on_terminal else io.StringIO()
    with Progress(900, file=file) as bar:
        bar.say("a [bold]b[/] [/nothing] :smile: \x1b[2J\x07\ttab\nnext")
    assert "a [bold]b[/] [/nothing] :smile: �[2J�" in shown(file)
    assert "\x1b[2J" not in file.getvalue()
    assert "\nnext\n" in shown(file)


def test_text_that_the_output_cannot_encode_is_replaced():
    bytes_out = io.BytesIO()
    with Progress(900, file=io.TextIOWrapper(bytes_out, encoding="ascii", newline="\n")) as bar:
        bar.say("café")
        assert bytes_out.getvalue() == b"caf?\n"


def test_a_terminal_gets_a_bar_with_the_numbers_and_evaluations_above_it(terminal: Terminal, clock: list[float]):
    with Progress(900, file=terminal) as bar:
        clock[0] += 16.25
        bar.update(ROW | {"valid_loss": 2.5}, mfu=0.4123)
    final = shown(terminal).rstrip().splitlines()[-1]
    assert re.search(r"step 100/900 ━+.* loss 2\.345  12,345 tokens/s  MFU 41\.2%  2:10 left$", final)
    assert "step 100/900  valid loss 2.500\n" in shown(terminal)


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    with Progress(900, file=terminal) as bar:
        bar.say("hello")
    assert terminal.getvalue() == "hello\n"


def test_the_bar_is_put_away_when_the_run_fails(terminal: Terminal):
    with pytest.raises(RuntimeError, match="stop"), Progress(900, file=terminal):
        raise RuntimeError("stop")
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l") >= 0  # cursor shown again


@pytest.mark.parametrize("on_terminal", [False, True])
def test_the_summary_is_aligned(terminal: Terminal, on_terminal: bool):
    file = terminal if on_terminal else io.StringIO()
    with Progress(900, file=file) as bar:
        pass
    bar.summary([("valid loss", "1.234"), ("run", "runs/a [b]"), ("end", "")])
    lines = [line.rstrip() for line in shown(file).splitlines()]
    assert lines[-4:] == ["", "valid loss  1.234", "run         runs/a [b]", "end"]
