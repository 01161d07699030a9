"""Continuous batching: sequences join the twin's slots at the next step, and leave at their end.

One thread owns the slots. It takes what the event loop submits, prefills a few prompts between two steps so that the
other sequences go on, and hands the tokens of a step to the event loop in one call.
"""

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from lmcore.generate.prompting import cache_size
from lmcore.serve.errors import ApiError
from lmcore.serve.logprobs import Logprob, logprob_of, prompt_logprobs
from lmcore.serve.slots import Sampling, Slots

__all__ = ["Event", "Scheduler", "Scored", "Sequenced"]

PREFILLS = 2
"""Prompts to prefill between two steps."""
CHECKED = 16
"""Steps between two looks for NaN in the logits."""
PATIENCE = 1.0
"""Seconds without a request after which a program for longer prompts is compiled in advance."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Scored:
    """A prompt whose own log probabilities are asked for; the choices of one prompt share it."""

    top: int
    logprobs: list[Logprob] | None = None


@dataclass(eq=False, kw_only=True)
class Sequenced:
    """A sequence to decode."""

    prompt: Int32[np.ndarray, " T"]
    uniforms: Float32[np.ndarray, " A"]
    """One uniform number for each token to decode, at most."""
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    stop_ids: frozenset[int]
    receive: Callable[["Event"], None]
    """Called in the event loop with each token."""
    logprobs: int | None = None
    """Number of most likely tokens to return with each; None returns no log probabilities."""
    scored: Scored | None = None
    cancelled: bool = False
    """Set by the event loop when nobody waits for the sequence any more."""
    decoded: int = 0


class Event(NamedTuple):
    """What happened to a sequence in a step."""

    sequence: Sequenced
    token: int | None = None
    logprob: Logprob | None = None
    finish: str | None = None
    """`stop`, `length` or `cancelled`; None goes on."""
    error: ApiError | None = None


class _Job(NamedTuple):
    call: Callable[[Slots], Any]
    future: asyncio.Future


class Scheduler:
    """Decodes sequences together; everything but the thread's own work is called in the event loop."""

    def __init__(self, make_slots: Callable[[], Slots], count: int, waiting: int):
        """Prepare the thread, which `start` starts.

        Args:
            make_slots: called in the thread, which alone uses the result.
            count: number of slots.
            waiting: maximum number of sequences that wait for a slot.
        """
        self._make_slots, self.count, self.limit = make_slots, count, count + waiting
        self._inbox: queue.SimpleQueue[list[Sequenced] | _Job | None] = queue.SimpleQueue()
        self._waiting: deque[Sequenced] = deque()
        self._jobs: deque[_Job] = deque()
        self._active: dict[int, Sequenced] = {}
        self._steps = 0
        self._stopping = False
        self._abort: ApiError | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.pending = 0
        """Sequences and jobs that were submitted and have not ended."""
        self.observe: Callable[[int, int], None] = lambda tokens, active: None
        """Called in the event loop after each step, with the number of tokens and of active slots."""

    @property
    def active(self) -> int:
        """Number of slots in use."""
        return len(self._active)

    @property
    def alive(self) -> bool:
        """Whether sequences are decoded."""
        return self._thread.is_alive() and self._abort is None

    async def start(self) -> None:
        """Start the thread; return when its programs are compiled.

        Raises:
            Exception: that the twin raises.
        """
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._ready

    def check_room(self, count: int) -> None:
        """Check that so many sequences can be submitted.

        Raises:
            ApiError: they cannot now, or never.
        """
        if count > self.limit:
            message = f"n: found {count} choices of all prompts, expected at most {self.limit}, slots and queue"
            raise ApiError(400, message, "n")
        if self._abort is not None:
            raise ApiError(self._abort.status, self._abort.message)
        if self.pending + count > self.limit:
            raise ApiError(429, f"{self.pending} sequences are decoded or wait, and {count} more are too many", retry=1)

    def submit(self, sequences: Sequence[Sequenced]) -> None:
        """Queue sequences, for all of which `check_room` has found room."""
        self.pending += len(sequences)
        self._inbox.put(list(sequences))

    def cancel(self, sequences: Sequence[Sequenced]) -> None:
        """Give up sequences, wherever they are."""
        for sequence in sequences:
            sequence.cancelled = True
        self._inbox.put(None)

    async def call(self, function: Callable[[Slots], Any]) -> Any:
        """Return the result of a function of the slots that leaves them alone, called between two steps.

        Raises:
            ApiError: there is no room for it.
        """
        self.check_room(1)
        self.pending += 1
        job = _Job(function, self._loop.create_future())
        self._inbox.put(job)
        try:
            return await job.future
        finally:
            self.pending -= 1

    def abort(self, error: ApiError) -> None:
        """End all sequences with an error, and refuse new ones."""
        self._abort = error
        self._inbox.put(None)

    async def stop(self) -> None:
        """End the thread after the current step."""
        self._stopping = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _deliver(self, events: list[Event], active: int) -> None:
        """Hand on what happened in a step; in the event loop."""
        tokens = 0
        for event in events:
            if event.finish or event.error:
                self.pending -= 1
            tokens += event.token is not None
            event.sequence.receive(event)
        self.observe(tokens, active)

    def _post(self, function: Callable, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop has ended: nobody waits
            self._stopping = True

    def _run(self) -> None:
        """Serve until `stop`; the thread's function."""
        try:
            self._open()
        except BaseException as error:
            self._post(self._ready.set_exception, error)
            return
        self._post(self._ready.set_result, None)
        while not self._stopping:
            events: list[Event] = []  # before the wait, so that those of the last step are not kept through it
            try:
                self._take()
                self._advance(events)
            except Exception:  # of the framework, such as too little memory: the server goes on
                log.exception("the model failed; all sequences in slots end with an error")
                events = [event for event in events if event.finish or event.error]
                events += [Event(sequence, error=_failed()) for sequence in self._active.values()]
                self._reopen()
            if events:
                self._post(self._deliver, events, len(self._active))

    def _reopen(self) -> None:
        """Make new slots after a failure; where there are none, every request is an error from now on."""
        try:
            self._open()
        except Exception:
            log.exception("the model failed again; restart the server")
            self._abort = _failed()

    def _open(self) -> None:
        """Make empty slots, and compile what the first request needs."""
        self._active = {}
        self._slots = self._make_slots()
        rows = self.count
        self._uniforms = np.zeros(rows, np.float32)
        self._sampling = Sampling(
            np.zeros(rows, np.float32), np.zeros(rows, np.int32), np.ones(rows, np.float32), np.zeros(rows, np.float32)
        )
        size = self._slots.size
        self._cold = deque(_lengths(size))
        self._warm_up()
        self._slots.step(self._uniforms, self._sampling, np.arange(rows) == 0)
        self._slots.logits()

    def _warm_up(self) -> None:
        """Compile what the next longer prompts need; all slots are free."""
        self._slots.prefill(0, np.zeros(self._cold.popleft(), np.int32))

    def _take(self) -> None:
        """Take what was submitted; wait for it where there is nothing to do."""
        idle = not (self._active or self._waiting or self._jobs)
        try:
            item = self._inbox.get(block=idle, timeout=PATIENCE if self._cold else None)
        except queue.Empty:
            if idle:
                self._warm_up()
            return
        try:
            while True:
                if isinstance(item, _Job):
                    self._jobs.append(item)
                elif item is not None:
                    self._waiting += item
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _advance(self, events: list[Event]) -> None:
        """Free slots, fill them, do a job, and decode one token of each; append what happened to `events`."""
        everyone = [*self._waiting, *self._active.values()]
        gone = {s for s in everyone if s.cancelled or self._abort}
        if gone:
            error = self._abort
            events += [Event(s, finish=None if error else "cancelled", error=error) for s in everyone if s in gone]
            self._waiting = deque(s for s in self._waiting if s not in gone)
            self._active = {slot: s for slot, s in self._active.items() if s not in gone}
        for _ in range(PREFILLS):
            free = next((slot for slot in range(self.count) if slot not in self._active), None)
            if free is None or not self._waiting:
                break
            self._admit(self._waiting.popleft(), free, events)
        if self._jobs:
            self._do(self._jobs.popleft())
        if self._active:
            self._step(events)

    def _admit(self, sequence: Sequenced, slot: int, events: list[Event]) -> None:
        """Prefill a slot with a prompt."""
        self._active[slot] = sequence  # so that it gets the error, should there be one
        scored = sequence.scored
        if scored is not None and scored.logprobs is None:
            logits = np.asarray(self._slots.prompt_logits(sequence.prompt))
            scored.logprobs = [] if np.isnan(logits).any() else prompt_logprobs(logits, sequence.prompt, scored.top)
        if not len(sequence.uniforms):  # of an echo alone
            del self._active[slot]
            events.append(Event(sequence, finish="length", error=None if scored is None or scored.logprobs else _nan()))
            return
        logits = np.asarray(self._slots.prefill(slot, sequence.prompt))
        if np.isnan(logits).any():
            del self._active[slot]
            events.append(Event(sequence, error=_nan()))
            return
        temperature, top_k, top_p, min_p = self._sampling
        temperature[slot], top_k[slot] = sequence.temperature, min(sequence.top_k, len(logits))
        top_p[slot], min_p[slot] = sequence.top_p, sequence.min_p

    def _do(self, job: _Job) -> None:
        try:
            result = job.call(self._slots)
        except Exception as error:
            log.exception("a request to the model failed")
            failed = ApiError(500, f"the model failed ({type(error).__name__})")
            self._post(_settle, job.future, failed)
        else:
            self._post(_settle, job.future, result)

    def _step(self, events: list[Event]) -> None:
        """Decode one token of each active slot."""
        self._steps += 1
        logits = None
        if self._steps % CHECKED == 0 or any(s.logprobs is not None for s in self._active.values()):
            logits = np.asarray(self._slots.logits())
            bad = [slot for slot in self._active if np.isnan(logits[slot]).any()]
            events += [Event(self._active.pop(slot), error=_nan()) for slot in bad]
        active = np.zeros(self.count, bool)
        for slot, sequence in self._active.items():
            active[slot] = True
            self._uniforms[slot] = sequence.uniforms[sequence.decoded]
        if not self._active:
            return
        tokens = self._slots.step(self._uniforms, self._sampling, active).tolist()
        for slot, sequence in list(self._active.items()):
            token = tokens[slot]
            sequence.decoded += 1
            if token in sequence.stop_ids:
                events.append(Event(sequence, finish="stop"))
                del self._active[slot]
                continue
            logprob = None
            if logits is not None and sequence.logprobs is not None:
                logprob = logprob_of(logits[slot], token, sequence.logprobs)
            ended = sequence.decoded == len(sequence.uniforms)
            events.append(Event(sequence, token, logprob, "length" if ended else None))
            if ended:
                del self._active[slot]


def _failed() -> ApiError:
    return ApiError(500, "the model failed; the server's log says why")


def _lengths(size: int) -> list[int]:
    """Return a prompt's length for each program that a twin compiles; the first leaves room for a step after it."""
    lengths = [min(cache_size(1), size)]
    while lengths[-1] < size:
        lengths.append(min(cache_size(lengths[-1] + 1), size))
    return [min(lengths[0], size - 1), *lengths[1:]]


def _nan() -> ApiError:
    """Return a new error each time, since one that is raised keeps the frames that it went through."""
    return ApiError(500, "the model gives NaN for every token: its weights are not finite; serve another checkpoint")


def _settle(future: asyncio.Future, result: Any) -> None:
    """Give a job's result to who waits for it, if anybody does."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
