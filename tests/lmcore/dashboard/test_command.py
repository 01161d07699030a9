import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lmcore.dashboard.command import listen, main
from lmcore.errors import UserError
from tests.lmcore.dashboard.run_folders import write_run


def test_it_serves_until_ctrl_c_without_a_traceback(tmp_path: Path):
    write_run(tmp_path / "one")
    command = [sys.executable, "-m", "lmcore.dashboard", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert match, process.stderr.read()
        assert urllib.request.urlopen(f"{match[0]}api/runs", timeout=20).status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stdout.read() == ""
        assert process.stderr.read() == "interrupted\n"


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "absent")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'absent'}: found no such folder")
    assert error.count("\n") == 1


def test_the_folder_is_runs_unless_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: runs: ")


def test_a_port_in_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main([str(tmp_path), "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: --port: {port} is in use; end what uses it, or name another port\n"


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_there_is_not_is_refused(port: int):
    with pytest.raises(UserError, match=f"--port: found {port}, expected a number from 0 to 65535"):
        listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 300, "\udcff"])
def test_a_host_that_is_not_here_is_refused(host: str):
    with pytest.raises(UserError, match=r"--host: found .*, expected an address of this machine"):
        listen(host, 0)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may use every port")
def test_a_port_of_the_system_is_refused():
    with pytest.raises(UserError, match="--port: 1 may not be used by this user"):
        listen("127.0.0.1", 1)


def test_ipv6_is_listened_on():
    try:
        listener = listen("::1", 0)
    except UserError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert listener.family == socket.AF_INET6
