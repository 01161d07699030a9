"""What is timed between frameworks: updates, and the writing of text. A side that computes another thing is not."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.errors import UserError
from parity.bench.report import Measure
from parity.bench.rounds import Options, Process, started, take_turns

__all__ = ["SIDES", "TOLERANCE", "Agreement", "Differ", "generation", "training"]

SIDES: dict[str, tuple[str, ...]] = {
    "jaxlm": ("train", "generate", "startup"),
    "torchlm": ("train", "generate", "startup"),
    "torchlm-compiled": ("train",),
    "transformers": ("train", "generate"),
    "transformers-compiled": ("train",),
    "product": ("train",),
}
"""Side -> modes that it takes part in; product is a bare matrix product."""

TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}
"""Greatest difference of losses or logits, relative to the largest of them, at which sides have the same model."""

WARM_UP = 4
"""Updates before the first turn, whose losses must agree: the fewest in which a wrong beta, rate or clip shows."""

PRODUCTS = 3
"""Matrix products in a turn."""


class Differ(UserError):
    """The sides do not compute the same: a fault of the code, not of the user."""

    exit_code = 1


class Agreement:
    """What the first side computed, to which the others are held."""

    def __init__(self, what: str, dtype: str):
        self.what, self.dtype = what, dtype
        self.first: tuple[str, np.ndarray] | None = None

    def check(self, side: str, values: Sequence[float]) -> float:
        """The difference from the first side, relative to its largest value.

        Raises:
            Differ: it is beyond the tolerance.
        """
        found = np.array(values)
        if self.first is None:
            self.first = side, found
        name, expected = self.first
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not difference <= TOLERANCE[self.dtype]:
            raise Differ(
                f"{self.what} in {self.dtype}: {side} and {name} differ by {difference:.1e} of the largest, allowed "
                f"{TOLERANCE[self.dtype]:.0e}, so they are not timed; python -m parity.check finds where"
            )
        return difference


def training(config: Config, sides: Sequence[str], options: Options) -> list[Measure]:
    """Time updates, after a few that warm up, from the initial weights on.

    Raises:
        Differ: the losses of these few are not the same.
        UserError: a side cannot do what is asked.
    """
    measures = []
    agreement = Agreement("losses of the first updates", config.train.precision)
    for group in _groups("train", sides, options.alone):
        with started(group, "train", config, options) as processes:
            warm = {process.side: _warm_up(process, agreement, options) for process in processes}
            answers = take_turns(processes, options, partial(_turn, options=options))
            for process in processes:
                measure = _trained(process, answers[process.side], config, _steps(process, options))
                measures.append(replace(measure, facts=measure.facts | warm[process.side]))
    return measures


def _groups(mode: str, sides: Sequence[str], alone: bool) -> list[list[str]]:
    """Sides that are alive together."""
    taking_part = [side for side in sides if mode in SIDES[side]]
    return [[side] for side in taking_part] if alone else [taking_part]


def _warm_up(process: Process, agreement: Agreement, options: Options) -> dict[str, float]:
    options.say(f"first step of {process.side}")
    first = process.ask("train", step=0, count=1)
    later = process.ask("train", step=1, count=WARM_UP - 1)
    difference = 0.0
    if process.side != "product":
        difference = agreement.check(process.side, first["losses"] + later["losses"])
    return {"first_seconds": first["seconds"], "difference": difference}


def _steps(process: Process, options: Options) -> int:
    if process.side == "product":
        return PRODUCTS
    return options.turn_steps or (2 if "cpu" in process.facts["device"] else 10)


def _turn(process: Process, number: int, options: Options) -> dict[str, Any]:
    count = _steps(process, options)
    return process.ask("train", step=WARM_UP + number * (count + 1), count=count + 1, warm=1)


def _trained(process: Process, answers: list[dict[str, Any]], config: Config, steps: int) -> Measure:
    product = process.side == "product"
    train = config.train
    return Measure(
        mode="train",
        dtype=train.precision,
        side=process.side,
        what="a matrix product" if product else f"train {train.batch_size} × {train.seq_len}",
        unit="FLOP/s" if product else "tokens/s",
        amount=steps * (process.facts["step_flops"] if product else train.batch_size * train.seq_len),
        seconds=[answer["seconds"] for answer in answers],
        cpu_seconds=[answer["cpu_seconds"] for answer in answers],
        facts=_facts(process) | {"steps": steps, "step_flops": process.facts["step_flops"]},
    )


def _facts(process: Process) -> dict[str, Any]:
    """What else is known of a side when its turns are over."""
    made = {name: process.facts[name] for name in ("device", "parameters", "peak", "start_bytes")}
    return made | process.ask("memory") | {"idle_share": process.idle_share}


def generation(config: Config, sides: Sequence[str], options: Options) -> list[Measure]:
    """Time the reading of prompts and the writing after them, one batch size after the other.

    Raises:
        Differ: the logits after the prompts are not the same.
        UserError: a side cannot do what is asked.
    """
    measures: list[Measure] = []
    length, agreement = options.prompt_tokens, Agreement("logits after a prompt", config.train.precision)
    for group in _groups("generate", sides, options.alone):
        with started(group, "generate", config, options) as processes:
            difference = {}
            for process in processes:
                logits = process.ask("logits", rows=4, length=length)["logits"]
                difference[process.side] = agreement.check(process.side, logits)
            for rows in options.batches:
                answers = take_turns(processes, options, partial(_write, rows=rows, length=length))
                for process in processes:
                    facts = _facts(process) | {"difference": difference[process.side], "rows": rows}
                    facts["weight_bytes"] = _weight_bytes(config, process.facts["parameters"])
                    measures += _written(process.side, answers[process.side], config, rows, length, facts)
    return measures


def _write(process: Process, number: int, rows: int, length: int) -> dict[str, Any]:
    return process.ask("write", rows=rows, length=length)


def _weight_bytes(config: Config, parameters: int) -> int:
    """What has to be read for a token, however many texts it is written to: all weights but an embedding of its own."""
    model = config.model
    looked_up = 0 if model.tie_embeddings else model.vocab_size * model.dim
    return (parameters - looked_up) * {"float64": 8, "float32": 4}.get(config.train.precision, 2)


def _written(
    side: str, answers: list[dict[str, Any]], config: Config, rows: int, length: int, facts: dict[str, Any]
) -> list[Measure]:
    common: dict[str, Any] = {"mode": "generate", "dtype": config.train.precision, "side": side, "unit": "tokens/s"}
    texts = "1 text" if rows == 1 else f"{rows} texts"
    tokens = config.sample.max_tokens
    timed = [
        (f"read {texts} of {length}", rows * length, [answer["read_seconds"] for answer in answers]),
        (f"write {texts} of {tokens}", rows * tokens, [answer["write_seconds"] for answer in answers]),
    ]
    return [Measure(**common, what=what, amount=amount, seconds=taken, facts=facts) for what, amount, taken in timed]
