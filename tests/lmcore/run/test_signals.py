"""One signal asks the run to stop, Ctrl-C after it stops it, and the handlers that were there come back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmcore.run import signals
from lmcore.run.signals import SaveRequest, StopRequest

WORK = """
import os, signal, time
from lmcore.run.signals import StopRequest
with StopRequest(grace={grace}, is_command=True) as stop:
    {work}
print("ended by itself", stop.received)
"""
LONG_CALL = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
"""One call of a library, as compilation is: no handler of the main thread runs until it ends."""


def work(grace: float, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(signals.__file__).parents[2])}
    command = [sys.executable, "-c", WORK.format(grace=grace, work=code)]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60)


def send(*names: str) -> str:
    """Code that sends this process signals from outside, one after the other."""
    kills = "; sleep 0.3; ".join(f"kill -{name} {{os.getpid()}}" for name in names)
    return f"import subprocess; subprocess.Popen(['sh', '-c', f'sleep 0.2; {kills}'])"


def test_ctrl_c_after_a_signal_stops_at_once_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM, "a scheduler may repeat it"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)) == before


def test_ctrl_c_again_ends_a_command_in_the_middle_of_a_call():
    done = work(0, f"{send('INT', 'INT')}; {LONG_CALL}")
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr == "\nstopping after this step and saving; Ctrl-C stops at once\ninterrupted\n"


def test_the_grace_period_ends_a_command_in_the_middle_of_a_call():
    done = work(0.5, f"{send('TERM', 'TERM')}; {LONG_CALL}")
    assert done.returncode == 143
    assert done.stdout == ""
    what = "note: the checkpoint could not be completed within checkpoint.grace, 0.5 s"
    assert done.stderr.splitlines()[-1] == f"{what}; stopped without it, earlier checkpoints are intact"


@pytest.mark.parametrize(
    ("grace", "code"),
    [
        (0, f"{send('TERM')}; time.sleep(0.6)"),
        (0.1, f"{send('INT')}; time.sleep(0.6)"),
        (0.1, f"{send('TERM')}; stop.all_saved(); time.sleep(0.6)"),
    ],
    ids=["no limit", "Ctrl-C", "saved"],
)
def test_the_grace_period_is_for_sigterm_and_for_what_is_not_saved(grace: float, code: str):
    done = work(grace, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ended by itself ")


def test_a_command_that_is_over_ends_by_ctrl_c_without_a_traceback():
    done = work(0, "pass\nos.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_sigusr1_requests_one_save_and_its_handler_is_put_back():
    before = signal.getsignal(signal.SIGUSR1)
    with SaveRequest() as save:
        assert not save.take()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert save.take()
        assert not save.take()
    assert signal.getsignal(signal.SIGUSR1) is before
    try:
        with SaveRequest(is_command=True):
            pass
        os.kill(os.getpid(), signal.SIGUSR1)  # too late, and no reason to end
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_system_without_sigusr1_saves_on_no_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(signal, "SIGUSR1")
    with SaveRequest() as save:
        assert not save.take()


def test_the_thread_ends_with_the_request():
    with StopRequest(grace=0.2) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.all_saved()
    begin = time.monotonic()
    assert not stop._thread.is_alive()
    time.sleep(0.3)  # this process goes on
    assert time.monotonic() > begin
