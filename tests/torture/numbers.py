"""Losses, gradients and weights that become NaN or infinite in the middle of a run, in both twins.

A training batch that contains one rare token is poisoned: its loss, or its gradient alone, is not finite. Which steps
these are is known from the batches, so it is known which updates must be skipped, or where the run must stop.
"""

import contextlib
import importlib
import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lmcore.config import cli
from lmcore.data.batches import Batches
from lmcore.data.prepare import prepare
from lmcore.run.checkpoints import list_checkpoints
from lmcore.run.trackers import Row, read_metrics
from parity.difference import TOLERANCES
from tests.tiny import TINY
from tests.torture.outcome import Outcome

__all__ = ["KINDS", "TWINS", "faults"]

TWINS = ("jaxlm", "torchlm")
KINDS = ("loss", "gradient", "infinity", "weights")
STEPS, BATCH = 24, 2
TOLERANCE = TOLERANCES["logits"]["float64"]
OPTIONS = {
    **TINY,
    "train.precision": "float64",  # in which the twins stay together to far below what a missed update changes
    "train.batch_size": BATCH,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "eval.batch_size": BATCH + 1,  # by its size, a training batch is told from one of evaluation
    "checkpoint.every": 4,
    "checkpoint.keep": 9,
    "sample.max_tokens": 1,
}


@dataclass(frozen=True)
class Poison:
    """A token, and the steps, from 1, whose batches contain it."""

    token: int
    steps: tuple[int, ...]


def faults(count: int, folder: Path) -> Iterator[Outcome]:
    """Inject each kind into both twins, under both policies, with one seed after another."""
    cases = ((seed, kind, policy) for seed in itertools.count() for kind in KINDS for policy in ("skip", "stop"))
    for seed, kind, policy in itertools.islice(cases, math.ceil(count / len(TWINS))):
        place = folder / f"{seed}-{kind}-{policy}"
        curves = []
        for twin in TWINS:
            with poisoned(twin, kind, poison_of(seed, folder)):
                problem = check(twin, kind, policy, seed, place, folder)
            curves.append([row["loss"] for row in read_metrics(place / twin / "metrics.jsonl")])
            if not problem and not same_curve(curves[0], curves[-1]):
                problem = "the twins' losses differ"
            refused = policy == "stop" or kind == "weights"
            verdict = "lost" if problem else "refused" if refused else "survived"
            yield Outcome(f"{twin}, {kind}, {policy}, seed {seed}", verdict, problem)


def poison_of(seed: int, folder: Path) -> Poison:
    """Return the rarest token that is in several batches, none of them before the first checkpoint."""
    words = command_line("any", "skip", seed, folder)
    config = cli.parse(words, prog="", description="")
    prepared = prepare(config, report=lambda line: None)
    batches = Batches(prepared.train, seq_len=config.train.seq_len, batch_size=BATCH, seed=seed)
    inputs = [batches.batch(step)[:, :-1] for step in range(STEPS)]
    poisons = [
        Poison(token, tuple(step for step, tokens in enumerate(inputs, 1) if (tokens == token).any()))
        for token in range(prepared.tokenizer.vocab_size)
    ]
    several = [poison for poison in poisons if len(poison.steps) > 1 and poison.steps[0] > 5]
    return min(several, key=lambda poison: len(poison.steps))


@contextlib.contextmanager
def poisoned(twin: str, kind: str, poison: Poison) -> Iterator[None]:
    """Poison the training loss of a twin, or set one of its weights to NaN after the first poisoned step."""
    engine = importlib.import_module(f"{twin}.engine")
    if kind == "weights":
        step = engine.Engine.train_step
        done = itertools.count(1)

        def breaking(self: Any, batch: np.ndarray, lr: float) -> dict[str, Any]:
            metrics = step(self, batch, lr)
            if next(done) == poison.steps[0] - 1:
                break_weights(self)
            return metrics

        patched = mock.patch.object(engine.Engine, "train_step", breaking)
    else:
        patched = mock.patch.object(engine, "loss_sum", poisoned_loss(engine.loss_sum, twin, kind, poison.token))
    with patched:
        yield


def poisoned_loss(loss_sum: Callable[..., Any], twin: str, kind: str, token: int) -> Callable[..., Any]:
    """Return a loss that is not finite, or has a gradient that is not, where a training batch contains the token."""
    if twin == "jaxlm":
        import jax.numpy as xp
    else:
        import torch as xp  # type: ignore[no-redef]

    def faulty(model: Any, tokens: Any, targets: Any, *key: Any) -> Any:
        loss = loss_sum(model, tokens, targets, *key)
        if len(tokens) != BATCH:
            return loss
        hit = (tokens == token).any()
        if kind == "loss":  # the gradient stays finite
            return loss + xp.where(hit, xp.nan, 0.0)
        if kind == "infinity":
            return loss * xp.where(hit, xp.inf, 1.0)
        none = 0 * loss  # the derivative of a root at zero is infinite, and infinity times zero is NaN
        return loss + xp.sqrt(xp.where(hit, none, 1 + none)) - xp.where(hit, 0.0, 1.0)

    return faulty


def break_weights(engine: Any) -> None:
    """Set the first value of a matrix to NaN."""
    name = "layers.0.mlp.up_proj"
    if engine.framework == "torch":
        import torch

        with torch.no_grad():
            engine.state.params[f"{name}.weight"][0, 0] = torch.nan
    else:
        state = engine.state
        from dataclasses import replace

        matrix = state.params[f"{name}.kernel"]
        engine.state = replace(state, params=state.params | {f"{name}.kernel": matrix.at[0, 0].set(np.nan)})


def command_line(twin: str, policy: str, seed: int, folder: Path, place: Path | None = None) -> list[str]:
    """Return the options of a run."""
    options = OPTIONS | {"train.steps": STEPS, "train.seed": seed, "data.dir": folder / "data"}
    options |= {"run_dir": (place or folder) / twin, "optim.nonfinite": policy, "train.resume": "auto"}
    return [f"--{name}={value}" for name, value in options.items()]


def run(twin: str, words: list[str]) -> tuple[int, list[str]]:
    """Run a twin's training; return its exit code, and the lines of standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = importlib.import_module(f"{twin}.train").main(words)
    return code, errors.getvalue().splitlines()


def check(twin: str, kind: str, policy: str, seed: int, place: Path, folder: Path) -> str:
    """Train with a poison; return what is wrong with the outcome, or an empty string."""
    poison = poison_of(seed, folder)
    code, errors = run(twin, command_line(twin, policy, seed, folder, place))
    rows = read_metrics(place / twin / "metrics.jsonl")
    saved = [checkpoint.step for checkpoint in list_checkpoints(place / twin)]
    if policy == "skip" and kind != "weights":
        return survived(code, errors, rows, poison)
    if code != 1 or len(errors) != 1 or "which was not saved" not in errors[0]:
        return f"exit code {code}, said {errors}"
    first = poison.steps[0]
    if max(saved) >= first or f"step_{max(saved):08d}" not in errors[0]:
        return f"checkpoints of steps {saved} with a poisoned step {first}, said {errors}"
    if kind == "weights":
        return ""
    code, errors = run(twin, command_line(twin, "skip", seed, folder, place))
    return survived(code, errors, read_metrics(place / twin / "metrics.jsonl"), poison)


def survived(code: int, errors: list[str], rows: list[Row], poison: Poison) -> str:
    """Return what is wrong with a run that was to skip the poisoned steps, or an empty string."""
    if code != 0 or errors:
        return f"exit code {code}, said {errors}"
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)):
        return "a step is missing or twice"
    counted = [row.get("skipped_steps", 0) for row in rows]
    expected = [sum(step <= row["step"] for step in poison.steps) for row in rows]
    if counted[-1] != expected[-1] or any(c not in (0, e) for c, e in zip(counted, expected, strict=True)):
        return f"skipped {counted}, expected {expected}"
    if not math.isfinite(rows[-1]["valid_loss"]):
        return "the last validation loss is not finite"
    return ""


def same_curve(one: list[float], other: list[float]) -> bool:
    """Return whether two curves agree, where they are finite, and in where they are not."""
    left, right = np.array(one), np.array(other)
    finite = np.isfinite(left)
    return len(left) == len(right) and bool(
        (finite == np.isfinite(right)).all() and np.allclose(left[finite], right[finite], rtol=TOLERANCE, atol=0)
    )
