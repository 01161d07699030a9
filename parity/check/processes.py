"""The precisions of a check side by side, each in a process of its own: most of a check is one thread's tracing."""

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

__all__ = ["Climbed", "climb_apart", "climb_one", "processes_for"]

COPIES = 24
"""Weights in float64 that a check holds at once, more than enough: twins, moments, moved and loaded weights."""

Climbed = tuple[str, list[Result]]
"""What the devices are called, and the lines."""


def processes_for(subject: Subject, dtypes: Sequence[Precision], devices: Mapping[str, Device]) -> int:
    """Return the number of precisions to check at a time: one on an accelerator, or where memory or cores are short.

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
        dtype: the precision.
        rungs: numbers of the rungs to climb; None climbs all.
        devices: two frameworks, the reference first -> device, as in `train.device`.
        options: how far each rung goes.

    Raises:
        UserError: a device cannot do what is asked.
    """
    with framework_settings():
        pair = make_pair(check_config(subject.config, dtype), subject.tokens, subject.params, devices)
        names = ", ".join(f"{twin.backend.label} {twin.engine.device_name}" for twin in pair)
        return names, list(climb(pair, rungs, options))


def climb_apart(
    subject: Subject,
    dtypes: Sequence[Precision],
    rungs: Sequence[int] | None,
    devices: Mapping[str, Device],
    options: Options,
) -> Iterator[Climbed]:
    """Climb in all precisions at once; yields the results of each, in their order.

    Args:
        subject: the model and its text.
        dtypes: the precisions.
        rungs: numbers of the rungs to climb; None climbs all.
        devices: two frameworks, the reference first -> device, as in `train.device`.
        options: how far each rung goes.

    Raises:
        UserError: as `climb_one`.
        RuntimeError: a process ended without an answer.
    """
    context, subject = multiprocessing.get_context("spawn"), replace(subject, tokenizer=None)
    with _share_of_cores(len(dtypes)):
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
    """What a process does: climb and send the results."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    try:
        send.send(climb_one(subject, dtype, rungs, devices, options))
    except UserError as error:
        send.send(error)


@contextmanager
def _share_of_cores(processes: int) -> Iterator[None]:
    """Processes started here compute with an even share of the cores: OpenMP's threads wait for work by spinning."""
    before = os.environ.get("OMP_NUM_THREADS")
    if before is None and processes > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
