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

__all__ = ["KNOWN", "ZERO", "gradient_differences", "judged", "noted", "same_start"]

ZERO = "zero within rounding"
"""Note of a gradient that is zero in exact arithmetic."""
ROUNDINGS = 16
"""How many times larger such a gradient may be than its change when the weights move by one unit in the last place."""
RESPONSES = 4.0
"""How many times larger a difference in 16 bits may be than that change: rounding happens in every operation."""
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
    noise = _noise(one, other)

    def line(
        rung: int, what: str, section: str, limit: Kind, differences: Sequence[Difference], note: str = ""
    ) -> Result:
        if tolerance(limit, kind) is None and noise:
            return _within_noise(rung, what, dtype, differences, section, noise, note)
        return judge(rung, what, dtype, differences, tolerance(limit, kind), note)

    results = [line(4, "outputs", "outputs", "logits", compare_all(one.outputs, other.outputs))]
    if statistics := _common(one.state, other.state):
        results.append(line(4, f"{len(statistics)} statistics after the call", "state", "logits", statistics))
    results.append(line(5, "loss", "", "logits", [difference("loss", one.loss, other.loss)]))
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
    return _without_zeros(compare_all(ours, theirs), ours, theirs, _noise(one, other))


def _noise(one: Recording, other: Recording) -> dict[str, float]:
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
    note: str,
) -> Result:
    """Return a line of values in 16 bits, each held against what it changes by when the weights move by one ulp."""
    beyond = [d for d in differences if not d.max_abs <= RESPONSES * _largest(noise, section, d.name)]
    line = judge(rung, what, dtype, differences, None, note)
    first = beyond[0] if beyond else None
    if first is not None and len(differences) > 1:
        line = noted(line, f"first divergent: {first.name}")
    return replace(
        line,
        verdict="FAIL" if first else "pass",
        first=first.name if first else "",
        where=first.place if first else line.where,
        limit=f"{RESPONSES:.0f} × one ulp's change",
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
    found: dict[str, list[Difference]] = {"parameters": [], "moments": []}
    for number, (left, right) in enumerate(zip(one.updates, other.updates, strict=False), 1):
        found["parameters"] += _of_update(left.params, right.params, "{}", number)
        for kind in left.moments:
            found["moments"] += _of_update(left.moments[kind], right.moments.get(kind, {}), f"{kind} of {{}}", number)
    results = []
    for what, differences in found.items():
        if differences:
            limit = tolerance("update", "float32" if BITS[dtype] == 16 else dtype)
            line = judge(6, f"{what}, {len(FACTORS)} updates", dtype, differences, limit)
            causes = [KNOWN[each.optimizer] for each in (one, other) if each.optimizer in KNOWN]
            results.append(line if line.ok or not causes else noted(line, f"a usual cause: {causes[0]}"))
    return results


def _of_update(ours: Arrays, theirs: Arrays, label: str, number: int) -> list[Difference]:
    return [replace(d, name=f"{label.format(d.name)} (update {number})") for d in _common(ours, theirs)]


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
