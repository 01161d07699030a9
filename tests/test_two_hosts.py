"""On two hosts, one command each trains on a mesh of four processes: the run of one process, in either twin.

The hosts are network namespaces. A process is killed, and the run ends at the unbroken run's loss; the checkpoint of
four goes on on one process, on two, and in the other framework.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hosts import Host, two_hosts
from tests.launching import TOLERANCE, by_torchrun, difference, rows, start, train, without_launcher

pytestmark = pytest.mark.slow

OTHER = {"torchlm": "jaxlm", "jaxlm": "torchlm"}
FRAMEWORK = {"torchlm": "torch", "jaxlm": "jax"}
WAIT = 400
"""Seconds in which a run must end."""
LONG = {"train__steps": 300, "log__every": 1, "checkpoint__every": 50, "eval__every": 100, "sample__every": 0}


def mesh(data: int, fsdp: int, tensor: int) -> dict[str, int]:
    return {"parallel__data": data, "parallel__fsdp": fsdp, "parallel__tensor": tensor}


def begin(hosts: tuple[Host, Host], arguments: list[str], folder: Path) -> "list[subprocess.Popen[str]]":
    """Start the same command on both hosts, two processes each."""
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", "--max-restarts=1"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-id=run", f"--rdzv-endpoint={hosts[0].address}:29500"]
    return [
        start(
            host.command([sys.executable, *launcher, f"--local-addr={host.address}", *arguments]),
            folder,
            GLOO_SOCKET_IFNAME="eth0",
        )
        for host in hosts
    ]


def end(started: "list[subprocess.Popen[str]]") -> None:
    for process in started:
        _, errors = process.communicate(timeout=WAIT)
        assert process.returncode == 0, errors[-3000:]


def members(run: Path) -> list[int]:
    """Return the process ids of those that train in a folder, in the order of their ranks."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            variables = dict(word.split(b"=", 1) for word in words if b"=" in word)
            if b"RANK" in variables and str(run).encode() in command:
                found[int(variables[b"RANK"])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


@pytest.fixture(scope="module", params=["torchlm", "jaxlm"])
def twin(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(twin: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text, and with the runs of one process in runs/one and runs/long."""
    folder = tmp_path_factory.mktemp("hosts")
    for name, options in (("one", {}), ("long", LONG)):
        run = train(twin, folder / "data", run_dir=folder / "runs" / name, **options)
        [(code, error)] = without_launcher(run, folder, count=1)
        assert code == 0, error
    return folder


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)], ids=["data 2 fsdp 2", "fsdp 2 tensor 2"])
def test_four_processes_on_two_hosts_are_the_run_of_one(twin: str, folder: Path, sizes: tuple[int, int, int]):
    run = folder / "runs" / "x".join(map(str, sizes))
    with two_hosts() as hosts:
        end(begin(hosts, train(twin, folder / "data", run_dir=run, **mesh(*sizes)), folder))
    assert difference(rows(folder / "runs" / "one"), rows(run)) <= TOLERANCE


def test_after_a_killed_process_the_run_ends_at_the_unbroken_runs_loss(twin: str, folder: Path):
    run = folder / "runs" / "killed"
    with two_hosts() as hosts:
        arguments = train(twin, folder / "data", run_dir=run, train__resume="auto", **LONG, **mesh(2, 2, 1))
        started = begin(hosts, arguments, folder)
        deadline = time.monotonic() + WAIT
        while not (run / "metrics.jsonl").exists() or len(rows(run)) < 70:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in started), started[0].communicate()[1][-3000:]
            time.sleep(0.05)
        os.kill(members(run)[3], signal.SIGKILL)
        assert len(rows(run)) < 290, "it was killed before its end"
        end(started)
    found = {row["step"]: row for row in rows(run)}
    unbroken = rows(folder / "runs" / "long")
    assert difference(unbroken, [found[row["step"]] for row in unbroken]) <= TOLERANCE


@pytest.fixture(scope="module")
def four(twin: str, folder: Path) -> Path:
    """A run of four processes, without its last checkpoint."""
    run = folder / "runs" / "four"
    by_torchrun(train(twin, folder / "data", run_dir=run, **mesh(2, 2, 1)), folder, count=4)
    shutil.rmtree(run / "checkpoints" / "step_00000008")
    return run


def test_the_checkpoint_of_four_goes_on_on_one_on_two_and_in_the_other_framework(twin: str, folder: Path, four: Path):
    unbroken, data = rows(folder / "runs" / "one"), folder / "data"
    for name, sizes, count in (("on one", {}, 1), ("on two", mesh(1, 2, 1), 2), ("tensor", mesh(1, 1, 2), 2)):
        run = shutil.copytree(four, folder / "runs" / name)
        arguments = train(twin, data, run_dir=run, train__resume="auto", **(sizes or mesh(-1, 1, 1)))
        if count == 1:
            [(code, error)] = without_launcher(arguments, folder, count=1)
            assert code == 0, error
        else:
            by_torchrun(arguments, folder, count)
        assert difference(unbroken, rows(run)) <= TOLERANCE, name
    other = OTHER[twin]
    run = folder / "runs" / "other"
    convert = ["-m", "parity.convert", str(four), "--to", FRAMEWORK[other], "--out", str(run)]
    [(code, error)] = without_launcher(convert, folder, count=1)
    assert code == 0, error
    resume = train(other, data, run_dir=run, train__resume="auto", **mesh(-1, 1, 1))
    [(code, error)] = without_launcher(resume, folder, count=1)
    assert code == 0, error
    later = [row for row in unbroken if row["step"] > 4]
    assert difference(later, [row for row in rows(run) if row["step"] > 4]) <= TOLERANCE
