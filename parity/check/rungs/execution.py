"""Rung 11: options that change how a step is computed, but its numbers by no more than rounding.

Each twin is compared with its own plain step, on a small model of the same kind: recomputed blocks, stacked layers, a
batch split over cores, no accumulation, all at once, and each alone where that differs. Then what no such step shows:
updates that are skipped, dropout left on in evaluation, evaluation windows that miss or repeat a token, and gradients
of attention beyond the length up to which it is computed in one piece.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lmcore.config import Config, DataConfig
from lmcore.data.batches import Tokens
from lmcore.data.marks import target_ids
from lmcore.run.engine import evaluate
from parity.arrays import Arrays, scaled_matrix
from parity.backends import make_twin
from parity.backends.base import Pair, Twin
from parity.check.result import Result, identical, judge
from parity.check.rungs.base import Options, in_short_documents
from parity.difference import Difference, compare_all, difference

__all__ = ["execution", "small_config"]

VOCABULARY, LENGTH = 61, 23
LONG = 1100
"""Sequence length at which both twins compute attention block by block: see `fast/attention.py`."""
HOW: dict[str, dict[str, dict[str, Any]]] = {
    "remat": {"train": {"remat": True}},
    "scan_layers": {"model": {"scan_layers": True}},
    "cpu_devices 2": {"train": {"cpu_devices": 2}},
    "grad_accum 1": {"train": {"grad_accum": 1}},
}


def small_config(config: Config) -> Config:
    """Return the config of a small model of the same kind, in which neighbouring axes differ in size."""
    lora = config.model.lora
    model = replace(
        config.model,
        vocab_size=VOCABULARY,
        dim=24,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2 if config.model.n_kv_heads < config.model.n_heads else 4,
        head_dim=6,
        ffn_dim=40,
        max_seq_len=LONG if config.model.max_seq_len >= LONG else max(LENGTH, min(config.model.max_seq_len, 64)),
        dropout=0.0,
        scan_layers=False,
        lora=lora and replace(lora, rank=min(lora.rank, 4), dropout=0.0),
    )
    data = DataConfig(document_mask=config.data.is_marked)
    train = replace(config.train, seq_len=LENGTH, batch_size=4, grad_accum=2, cpu_devices=1, remat=False, device="cpu")
    return replace(config, model=model, data=data, train=train)


def execution(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 11: compare each way of computing with the plain one, in a small model of the same kind, in float64."""
    if pair.dtype != "float64":
        what, note = "ways of computing", "compared in float64, which separates logic from rounding"
        yield Result(rung=11, what=what, dtype=pair.dtype, verdict="skipped", note=note)
        return
    plain = small_config(pair.config)
    twins = [_another(twin, plain) for twin in pair]
    initial, rng = twins[0].initial(), np.random.default_rng(0)
    start = {name: scaled_matrix(value, 4, rng) if value.ndim > 1 else value for name, value in initial.items()}
    ids = np.random.default_rng(0).integers(VOCABULARY, size=4000).astype(np.int32)
    ids = in_short_documents(ids) if plain.data.is_marked else ids
    batch = ids[: 4 * (LENGTH + 1)].reshape(4, LENGTH + 1)
    for twin in twins:
        yield from _ways(pair.dtype, twin, plain, start, batch)
    yield from _skipping(pair.dtype, twins, plain, start, batch)
    yield _without_dropout(pair.dtype, twins, plain, start, batch)
    yield _windows(pair.dtype, twins, plain, start, ids)
    if plain.model.max_seq_len < LONG:
        note = f"the model takes no more than {pair.context} tokens"
        yield Result(rung=11, what=f"gradients at {LONG} tokens", dtype=pair.dtype, verdict="skipped", note=note)
        return
    long = replace(plain, train=replace(plain.train, seq_len=LONG - 1, batch_size=1, grad_accum=1))
    reference, port = (_gradients(_another(twin, long), start, ids[None, :LONG]) for twin in twins)
    yield judge(11, f"gradients at {LONG - 1} tokens", pair.dtype, compare_all(reference, port), "gradients")


def _another(twin: Twin, config: Config) -> Twin:
    """Return a new twin of the same framework."""
    return make_twin(twin.backend.framework, config)


def _gradients(twin: Twin, start: Arrays, batch: np.ndarray) -> Arrays:
    twin.load(start)
    step = twin.step(batch, 0.01)
    return {"loss": np.array(step.loss)} | step.grads


def _changed(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    for group, fields in changes.items():
        config = replace(config, **{group: replace(getattr(config, group), **fields)})
    return config


def _ways(dtype: str, twin: Twin, plain: Config, start: Arrays, batch: np.ndarray) -> Iterator[Result]:
    """Yield one line for all options at once; where that differs, one for each."""
    expected = _gradients(twin, start, batch)
    together: dict[str, dict[str, Any]] = {
        "model": {"scan_layers": True},
        "train": {"remat": True, "cpu_devices": 2, "grad_accum": 1},
    }

    def compare(what: str, changes: dict[str, dict[str, Any]]) -> Result:
        differences = compare_all(expected, _gradients(_another(twin, _changed(plain, changes)), start, batch))
        return judge(11, f"{twin.backend.label}: {what}", dtype, differences, "gradients", "against the plain step")

    combined = compare("remat, scan_layers, 2 devices, no accumulation", together)
    yield combined
    if not combined.ok:
        yield from (compare(name, changes) for name, changes in HOW.items())


def _skipping(dtype: str, twins: list[Twin], plain: Config, start: Arrays, batch: np.ndarray) -> Iterator[Result]:
    """Compare two steps where updates may be skipped with two plain ones, and with those around a NaN gradient."""
    skipped: list[Difference] = []
    counted: list[Difference] = []
    for twin in twins:
        label, skipping = twin.backend.label, _another(twin, _changed(plain, {"optim": {"nonfinite": "skip"}}))
        twin.load(start)
        skipping.load(start)
        expected, once = ([one.step(batch, 0.01) for _ in range(2)] for one in (twin, skipping))
        counted += compare_all(*({f"{label}'s {n}": p for n, p in two[1].params.items()} for two in (expected, once)))
        skipping.load(start)
        grads = skipping.step(batch, 0.01).grads
        name = next(iter(grads))
        skipping.step(batch, 0.01, grads | {name: np.full_like(grads[name], np.nan)})
        last = skipping.step(batch, 0.01).params
        skipped += [identical(f"{label}'s {n}", value, last[n]) for n, value in once[1].params.items()]
    yield judge(11, "updates that may be skipped, as plain ones", dtype, counted, "update")
    yield judge(11, "a NaN gradient is skipped", dtype, skipped, 0.0)


def _without_dropout(dtype: str, twins: list[Twin], plain: Config, start: Arrays, batch: np.ndarray) -> Result:
    differences: list[Difference] = []
    for twin in twins:
        losses = []
        for one in (twin, _another(twin, _changed(plain, {"model": {"dropout": 0.3}}))):
            one.load(start)
            losses.append(np.array(one.evaluate(batch[:, :-1], target_ids(batch[:, 1:]))[0]))
        differences.append(identical(f"{twin.backend.label}'s loss", *losses))
    return judge(11, "evaluation with dropout 0.3 as without", dtype, differences, 0.0)


def _windows(dtype: str, twins: list[Twin], plain: Config, start: Arrays, ids: np.ndarray) -> Result:
    """Compare the mean loss over a text of no whole number of windows or batches with the sum over its tokens."""
    text = Tokens(ids=ids[: 6 * LENGTH + 8], documents=1, bytes=4 * LENGTH, unknown=0)
    differences = []
    for twin in twins:
        twin.load(start)
        starts = range(0, len(text) - 1, LENGTH)
        pieces = [text.ids[at : at + LENGTH + 1][None] for at in starts]
        sums = [twin.evaluate(piece[:, :-1], target_ids(piece[:, 1:]))[0] for piece in pieces]
        mean = evaluate(twin.engine, text, plain, 0)["valid_loss"]
        differences.append(difference(f"{twin.backend.label}'s loss", sum(sums) / (len(text) - 1), mean))
    return judge(11, "evaluation windows, each token once", dtype, differences, "logits")
