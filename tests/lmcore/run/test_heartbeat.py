"""A process that hangs or is killed is named by the others, which end."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lmcore.run import heartbeat
from lmcore.run.heartbeat import Heartbeat
from parity.check.mesh.jobs import free_port
from tests.launching import start

PROGRAM = """
import faulthandler, sys, time
from lmcore.config import Config, TrainConfig
from lmcore.errors import command
from lmcore.run import heartbeat
from {twin}.processes import joined
heartbeat.BEAT, heartbeat.SILENCE, heartbeat.ENDED = 0.1, 4.0, 1.0

@command
def main(argv):
    faulthandler.dump_traceback_later(120, exit=True)
    with joined(Config(train=TrainConfig(device="cpu"))) as processes:
        print(processes.largest(1), flush=True)
        faulthandler.cancel_dump_traceback_later()
        while True:
            processes.largest(0)
            time.sleep(0.05)

sys.exit(main())
"""


BY_JAX = ("jaxlm", signal.SIGKILL, 0)
"""Process 0 runs JAX's coordination service: without it, a client of JAX may end its process before we do."""
QUICK = {("torchlm", signal.SIGKILL, 1), ("jaxlm", signal.SIGSTOP, 0)}
CASES = [
    pytest.param(twin, how, lost, marks=() if (twin, how, lost) in QUICK else pytest.mark.slow)
    for twin in ("torchlm", "jaxlm")
    for how in (signal.SIGSTOP, signal.SIGKILL)
    for lost in (0, 1)
]


@pytest.fixture
def run(twin: str, tmp_path: Path) -> "Iterator[list[subprocess.Popen[str]]]":
    """Three processes that sum in a loop, and are ended after the test. One that waits in vain shows where."""
    shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    program = PROGRAM.format(twin=twin)
    started = [start([sys.executable, "-c", program], tmp_path, RANK=str(rank), **shared) for rank in range(3)]
    try:
        for process in started:
            assert process.stdout is not None
            assert any(line == "1\n" for line in process.stdout), process.communicate()[1]
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(("twin", "how", "lost"), CASES)
def test_a_lost_process_is_named_by_the_others_which_end(
    run: "list[subprocess.Popen[str]]", twin: str, how: signal.Signals, lost: int
):
    begin = time.monotonic()
    run[lost].send_signal(how)
    others = [process for rank, process in enumerate(run) if rank != lost]
    for process in others:
        _, error = process.communicate(timeout=60)
        if (twin, how, lost) == BY_JAX and process.returncode == -signal.SIGABRT:
            assert "JAX distributed service detected fatal errors" in error
            continue
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert process.returncode == 1, error
        assert len(lines) == 1, error
        assert f": process {lost} of this run has ended or cannot be reached (" in lines[0]
    assert time.monotonic() - begin < 30


class Shelf(dict):
    """A board in memory."""

    def set(self, key: str, text: str) -> None:
        self[key] = text

    def read(self, keys: Sequence[str]) -> list[str]:
        return [self.get(key, "") for key in keys]


def test_a_process_that_counts_is_not_missed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heartbeat, "BEAT", 0.02)
    shelf = Shelf()
    both = [Heartbeat(rank, 2, shelf, shelf) for rank in range(2)]
    assert [beat.missing() for beat in both] == [None, None]
    both[1].stop()
    assert both[0].missing() == 1
    both[0].stop()
