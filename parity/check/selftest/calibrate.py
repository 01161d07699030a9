"""`python -m parity.check --calibrate`: the rate of false alarms, and the smallest fault that each rung catches.

False alarms: every combination of HEALTHY in every precision climbs the ladder with several seeds, half of them with
fresh weights and half after some training. Power: in one twin, one number is multiplied by 1 + δ (a number that must
stay below one by 1 - δ), for δ = 0.1, 0.01, … until its rung no longer catches it. Both are printed as Markdown tables.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from lmcore.config import Config, LoraConfig, Precision
from lmcore.model.init import initial_weight
from parity.arrays import Arrays
from parity.backends import framework_settings, make_pair, make_twin
from parity.backends.base import Pair, check_config, train
from parity.check.ladder import climb
from parity.check.rungs.base import Options, training_batches
from parity.check.selftest.faults import decoding, optimizer, patch
from parity.check.selftest.mutants import odd_config, shaken

__all__ = ["HEALTHY", "KNOBS", "Outcome", "false_alarms", "smallest_faults"]

HEALTHY: dict[str, dict[str, dict[str, Any]]] = {
    "Llama": {},
    "learned positions, LayerNorm, GELU": {"model": {"position": "learned", "norm": "layernorm", "mlp": "gelu"}},
    "post-norm, ReLU, biases": {"model": {"norm_placement": "post", "mlp": "relu", "bias": True}},
    "sandwich, GeGLU, qk-norm, untied": {
        "model": {"norm_placement": "sandwich", "mlp": "geglu", "qk_norm": True, "tie_embeddings": False}
    },
    "no positions, dropout": {"model": {"position": "none", "dropout": 0.2}},
    "adapters, dropout": {"model": {"lora": LoraConfig(rank=4, dropout=0.2, targets=["q_proj", "down_proj"])}},
    "beta2 0.999, wsd": {"optim": {"beta2": 0.999, "schedule": "wsd"}},
    "Muon": {"optim": {"name": "muon"}},
    "Adafactor": {"optim": {"name": "adafactor"}},
    "Lion": {"optim": {"name": "lion", "lr": 1e-3}},
    "SGD": {"optim": {"name": "sgd", "lr": 0.1}},
}
"""Name -> changes to the self-test's small model."""
PRECISIONS: tuple[Precision, ...] = ("float64", "float32", "bfloat16")
SEEDS = 10
"""Number of pairs of each combination and precision."""
STEPS, TRAINED = 20, 40
"""Number of steps of rung 7, and of training before half of the pairs are checked."""
RUNGS = (*range(9), 10)
"""Rungs that a healthy pair climbs: all that depend on its weights and batches."""


@dataclass(frozen=True)
class Outcome:
    """The failures of one healthy pair."""

    name: str
    dtype: Precision
    seed: int
    failures: tuple[str, ...]
    """Lines that failed, which are false alarms."""


def _changed(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    for group, fields in changes.items():
        config = replace(config, **{group: replace(getattr(config, group), **fields)})
    return config


def _tokens(config: Config) -> np.ndarray:
    """Return a text with something to learn: each token id mostly depends on the one before."""
    rng, size = np.random.default_rng(0), config.model.vocab_size
    successor, ids = rng.permutation(size), [0]
    for jump in rng.random(20_000) < 0.3:
        ids.append(int(rng.integers(size)) if jump else int(successor[ids[-1]]))
    return np.array(ids, np.int32)


def _pair(name: str, dtype: Precision) -> Pair:
    config = _changed(odd_config(), {"optim": {"lr": 3e-3, "clip": 1.0, "weight_decay": 0.1}})
    config = check_config(_changed(config, HEALTHY[name]), dtype)
    return make_pair(config, _tokens(config))


def _healthy(case: tuple[str, Precision, int]) -> list[Outcome]:
    """Climb with every seed of one combination; all seeds share its compiled programs."""
    name, dtype, seeds = case
    outcomes = []
    with framework_settings():
        first = _pair(name, dtype)
        for seed in range(seeds):
            pair = _seeded(first, seed)
            failed = [f"rung {r.rung}, {r.what}: {r.where}" for r in climb(pair, RUNGS, Options(STEPS)) if not r.ok]
            outcomes.append(Outcome(name, dtype, seed, tuple(failed)))
    return outcomes


def _seeded(first: Pair, seed: int) -> Pair:
    """Return the twins with another seed's weights and batches; with odd seeds, after some training."""
    config = replace(first.config, train=replace(first.config.train, seed=seed))
    start: Arrays = {
        key: initial_weight(seed, key, value.shape, config.model).astype(value.dtype)
        for key, value in first.start.items()
    }
    pair = Pair(first.reference, first.port, config, start, first.tokens, fresh=False)
    if seed % 2:
        train(pair.reference, config, start, training_batches(pair, TRAINED))
        pair.start = pair.reference.params()
    pair.fresh_process = seed == 0
    return pair


def false_alarms(seeds: int = SEEDS, processes: int = 2) -> Iterator[tuple[str, Precision, list[Outcome]]]:
    """Check healthy twins, in a few processes at a time; yield the outcomes of each combination as it ends."""
    cases = [(name, dtype, seeds) for name, dtype in product(HEALTHY, PRECISIONS)]
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        for outcomes in pool.imap_unordered(_healthy, cases):
            yield outcomes[0].name, outcomes[0].dtype, outcomes


Plant = Callable[[], AbstractContextManager[Any]]


def _optim(field: str) -> Callable[[float], Plant]:
    """Return a fault for each δ: one number of the optimizer's config times 1 - δ, in torch."""

    def plant(delta: float) -> Plant:
        def make(make_optimizer: Any) -> Any:
            return lambda config, *rest: make_optimizer(
                replace(config, **{field: getattr(config, field) * (1 - delta)}), *rest
            )

        return patch("torchlm.engine.make_optimizer", make)

    return plant


def _option(field: str) -> Callable[[float], Plant]:
    """Return a fault for each δ: one sampling option times 1 + δ, in torch."""

    def plant(delta: float) -> Plant:
        def change(options: Any) -> dict[str, Any]:
            value = getattr(options, field)
            return {field: min(1.0, value * (1 + delta)) if field != "temperature" else value * (1 + delta)}

        return patch("torchlm.decoding.choose_tokens", decoding.other_options(change))

    return plant


def _times(target: str, scaled: Callable[[Any, float], Any]) -> Callable[[float], Plant]:
    """Return a fault for each δ: a function of torch with one of its numbers times 1 + δ."""
    return lambda delta: patch(target, lambda function: scaled(function, delta))


def _scaled_gradient(loss_sum: Any, delta: float) -> Any:
    def faulty(*args: Any) -> Any:
        loss = loss_sum(*args)
        return loss.detach() + (loss - loss.detach()) * (1 + delta)

    return faulty


def _scaled_moments(restore_state: Any, delta: float) -> Any:
    def faulty(folder: Any, **wanted: Any) -> None:
        restore_state(folder, **wanted)
        for key, tensor in wanted.get("optimizer", {}).items():
            if key.startswith("exp_avg."):
                tensor.mul_(1 + delta)

    return faulty


def _scaled_parts(with_gradients: Any, delta: float) -> Any:
    def faulty(*args: Any) -> Any:
        loss, grads = with_gradients(*args)
        return loss, tuple(g * (1 + delta) for g in grads)

    return faulty


def _theta(tables: Any, delta: float) -> Any:
    return lambda config, *rest: tables(replace(config, rope_theta=config.rope_theta * (1 + delta)), *rest)


KNOBS: dict[str, tuple[int, Callable[[float], Plant]]] = {
    "rope_theta": (3, _times("torchlm.model.rope_tables", _theta)),
    "loss of each token": (4, _times("torchlm.loss.cross_entropy", lambda f, d: lambda *args: f(*args) * (1 + d))),
    "gradients": (5, _times("torchlm.engine.loss_sum", _scaled_gradient)),
    "lr": (6, _times("torchlm.engine.apply_updates", lambda f, d: lambda o, lr, s=None: f(o, lr * (1 + d), s))),
    "clip": (6, _times("torchlm.engine.clip_by_global_norm", lambda f, d: lambda p, norm: f(p, norm * (1 + d)))),
    "beta1": (6, _optim("beta1")),
    "beta2": (6, _optim("beta2")),
    "eps": (6, _optim("eps")),
    "weight_decay": (6, _optim("weight_decay")),
    "lr from update 6 on": (
        7,
        lambda delta: patch("torchlm.engine.apply_updates", optimizer.faster_later(1 + delta)),
    ),
    "temperature": (8, _option("temperature")),
    "top_p": (8, _option("top_p")),
    "min_p": (8, _option("min_p")),
    "restored first moment": (10, _times("torchlm.engine.restore_state", _scaled_moments)),
    "a core's gradients": (11, _times("torchlm.fast.parallel._with_gradients", _scaled_parts)),
}
"""Number that is multiplied by 1 + δ in torch -> the rung that must catch it, and the fault for each δ."""
SMALLEST = 13
"""δ is reduced down to 10 to the minus this."""
Smallest = dict[str, tuple[int, float | None]]
"""Knob -> its rung and the smallest δ that the rung catches; None if it does not catch 0.1."""


def smallest_faults(dtypes: Sequence[Precision], processes: int = 2) -> dict[Precision, Smallest]:
    """Return the smallest power of ten that each knob's rung catches, in each precision, with a process for each."""
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        return dict(zip(dtypes, pool.map(_smallest, dtypes, chunksize=1), strict=True))


def _smallest(dtype: Precision) -> Smallest:
    smallest: Smallest = {}
    with framework_settings():
        config = check_config(odd_config(), dtype)
        pair = make_pair(config, _tokens(config))
        healthy = pair.with_weights(shaken(pair.start, scale=4.0))
        healthy.fresh_process = False
        for name, (rung, plant) in KNOBS.items():
            if rung == 11 and dtype != "float64":
                continue
            caught = None
            for exponent in range(1, SMALLEST + 1):
                if not _catches(healthy, rung, plant(10.0**-exponent)):
                    break
                caught = 10.0**-exponent
            smallest[name] = rung, caught
    return smallest


def _catches(healthy: Pair, rung: int, plant: Plant) -> bool:
    with plant():
        device = replace(healthy.config, train=replace(healthy.config.train, device="cpu"))
        pair = healthy.with_twins(healthy.reference, make_twin(healthy.port.backend.framework, device))
        return any(not result.ok for result in climb(pair, [rung], Options(STEPS // 2), stop=True))
