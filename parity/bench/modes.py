"""What is timed between frameworks: updates and generation, once the implementations are seen to compute the same."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.errors import UserError
from parity.bench.peers import PEERS
from parity.bench.report import Measure, generation_name
from parity.bench.rounds import Options, Process, started, take_turns

__all__ = ["IMPLEMENTATIONS", "TOLERANCE", "Agreement", "Differ", "generation", "training"]

IMPLEMENTATIONS: dict[str, tuple[str, ...]] = {
    "jaxlm": ("train", "generate", "serve", "startup"),
    "torchlm": ("train", "generate", "serve", "startup"),
    "torchlm-compiled": ("train",),
    "jaxlm-int8": ("generate",),
    "torchlm-int8": ("generate",),
    **{name: modes for peer in PEERS.values() for name, modes in peer.implementations.items()},
    "matmul": ("train",),
}
"""Implementation -> modes that it takes part in; matmul is a bare matmul, whose rate is the peak."""

TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}
"""Largest difference of losses or logits, relative to the largest of them, at which two have the same model."""

BITS_8 = {"int8": 1.0, "q8_0": 34 / 32}
"""End of the name of an implementation whose weights have 8 bits -> bytes per weight, without int8's few scales."""

ROUNDING = 0.009
"""Relative error of a matmul with such weights, root mean square.

Weights lie on a grid of 1/127 of the largest of a channel, at most about 4 standard deviations of normal weights for up
to 16,000 of them, so the error is uniform with a standard deviation of 4 / (127 √12) = 0.009 of theirs. A block of 32
reaches about 2.1: 0.005, and as much again, in squares, for llama.cpp's factors of 8 bits.
"""

WARM_UP = 4
"""Updates before the first turn, whose losses must agree: the fewest in which a wrong beta, rate or clip shows."""

MATMULS = 3
"""Matmuls in a turn."""


class Differ(UserError):
    """The implementations do not compute the same: a fault of the code, not of the user."""

    exit_code = 1


class Agreement:
    """What the first implementation computed, to which the others are held."""

    def __init__(self, what: str, dtype: str):
        self.what, self.dtype = what, dtype
        self.first: tuple[str, np.ndarray, float] | None = None

    def check(self, implementation: str, values: Sequence[float], rounding: float = 0.0) -> float:
        """Return the difference from the first implementation, relative to its largest value.

        Args:
            implementation: whose values they are.
            values: losses or logits.
            rounding: largest difference by the rounding of the weights.

        Raises:
            Differ: it is beyond the tolerance and the rounding of both.
        """
        measured = np.array(values)
        if self.first is None:
            self.first = implementation, measured, rounding
        name, expected, first_rounding = self.first
        difference = float(np.abs(measured - expected).max() / np.abs(expected).max())
        allowed = TOLERANCE[self.dtype] + rounding + first_rounding
        if not difference <= allowed:
            raise Differ(
                f"{self.what} in {self.dtype}: {implementation} and {name} differ by {difference:.1e} of the largest, "
                f"allowed {allowed:.0e}, so they are not timed; python -m parity.check finds where"
            )
        return difference


def training(config: Config, implementations: Sequence[str], options: Options) -> list[Measure]:
    """Time updates from the initial weights on, after a few that warm up.

    Args:
        config: shape of the model and batch, optimizer and dtype.
        implementations: names in `IMPLEMENTATIONS`; those that do not train are passed over.
        options: rounds and length of turns.

    Raises:
        Differ: the losses of these few are not the same.
        UserError: an implementation cannot do what is asked.
    """
    measures = []
    agreement = Agreement("losses of the first updates", config.train.precision)
    for group in _groups("train", implementations, options.alone):
        with started(group, "train", config, options) as processes:
            warm = {process.implementation: _warm_up(process, agreement, options) for process in processes}
            answers = take_turns(processes, options, partial(_turn, options=options))
            for process in processes:
                measure = _trained(process, answers[process.implementation], config, _steps(process, options))
                measures.append(replace(measure, facts=measure.facts | warm[process.implementation]))
    return measures


def _groups(mode: str, implementations: Sequence[str], alone: bool) -> list[list[str]]:
    """Implementations that are alive together."""
    able = [name for name in implementations if mode in IMPLEMENTATIONS[name]]
    return [[name] for name in able] if alone else [able]


def _warm_up(process: Process, agreement: Agreement, options: Options) -> dict[str, float]:
    options.say(f"first step of {process.implementation}")
    first = process.ask("train", step=0, count=1)
    later = process.ask("train", step=1, count=WARM_UP - 1)
    difference = 0.0
    if process.implementation != "matmul":
        difference = agreement.check(process.implementation, first["losses"] + later["losses"])
    return {"first_seconds": first["seconds"], "difference": difference}


def _steps(process: Process, options: Options) -> int:
    if process.implementation == "matmul":
        return MATMULS
    return options.turn_steps or (2 if "cpu" in process.facts["device"] else 10)


def _turn(process: Process, number: int, options: Options) -> dict[str, Any]:
    count = _steps(process, options)
    return process.ask("train", step=WARM_UP + number * (count + 1), count=count + 1, warm=1)


def _trained(process: Process, answers: list[dict[str, Any]], config: Config, steps: int) -> Measure:
    matmul = process.implementation == "matmul"
    train = config.train
    return Measure(
        mode="train",
        dtype=train.precision,
        implementation=process.implementation,
        what="matmul" if matmul else f"train {train.batch_size} × {train.seq_len}",
        unit="FLOP/s" if matmul else "tokens/s",
        amount=steps * (process.facts["step_flops"] if matmul else train.batch_size * train.seq_len),
        seconds=[answer["seconds"] for answer in answers],
        cpu_seconds=[answer["cpu_seconds"] for answer in answers],
        facts=_facts(process) | {"steps": steps, "step_flops": process.facts["step_flops"]},
    )


def _facts(process: Process) -> dict[str, Any]:
    """What else is known of an implementation when its turns are over."""
    facts = {name: process.facts[name] for name in ("device", "parameters", "peak", "start_bytes")}
    return facts | process.ask("memory") | {"idle_fraction": process.idle_fraction}


def generation(config: Config, implementations: Sequence[str], options: Options) -> list[Measure]:
    """Time prefill and decoding, one batch size after the other.

    Args:
        config: shape of the model, dtype, and sampling.
        implementations: names in `IMPLEMENTATIONS`; those that do not generate are passed over.
        options: rounds, batch sizes and length of the prompts.

    Raises:
        Differ: the logits after the prompts are not the same.
        UserError: an implementation cannot do what is asked.
    """
    measures: list[Measure] = []
    length, dtype = options.prompt_tokens, config.train.precision
    agreement, of_int8 = (Agreement(f"logits after a prompt{of}", dtype) for of in ("", " with int8 weights"))
    for group in _groups("generate", implementations, options.alone):
        with started(group, "generate", config, options) as processes:
            difference = {}
            for process in processes:
                name, logits = process.implementation, process.ask("logits", sequences=4, length=length)["logits"]
                difference[name] = agreement.check(name, logits, _rounding(config, name))
                if name.endswith("-int8"):  # both twins have the same values and scales
                    of_int8.check(name, logits)
            for sequences in options.batches:
                answers = take_turns(processes, options, partial(_generate, sequences=sequences, length=length))
                for process in processes:
                    facts = _facts(process) | {"difference": difference[process.implementation], "sequences": sequences}
                    facts["weight_bytes"] = _weight_bytes(config, process)
                    measures += _generated(
                        process.implementation, answers[process.implementation], config, sequences, length, facts
                    )
    return measures


def _generate(process: Process, number: int, sequences: int, length: int) -> dict[str, Any]:
    return process.ask("generate", sequences=sequences, length=length)


def _rounding(config: Config, implementation: str) -> float:
    """Largest difference of logits by weights of 8 bits, relative to the largest; 0 for full weights.

    The errors of the matmuls, seven in a layer, and of embedding and head are independent, so that their squares add.
    Among the 256 logits that are compared, the largest error is within 4 standard deviations of the errors, the largest
    logit at least 2 of the logits. A fault smaller than this shows only elsewhere: in the comparison of both twins with
    int8 weights, or in `llama.cpp`, which comes from the same exporter as `llama.cpp-q8_0`.
    """
    return _bits_8(implementation) and 2 * ROUNDING * math.sqrt(7 * config.model.n_layers + 2)


def _bits_8(implementation: str) -> float:
    """Bytes per weight of 8 bits; 0 for full weights."""
    return BITS_8.get(implementation.rpartition("-")[2], 0.0)


def _weight_bytes(config: Config, process: Process) -> int:
    """Bytes of weights that a decoding step reads at least, whatever the batch: all but an untied embedding."""
    model = config.model
    embedding_only = 0 if model.tie_embeddings else model.vocab_size * model.dim
    size = _bits_8(process.implementation) or {"float64": 8, "float32": 4}.get(config.train.precision, 2)
    return round((process.facts["parameters"] - embedding_only) * size)


def _generated(
    implementation: str,
    answers: list[dict[str, Any]],
    config: Config,
    sequences: int,
    length: int,
    facts: dict[str, Any],
) -> list[Measure]:
    common: dict[str, Any] = {
        "mode": "generate",
        "dtype": config.train.precision,
        "implementation": implementation,
        "unit": "tokens/s",
    }
    tokens = config.sample.max_tokens
    prefill, decode = (
        generation_name(*phase) for phase in (("prefill", sequences, length), ("decode", sequences, tokens))
    )
    timed = [
        (prefill, sequences * length, [a["prefill_seconds"] for a in answers]),
        (decode, sequences * tokens, [a["decode_seconds"] for a in answers]),
    ]
    return [Measure(**common, what=what, amount=amount, seconds=taken, facts=facts) for what, amount, taken in timed]
