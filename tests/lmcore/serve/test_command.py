"""What the command line refuses, before anything is loaded."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lmcore.errors import UserError
from lmcore.serve.command import KEY, main


def nothing(*arguments: object) -> None:
    raise AssertionError("nothing is loaded")


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        main([*words], "jaxlm", nothing, nothing)
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("port", "70000", "--port: found 70000, expected from 0 to 65535"),
        ("port", "-1", "--port: found -1, expected from 0 to 65535"),
        ("slots", "0", "--slots: found 0, expected from 1 to 4096"),
        ("queue", "-1", "--queue: found -1, expected from 0 to 1048576"),
        ("max_body", "0", "--max_body: found 0, expected from 1 to 1073741824"),
        ("grace", "-1", "--grace: found -1.0, expected from 0 to 3600"),
        ("api_key", "", "--api_key: found '', expected printable ASCII"),
        ("api_key", "é", "--api_key: found 'é', expected printable ASCII"),
        ("name", " ", "--name: found ' ', expected printable ASCII"),
    ],
)
def test_an_option_out_of_range_is_refused(option: str, value: str, expected: str):
    assert refusal("run", f"--{option}={value}") == expected


def test_an_option_of_another_type_is_refused():
    assert "slots" in refusal("run", "--slots", "many")
    assert "sloths" in refusal("run", "--sloths", "3")


def test_a_port_in_use_is_one_clear_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refusal(str(tmp_path), "--port", str(port)) == (
            f"--port: cannot listen at 127.0.0.1 port {port} (Address already in use); choose another"
        )


def test_a_host_that_is_none_is_refused():
    assert "--host: found 'no host', expected an address of this machine" in refusal("run", "--host", "no host")
    assert "192.0.2.1" in refusal("run", "--host", "192.0.2.1", "--port", "0")


def test_a_run_that_is_not_there_is_refused(tmp_path: Path):
    assert str(tmp_path / "absent") in refusal(str(tmp_path / "absent"), "--port", "0")


def test_a_template_that_is_not_there_is_refused(run_of: Callable[[str], Path], tmp_path: Path):
    message = refusal(str(run_of("jax")), "--port", "0", "--template", "absent.jinja")
    assert message.startswith("--template: found no file 'absent.jinja'")


def test_the_environments_key_has_the_name_that_help_tells(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"], "jaxlm", nothing, nothing)
    shown = capsys.readouterr().out
    assert KEY in shown
    for option in ("--host", "--port", "--name", "--slots", "--queue", "--max_body", "--grace", "--template"):
        assert option in shown
