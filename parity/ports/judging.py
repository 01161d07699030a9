"""The lines of a comparison of two recordings, the same whether both sides ran in one process or on two machines."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from parity.arrays import Arrays
from parity.check.result import Result, identical, judge
from parity.curves import judge_curves
from parity.difference import Difference, Kind, compare_all, difference, tolerance
from parity.ports.recording import FACTORS, Recording, narrowest
from parity.ports.side import BITS
from parity.ports.translation import SUM
from parity.ports.trees import named_leaves

__all__ = [
    "KNOWN",
    "RESPONSES",
    "ROUNDING_32",
    "ZERO",
    "gradient_differences",
    "judged",
    "loss_difference",
    "noted",
    "rounding",
    "same_start",
]

ZERO = "zero within rounding"
"""Note of a gradient that is zero in exact arithmetic."""
ROUNDINGS = 16
"""How many times larger such a gradient may be than its change when the weights move by one unit in the last place."""
RESPONSES = 4.0
"""How many times larger a difference may be than the rounding of the side that rounds more."""
ROUNDING_32 = 1e-6
"""Relative difference that is rounding in float32 wherever it is seen: eight units in the last place."""
LAST_PLACE = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Type of 16 bits -> largest relative distance of two values next to each other."""
BLIND = 0.5
"""Rounding, relative to the largest value, beyond which a comparison in 16 bits says nothing."""
MAX_NAMED = 3
"""Number of operations in a narrower type that are named."""
KNOWN = {
    "AdamW": "weight_decay is 1e-4 by default in optax.adamw, 1e-2 in torch",
    "RMSprop": "optax.rmsprop has decay 0.9 and adds eps inside the root, torch has alpha 0.99 and adds it outside",
    "Adagrad": "optax.adagrad starts its sums at 0.1 and adds eps inside the root, torch at 0 and outside",
    "SGD": "torch's first momentum is the gradient itself, also with dampening, which optax does not have",
    "NAdam": "torch's momentum has a schedule of its own",
}
"""Class of a torch optimizer -> a usual cause of a difference."""


def judged(one: Recording, other: Recording) -> list[Result]:
    """Return a line for each kind of values.

    Args:
        one: of the reference.
        other: of the port, by the same names.
    """
    dtype = min(one.dtype, other.dtype, key=BITS.__getitem__)
    results = _values(one, other, dtype, dtype)
    narrow = one.narrow | other.narrow
    if narrow and not all(result.ok for result in results):
        kind = narrowest(narrow, dtype)
        results = _values(one, other, dtype, kind)
        more = f" and {len(narrow) - MAX_NAMED} more" if len(narrow) > MAX_NAMED else ""
        results[0] = noted(results[0], f"compared as {kind}, since {'; '.join([*narrow][:MAX_NAMED])}{more}")
    notes = [*one.notes, *other.notes]
    results = [noted(r, "; ".join(notes)) if r.what == "outputs" and notes else r for r in results]
    return results + _updates(one, other, dtype) + _curves(one, other, dtype, narrowest(narrow, dtype))


def same_start(one: Recording, other: Recording) -> list[Result]:
    """Return the lines of inputs and weights, which both sides must have computed from."""
    lines = []
    for rung, what, left, right in (
        (1, "inputs", named_leaves(one.args, "input"), named_leaves(other.args, "input")),
        (2, "weights", one.weights, other.weights),
    ):
        exact = one.dtype == other.dtype
        differences = [(identical if exact else difference)(n, left[n], right[n]) for n in left if n in right]
        if differences:
            lines.append(judge(rung, f"{len(differences)} {what}", one.dtype, differences, 0.0 if exact else None))
    return lines


def _values(one: Recording, other: Recording, dtype: str, kind: str) -> list[Result]:
    """Return the lines of activations, outputs, statistics, loss and gradients, with the tolerances of a type.

    Args:
        one: of the reference.
        other: of the port.
        dtype: that both were run in.
        kind: narrowest type of what they computed.
    """
    noise = rounding(one, other)

    def line(
        rung: int, what: str, section: str, limit: Kind, differences: Sequence[Difference], note: str = ""
    ) -> Result:
        allowed = tolerance(limit, kind)
        if noise and (allowed is None or kind != dtype):
            return _within_noise(rung, what, dtype, differences, section, noise, kind, allowed, note)
        return judge(rung, what, dtype, differences, allowed, note)

    results = [line(4, "outputs", "outputs", "logits", compare_all(one.outputs, other.outputs))]
    if statistics := _common(one.state, other.state):
        results.append(line(4, f"{len(statistics)} statistics after the call", "state", "logits", statistics))
    results.append(line(5, "loss", "", "logits", [loss_difference(one, other)]))
    if gradients := gradient_differences(one, other):
        zeros = [d.name for d in gradients if d.note == ZERO]
        note = f"{ZERO}: {', '.join(zeros)}" if zeros else ""
        results.append(line(5, f"gradients of {len(gradients)} parameters", "grads", "gradients", gradients, note))
    if one.input_grads and other.input_grads:
        inputs = compare_all(one.input_grads, other.input_grads)
        results.append(line(5, f"gradients of {len(inputs)} inputs", "input_grads", "gradients", inputs))
    activations = _common(one.activations, other.activations)
    if one.framework != other.framework and all(result.ok for result in results):
        # Submodules that were matched by their parameters need not return the same: one may add a residual.
        activations = [
            d for d in activations if d.name not in other.modules or line(3, "", "activations", "logits", [d]).ok
        ]
    if activations:
        results.insert(0, line(3, f"{len(activations)} activations", "activations", "logits", activations))
    return results


def gradient_differences(one: Recording, other: Recording) -> list[Difference]:
    """Return the differences of gradients that both sides have; those that are zero in exact arithmetic are noted."""
    ours, theirs = (one.grads, other.grads) if one.framework == other.framework else _grouped(one.grads, other.grads)
    frozen = {*one.frozen, *other.frozen}  # stop_gradient on one side, and no requires_grad on the other
    both = [name for name in frozen if name in ours and name in theirs]
    stopped = {name for name in both if not ours[name].any() or not theirs[name].any()}
    ours, theirs = ({n: g for n, g in grads.items() if n not in stopped} for grads in (ours, theirs))
    differences = compare_all(ours, theirs)
    narrow = narrowest(one.narrow | other.narrow, min(one.dtype, other.dtype, key=BITS.__getitem__))
    if BITS[narrow] == 16:  # all is rounded so much there that no gradient can be called zero
        return differences
    return _without_zeros(differences, ours, theirs, rounding(one, other))


def loss_difference(one: Recording, other: Recording) -> Difference:
    """Return the difference of the losses; of sums with random weights, relative to the size of their terms."""
    d = difference("loss", one.loss, other.loss)
    size = max(one.loss_size, other.loss_size, abs(one.loss), abs(other.loss))
    return replace(d, max_rel=d.max_abs / size) if 0 < d.max_abs < np.inf and size < np.inf else d


def rounding(one: Recording, other: Recording) -> dict[str, float]:
    """Return the rounding of the side that rounds more, as `Recording.noise`."""
    return {name: max(one.noise.get(name, 0.0), other.noise.get(name, 0.0)) for name in one.noise | other.noise}


def _common(ours: Arrays, theirs: Arrays) -> list[Difference]:
    """Return the differences of arrays that both sides have."""
    return [difference(name, ours[name], theirs[name]) for name in ours if name in theirs]


def _grouped(grads: Arrays, others: Arrays) -> tuple[Arrays, Arrays]:
    """Return the gradients that have a counterpart; of tied weights, their sum on both sides."""
    ours: Arrays = {}
    for name in others:
        if name in grads:
            ours[name] = grads[name]
        elif SUM in name and set(name.split(SUM)) <= grads.keys():
            ours[name] = np.sum([grads[part] for part in name.split(SUM)], axis=0)
    return ours, others


def _within_noise(
    rung: int,
    what: str,
    dtype: str,
    differences: Sequence[Difference],
    section: str,
    noise: dict[str, float],
    kind: str,
    allowed: float | None = None,
    note: str = "",
) -> Result:
    """Return a line of values that are rounded more than `dtype` says, each held against its own rounding.

    Args:
        rung: number of the rung.
        what: what was compared.
        dtype: that both were run in.
        differences: at least one; the first that is too large is named.
        section: of `noise`; empty where the names of the differences have it.
        noise: rounding of each value, as `Recording.noise`.
        kind: narrowest type of what was computed.
        allowed: largest relative difference, whatever the rounding; None in 16 bits.
        note: a remark for the table.
    """

    def within(d: Difference) -> bool:
        bound = RESPONSES * _largest(noise, section, d.name)
        if allowed is None:
            return d.max_abs <= bound or d.within(LAST_PLACE.get(kind, 0.0))
        return d.within(allowed) and (d.max_abs <= bound or d.within(ROUNDING_32))

    first = next((d for d in differences if not within(d)), None)
    blind = [d.name for d in differences if allowed is None and d.max_rel > BLIND and within(d)]
    if blind:
        note = "; ".join(filter(None, [f"rounding is as large as the values, and tells nothing: {blind[0]}", note]))
    line = judge(rung, what, dtype, differences, None, note)
    if first is not None and len(differences) > 1:
        line = noted(line, f"first divergent: {first.name}")
    return replace(
        line,
        verdict="FAIL" if first else "reported" if blind else "pass",
        first=first.name if first else "",
        where=first.place if first else line.where,
        limit=f"{RESPONSES:.0f} × rounding" + ("" if allowed is None else f", {allowed:.0e} rel"),
    )


def _largest(noise: dict[str, float], section: str, name: str) -> float:
    key = f"{section}/{name}" if section else name
    return noise.get(key, max((noise.get(f"{section}/{part}", 0.0) for part in name.split(SUM)), default=0.0))


def _without_zeros(
    differences: list[Difference], ours: Arrays, theirs: Arrays, noise: dict[str, float]
) -> list[Difference]:
    """Return the differences, without those of gradients that are zero in exact arithmetic.

    Such a gradient, of a key's bias before a softmax or of a bias before a norm over the batch, is nothing but rounding
    in either framework: it is no larger than what it changes by when the weights move by one unit in the last place.

    Args:
        differences: of all gradients.
        ours: gradients of the reference.
        theirs: gradients of the port.
        noise: what gradients change by, as `Recording.noise`.
    """

    def is_zero(name: str) -> bool:
        largest = max(float(np.abs(grads[name]).max(initial=0)) for grads in (ours, theirs))
        return largest <= ROUNDINGS * _largest(noise, "grads", name)

    return [
        replace(d, max_rel=0.0, note=ZERO) if d.max_abs > 0 and d.where is not None and is_zero(d.name) else d
        for d in differences
    ]


def _updates(one: Recording, other: Recording, dtype: str) -> list[Result]:
    """Return the lines of the parameters and the moments after each update."""
    noise = rounding(one, other)
    found: dict[str, list[Difference]] = {"parameters": [], "moments": []}
    usual: dict[str, float] = {}

    def add(what: str, kind: str, label: str, number: int, ours: Arrays, theirs: Arrays) -> None:
        for d in _common(ours, theirs):
            named = replace(d, name=f"{label.format(d.name)} (update {number + 1})")
            found[what].append(named)
            usual[named.name] = noise.get(f"updates/{number}/{kind}/{d.name}", 0.0)

    for number, (left, right) in enumerate(zip(one.updates, other.updates, strict=False)):
        add("parameters", "params", "{}", number, left.params, right.params)
        for kind, values in left.moments.items():
            add("moments", kind, f"{kind} of {{}}", number, values, right.moments.get(kind, {}))
    results = []
    for what, differences in found.items():
        if differences:
            title = f"{what}, {len(FACTORS)} updates"
            if BITS[dtype] == 16:
                line = _within_noise(6, title, dtype, differences, "", usual, dtype)
            else:
                line = judge(6, title, dtype, differences, tolerance("update", dtype))
            if alone := [name for name in one.updates[0].params if name not in other.updates[0].params]:
                line = noted(
                    line, f"not compared: {', '.join(alone)}, which are several on one side and one on the other"
                )
            causes = [KNOWN[each.optimizer] for each in (one, other) if each.optimizer in KNOWN]
            results.append(line if line.ok or not causes else noted(line, f"a usual cause: {causes[0]}"))
    return results


def _curves(one: Recording, other: Recording, dtype: str, kind: str) -> list[Result]:
    """Return the line of the training curves, of models that compute in `kind` inside."""
    if not one.curve or not other.curve:
        return []
    if len(one.curve) != len(other.curve):
        return [judge(7, "training", dtype, [difference("steps", np.array(one.curve), np.array(other.curve))], 0.0)]
    labels = (one.framework, other.framework if other.framework != one.framework else f"{other.framework} (2)")
    losses = {label: np.array(each.curve) for label, each in zip(labels, (one, other), strict=True)}
    own = [(np.array(moved), np.array(each.curve)) for each in (one, other) for moved in each.moved_curves]
    return [replace(judge_curves("training", losses, own, kind), dtype=dtype)]


def noted(result: Result, note: str) -> Result:
    """Return a line with one more remark."""
    return replace(result, note="; ".join(filter(None, [result.note, note])))
