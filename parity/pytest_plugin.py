"""A plugin for pytest: `parity_compare`, which fails a test where a port differs, and pages of what was compared.

def test_my_port(parity_compare):
    parity_compare(jax_model, torch_module, x, params=params, names=names)

`pytest --parity-report FOLDER` writes one page for each comparison, and `--parity-seconds N` fails those that take
longer.
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmcore.errors import UserError

if TYPE_CHECKING:
    from parity.report.report import Report

__all__ = ["parity_compare", "pytest_addoption"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's options to pytest's."""
    group = parser.getgroup("parity", "comparison of ports between JAX and PyTorch")
    group.addoption("--parity-report", metavar="FOLDER", type=Path, help="Write a page of each comparison there.")
    group.addoption("--parity-seconds", metavar="N", type=float, help="Fail comparisons that take longer.")


@pytest.fixture
def parity_compare(request: pytest.FixtureRequest) -> Callable[..., "Report"]:
    """Return `parity.compare`, with the same arguments; the test fails where the two differ."""
    folder, limit = (request.config.getoption(name) for name in ("--parity-report", "--parity-seconds"))
    count = 0

    def compared(*args: Any, seconds: float | None = None, **options: Any) -> "Report":
        """Compare; fail the test where the two differ, or where it takes longer than `seconds`."""
        nonlocal count
        from parity import compare

        with _limited(limit if seconds is None else seconds):
            report = compare(*args, **options)
        count += 1
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "-", request.node.nodeid).strip("-")
            report.save_page(folder / f"{name}{f'-{count}' if count > 1 else ''}.html")
        if not report:
            pytest.fail(str(report), pytrace=False)
        return report

    return compared


@contextmanager
def _limited(seconds: float | None) -> Iterator[None]:
    """Fail the test after so many seconds; at once where a signal can tell, else when the comparison is over."""
    message = f"the comparison took longer than the {seconds:g} s that it may take" if seconds else ""
    if not seconds:
        yield
        return
    if seconds < 0:
        raise UserError(f"seconds: found {seconds:g}, expected a time limit of more than 0")
    interrupts = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def stop(number: int, frame: Any) -> None:
        pytest.fail(message, pytrace=False)

    before = signal.signal(signal.SIGALRM, stop) if interrupts else None
    started = time.monotonic()
    try:
        if interrupts:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        if interrupts:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    if time.monotonic() - started > seconds:
        pytest.fail(message, pytrace=False)
