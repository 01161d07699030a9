"""Rung 8, the choice of a token: from the same logits and uniform numbers, both twins choose the same token.

A token is chosen where a uniform number falls between two cumulative probabilities. Both twins compute these with
rounding, so a uniform number within rounding of a boundary may fall on either side; nothing else may differ. Which
tokens a uniform number can choose is computed here in float64, from the definition, with bounds on the rounding of the
logits and of the sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lmcore.config import SampleConfig
from lmcore.serve.slots import Sampling
from parity.backends.base import Pair, Twin
from parity.check.result import Result, judge
from parity.difference import Difference, difference

__all__ = ["OPTIONS", "choices", "per_sequence", "possible_tokens"]

OPTIONS = {
    "greedy": SampleConfig(temperature=0.0),
    "temperature 0.7": SampleConfig(temperature=0.7),
    "top_k 5": SampleConfig(temperature=1.0, top_k=5),
    "top_p 0.8": SampleConfig(temperature=1.0, top_p=0.8),
    "min_p 0.1": SampleConfig(temperature=1.0, min_p=0.1),
    "all four": SampleConfig(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02),
}
"""Each sampling option by itself, and all together."""
ROWS, GRID = 8, 256
"""Number of rows of logits, and of uniform numbers for each, evenly spread over [0, 1)."""
RANGE = 8.0
"""Difference between the largest logit and the smallest."""
SUMMED = 128
"""Number of probabilities in a partial sum, as in `inverse_cdf`: it bounds the rounding of a sum."""


@dataclass(frozen=True)
class Possible:
    """The tokens that one uniform number can choose, and its distance from the nearest boundary."""

    tokens: frozenset[int]
    rounding: float
    """Maximum error of a sum of probabilities; of a difference of logits at temperature 0."""
    distance: float
    """Distance of the uniform number from the nearest boundary; of the two largest logits at temperature 0."""


def possible_tokens(logits: np.ndarray, uniform: float, options: SampleConfig, slack: float) -> Possible:
    """Return the tokens that temperature, top-k, top-p, min-p and one uniform number can choose, by their definitions.

    Args:
        logits: of one position, V, in the dtype that the twins compute in.
        uniform: the uniform number, in [0, 1).
        options: of the draw.
        slack: maximum error of a logit.
    """
    eps, exact = float(np.finfo(logits.dtype).eps), logits.astype(np.float64)
    if options.temperature == 0:
        near = np.flatnonzero(exact >= exact.max() - 2 * slack)
        return Possible(frozenset(near.tolist()), 2 * slack, float(exact.max() - np.partition(exact, -2)[-2]))
    shifted = (exact - exact.max()) / options.temperature
    slack = slack / options.temperature + 2 * eps * float(-shifted.min())  # subtraction and division round too
    rounding = slack + eps * (SUMMED + len(exact) / SUMMED + 8)
    tokens, nearest = set(), np.inf
    for support in _supports(shifted, options, slack, rounding):
        probabilities = np.where(support, np.exp(shifted), 0.0)
        ends = np.cumsum(probabilities) / probabilities.sum()
        starts = np.concatenate([[0.0], ends[:-1]])
        inside = (probabilities > 0) & (starts - rounding <= uniform) & (uniform <= ends + rounding)
        tokens |= set(np.flatnonzero(inside).tolist())
        nearest = min(nearest, float(np.abs(ends - uniform).min()))
    return Possible(frozenset(tokens), rounding, nearest)


def _supports(shifted: np.ndarray, options: SampleConfig, slack: float, rounding: float) -> Iterator[np.ndarray]:
    """Yield the sets of tokens that the filters can keep: they differ in tokens within rounding of a threshold only."""
    certain, doubtful = np.ones(len(shifted), bool), np.zeros(len(shifted), bool)
    order = np.argsort(-shifted, kind="stable")
    if 0 < options.top_k < len(shifted):
        kth = shifted[order[options.top_k - 1]]
        certain, doubtful = shifted >= kth, np.abs(shifted - kth) <= 2 * slack
        doubtful[order[: options.top_k]] &= len(np.flatnonzero(doubtful[order[options.top_k :]])) > 0
    if options.top_p < 1:
        probabilities = np.where(certain, np.exp(shifted), 0.0)
        ranked = probabilities[order] / probabilities.sum()
        before = np.empty_like(ranked)
        first = np.searchsorted(-shifted[order], -shifted[order])  # of those that are equally likely: all or none stay
        before[order] = (np.cumsum(ranked) - ranked)[first]
        doubtful |= certain & (np.abs(before - options.top_p) <= rounding)
        certain &= before < options.top_p
    if options.min_p > 0:
        threshold = np.log(options.min_p)
        doubtful |= np.abs(shifted - threshold) <= 2 * slack + rounding
        certain &= shifted >= threshold
    yield certain
    edges = [token for token in order if doubtful[token]]
    for count in range(len(edges) + 1):
        support = certain.copy()
        support[edges[:count]], support[edges[count:]] = True, False
        if support.any():
            yield support


def choices(pair: Pair) -> Iterator[Result]:
    """Compare the tokens that both twins choose from the same logits, over a grid of uniform numbers, for each option.

    The logits are evenly spaced, and shifted a little in each row, so that some are near the threshold of every filter.
    """
    size, dtype = pair.config.model.vocab_size, pair.start[next(iter(pair.start))].dtype
    rng = np.random.default_rng(0)
    spaced = -RANGE * (np.arange(size) + np.linspace(0, 1, ROWS, endpoint=False)[:, None]) / size
    spaced[:, 0] = 0.0
    logits = np.stack([row[rng.permutation(size)] for row in spaced]).astype(dtype)
    uniforms = np.tile(((np.arange(GRID) + 0.5) / GRID).astype(np.float32), ROWS)
    repeated = np.repeat(logits, GRID, axis=0)
    cycled = [list(OPTIONS.values())[draw % len(OPTIONS)] for draw in range(len(uniforms))]
    named: dict[str, tuple[SampleConfig | Sampling, list[SampleConfig]]] = {
        name: (options, [options] * len(uniforms)) for name, options in OPTIONS.items()
    }
    for name, (options, own) in (named | {"options of each": (per_sequence(cycled), cycled)}).items():
        reference, port = pair.each(("choice", name), partial(_choose, repeated, uniforms, options))
        count = len(reference)
        unequal = np.flatnonzero(reference != port)
        compared, explained = difference("token of draw", reference, port), 0
        for draw in unequal:
            possible = possible_tokens(repeated[draw], float(uniforms[draw]), own[draw], 0.0)
            if not {int(reference[draw]), int(port[draw])} <= possible.tokens:
                compared = _at(int(draw), reference, port)
                break
            explained += 1
        note = f"{explained} of {count} draws lie within rounding of a boundary and differ" if explained else ""
        if len(unequal) == explained:
            compared = replace(compared, max_abs=0.0, max_rel=0.0)
        yield judge(8, f"choice of {count:,} tokens, {name}", pair.dtype, [compared], 0.0, note)


def per_sequence(options: Sequence[SampleConfig]) -> Sampling:
    """Return sampling options of several sequences as arrays."""
    return Sampling(*(np.array([getattr(each, name) for each in options]) for name in Sampling._fields))


def _choose(logits: np.ndarray, uniforms: np.ndarray, options: SampleConfig | Sampling, twin: Twin) -> np.ndarray:
    return twin.choose(logits, uniforms, options)


def _at(draw: int, reference: np.ndarray, port: np.ndarray) -> Difference:
    largest = difference("token of draw", reference, port)
    return replace(largest, where=(draw,), left=float(reference[draw]), right=float(port[draw]))
