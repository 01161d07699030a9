"""The command: one line for a mistake, and a process that ends with all that it started."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from parity.serve.command import main
from tests.parity.serve.test_verdict import children


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port: found 70000, expected from 0 to 65535"),
        (["--device", "mps"], "--device: found 'mps', expected one of auto, cpu, cuda"),
        (["--precision", "float16"], "--precision: found float16, expected one of float32, bfloat16, float64"),
        (["--check", "none", "--report", "a.html"], "--report: found --check none too"),
        (["--report", "no/such/a.html"], "--report: found 'no/such/a.html', expected a file in a folder that exists"),
        (["--check", "some"], "--check: "),
        (["--host", "256.1.1.1", "--port", "0"], "--host: found '256.1.1.1'"),
        (["--port", "0"], "no/run: found nothing, expected a run folder"),
    ],
)
def test_a_mistake_gets_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["no/run", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {message}")


def test_a_port_in_use_is_named_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["no/run", "--port", str(port)]) == 2
    assert re.fullmatch(rf"error: --port: .*{port}.*\n", capsys.readouterr().err)


def test_a_model_without_a_tokenizer_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    assert main([str(bare), "--port", "0"]) == 2
    assert capsys.readouterr().err == (
        f"error: {bare}: found no tokenizer.json, expected a model that can read and write text\n"
    )


BLOCKED = """
import sys
sys.modules["torch"] = None
from parity.serve.command import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_framework_that_is_missing_is_named(run: Path):
    command = [sys.executable, "-c", BLOCKED, str(run), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr == 'error: torch is not installed, which this needs; run: pip install "twinlm[torch]"\n'


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed as Linux lists them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_its_check(run: Path, tmp_path: Path, number: signal.Signals):
    command = [sys.executable, "-m", "parity.serve", str(run), "--port", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert re.fullmatch(r"serving both twins of small at http://127\.0\.0\.1:\d+; Ctrl-C ends\n", line)
    url = line.split()[6].rstrip(";")
    assert httpx.get(f"{url}/verdict").json()["state"] == "checking"
    checks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    groups = [int(pid) for pid in checks if b"parity.check" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(groups) == 1
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert rest == "stopping when the requests are finished; Ctrl-C stops at once\n"
    time.sleep(0.2)
    assert children(groups[0]) == []
    assert not list(tmp_path.glob("parity-serve-*")), "its files are gone"
