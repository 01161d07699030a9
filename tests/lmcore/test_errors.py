"""Every end of a command is an exit code and at most one line; what it prints never ends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.errors import UserError, command, is_unicode, note, printable, shown

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("package", "extra"), [("torch", "torch"), ("orbax.checkpoint", "jax")])
def test_a_missing_framework_is_one_line_that_names_the_extra(package: str, extra: str, capsys):
    @command
    def needs(argv):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    assert needs([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f'run: pip install "twinlm[{extra}]"')


def test_another_missing_module_is_a_fault_of_ours():
    @command
    def needs(argv):
        raise ModuleNotFoundError("No module named 'lmcore.x'", name="lmcore.x")

    with pytest.raises(ModuleNotFoundError):
        needs([])


def test_a_command_returns_a_code_for_every_end(capsys: pytest.CaptureFixture[str]):
    def ends_with(error: BaseException | None) -> int:
        @command
        def main(argv: list[str] | None = None) -> None:
            if error:
                raise error

        return main([])

    assert [ends_with(error) for error in (None, UserError("a\n  b"), KeyboardInterrupt())] == [0, 2, 130]
    assert capsys.readouterr().err == "error: a b\ninterrupted\n"
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError())


@pytest.mark.parametrize("text", ["“Once” – × ± ✓ é", "half \ud800 a pair", "plain"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_what_standard_output_cannot_show_ends_no_command(text: str, encoding: str):
    code = f"from lmcore.errors import command\n@command\ndef main(argv=None): print({text!a})\nexit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == (text + "\n").encode(encoding, "replace")


def test_a_command_leaves_standard_output_as_it_was(capsys: pytest.CaptureFixture[str]):
    seen = []
    assert command(lambda argv: seen.append(sys.stdout.errors))([]) == 0
    assert (seen, sys.stdout.errors) == (["replace"], "strict")


def test_a_reader_that_leaves_early_is_no_mistake():
    code = "from lmcore.errors import command\n@command\ndef main(argv=None):\n    while True: print('x')\nexit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


def test_an_error_of_the_system_is_one_line_with_code_1(capsys: pytest.CaptureFixture[str]):
    @command
    def main(argv: list[str] | None = None) -> None:
        raise OSError(28, "No space left on device")

    assert main([]) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_a_long_value_is_shown_without_its_middle():
    assert shown("a" * 198) == repr("a" * 198), "200 characters with its quotes"
    assert shown("a" * 6 + "b" * 6, limit=8) == "'aaa … b'"
    assert shown("one\ntwo") == r"'one\ntwo'"


def test_half_a_surrogate_pair_is_no_unicode():
    assert is_unicode("é 😀 \ue000")
    assert not is_unicode("a\ud800")
    assert not is_unicode("\udfff")


def test_a_note_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]):
    note("all is\n  well")
    assert capsys.readouterr() == ("", "note: all is well\n")


def test_a_name_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]):
    assert printable("a\x1b[2J\x9b1m\x07\n\té😀") == "a\\x1b[2J\\x9b1m\\x07\n\té😀"
    assert str(UserError("a\x1bb")) == "a\\x1bb"
    note("a\x1bb")
    assert capsys.readouterr().err == "note: a\\x1bb\n"
