import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lmcore.dashboard.command import main
from lmcore.serve.listening import bind
from tests.lmcore.dashboard.run_folders import write_run


def test_it_serves_until_ctrl_c_without_a_traceback(tmp_path: Path):
    write_run(tmp_path / "one")
    command = [sys.executable, "-m", "lmcore.dashboard", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            match = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert match
            assert urllib.request.urlopen(f"{match[0]}api/runs", timeout=20).status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
        finally:
            process.kill()
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
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main([str(tmp_path), "--port", str(port)]) == 2
    expected = f"error: --port: cannot listen at 127.0.0.1 port {port} (Address already in use); choose another\n"
    assert capsys.readouterr().err == expected
