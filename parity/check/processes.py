"""The precisions of a check side by side, each in its own process: most of a check is tracing, in one thread."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection

from lmcore.config import Precision
from lmcore.errors import UserError
from lmcore.hardware import memory_bytes, usable_cores
from lmcore.model.memory import parameter_parts
from parity.backends import framework_settings, make_pair
from parity.backends.base import Device, check_config
from parity.check.ladder import climb
from parity.check.result import Result
from parity.check.rungs.base import Options
from parity.check.subject import Subject

__all__ = ["Climbed", "climb_in_processes", "climb_one", "processes_for"]

COPIES = 24
"""Upper bound on the copies of the weights that a check holds at once, in float64: twins, moments, moved weights."""

Climbed = tuple[str, list[Result]]
"""Names of the devices, and the lines of the table."""


def processes_for(subject: Subject, dtypes: Sequence[Precision], devices: Mapping[str, Device]) -> int:
    """Return how many precisions to check at a time: one on an accelerator, fewer where memory or cores are short.

    Args:
        subject: the model.
        dtypes: precisions to check in.
        devices: framework -> device.
    """
    if set(devices.values()) != {"cpu"}:
        return 1
    size = COPIES * 8 * sum(parameter_parts(subject.config.model).values())
    return max(1, min(len(dtypes), usable_cores(), memory_bytes() // (2 * max(1, size))))


def climb_one(
    subject: Subject,
    dtype: Precision,
    rungs: Sequence[int] | None,
    devices: Mapping[str, Device],
    options: Options,
) -> Climbed:
    """Climb the ladder in one precision, in this process.

    Args:
        subject: the model and its text.
        dtype: the precision to check.
        rungs: numbers of the rungs to climb; None climbs all.
        devices: two frameworks, the reference first -> device, as in `train.device`.
        options: lengths of the runs.

    Raises:
        UserError: a device cannot do what is asked.
    """
    with framework_settings():
        pair = make_pair(check_config(subject.config, dtype), subject.tokens, subject.params, devices)
        names = ", ".join(f"{twin.backend.label} {twin.engine.device_name}" for twin in pair)
        return names, list(climb(pair, rungs, options))


def climb_in_processes(
    subject: Subject,
    dtypes: Sequence[Precision],
    rungs: Sequence[int] | None,
    devices: Mapping[str, Device],
    options: Options,
) -> Iterator[Climbed]:
    """Climb in all precisions at once, a process for each; yield the results in their order.

    Args:
        subject: the model and its text.
        dtypes: the precisions.
        rungs: numbers of the rungs to climb; None climbs all.
        devices: two frameworks, the reference first -> device, as in `train.device`.
        options: lengths of the runs.

    Raises:
        UserError: as `climb_one`.
        RuntimeError: a process ended without an answer.
    """
    context, subject = multiprocessing.get_context("spawn"), replace(subject, tokenizer=None)
    with _divided_cores(len(dtypes)):
        started = []
        for dtype in dtypes:
            answer, send = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(send, subject, dtype, rungs, devices, options), daemon=True)
            process.start()
            send.close()
            started.append((process, answer))
    try:
        for process, answer in started:
            try:
                climbed = answer.recv()
            except EOFError:
                process.join()
                raise RuntimeError(f"a process of the check ended with code {process.exitcode}") from None
            if isinstance(climbed, UserError):
                raise climbed
            yield climbed
    finally:
        for process, _ in started:
            process.terminate()
            process.join()


def _answer(
    send: Connection,
    subject: Subject,
    dtype: Precision,
    rungs: Sequence[int] | None,
    devices: Mapping[str, Device],
    options: Options,
) -> None:
    """Climb, and send the results: the work of one process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    try:
        send.send(climb_one(subject, dtype, rungs, devices, options))
    except UserError as error:
        send.send(error)


@contextmanager
def _divided_cores(processes: int) -> Iterator[None]:
    """Divide the cores evenly between the processes started here: OpenMP's threads wait for work by spinning."""
    before = os.environ.get("OMP_NUM_THREADS")
    if before is None and processes > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
