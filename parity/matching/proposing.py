"""From the parameters of two models to the rows of their mapping, and how certain each of them is."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity.matching.layouts import Layout, all_layouts, usual_layouts
from parity.matching.leaves import Leaf, cut_parts, cut_stacks, leaves_of, words_of
from parity.matching.rows import Pair, Proposal, rows_of
from parity.matching.scores import Pairing, pair
from parity.matching.values import Differing, Equal

__all__ = ["Leaves", "Proposed", "leaves", "propose"]

ALIKE = 0.2
"""Minimum cosine of the words of a certain pair."""
MARGIN = 0.35
"""Minimum lead of a certain pair over the best other one, in words, roles and numbers."""
MAX_NAMED = 2
"""Number of alternatives that a reason names."""
KNOWN_ORDER = ("in_proj_weight", "in_proj_bias", "weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
"""Fused parameters whose order of parts torch documents."""


@dataclass(frozen=True)
class Leaves:
    """Parameters of both sides, cut to correspond."""

    jax: list[Leaf]
    torch: list[Leaf]


@dataclass(frozen=True)
class Proposed:
    """Rows, and what is in none."""

    rows: list[Proposal]
    only_jax: list[str]
    only_torch: list[str]
    problems: dict[str, str]
    """Path of a JAX parameter in no row -> why."""


def leaves(
    jax: Mapping[str, np.ndarray],
    torch: Mapping[str, np.ndarray],
    buffers: Mapping[str, np.ndarray],
    tied: Mapping[str, Sequence[str]],
) -> Leaves:
    """Return the leaves of both sides.

    Args:
        jax: path of each parameter -> its array.
        torch: name of each parameter -> its array.
        buffers: the same of buffers.
        tied: name of a torch parameter -> its other names.
    """
    sides = [{name: tuple(a.shape) for name, a in side.items()} for side in (jax, torch, buffers)]
    ours, theirs = leaves_of(sides[0], {}, {}), leaves_of(sides[1], sides[2], tied)
    whole = {name for side in (jax, torch, buffers) for name, a in side.items() if a.dtype.kind in "iub"}
    ours, theirs = ([replace(leaf, whole=leaf.source in whole) for leaf in side] for side in (ours, theirs))
    ours = cut_stacks(sorted(ours, key=_natural), theirs)
    theirs = cut_stacks(theirs, ours, reverse=True)
    cut = cut_parts(theirs, ours, reverse=True)
    return Leaves(cut_parts(ours, theirs), cut)


def _natural(leaf: Leaf) -> tuple:
    """Return a key that sorts numbers as numbers, since trees of JAX are sorted by name."""
    words: list[tuple[int, str]] = []
    for part in leaf.parts:
        head = part.rstrip("0123456789")
        words += [(0, head), (int(part[len(head) :] or -1), "")]
    return tuple(words)


def propose(
    sides: Leaves,
    equal: Equal,
    by_gradient: Equal | None = None,
    proven: Collection[str] = (),
    apart: Differing | None = None,
) -> Proposed:
    """Return the rows of the best mapping.

    Args:
        sides: leaves of both.
        equal: pairs with the same values.
        by_gradient: pairs with the same gradients, under weights that no mapping changes; None if nothing ran.
        proven: paths of JAX parameters whose rows a run has shown to be right.
        apart: which pairs have gradients that differ by far; None if nothing ran, or all agrees.
    """
    jax, torch = sides.jax, sides.torch
    decided = {**(by_gradient or {}), **equal}
    known = np.zeros((len(jax), len(torch)))
    for i, k in decided:
        known[i, k] = 1
    pairing = pair(jax, torch, known)
    chosen = _layouts(jax, torch, pairing, decided)
    made: list[Pair] = []
    for i in sorted(pairing.pairs):
        k = pairing.pairs[i]
        layout, doubt = chosen[i]
        reason = _doubt(sides, pairing, i, k, decided) or doubt
        if not reason and (i, k) not in equal and apart is not None and apart(i, k, layout):
            reason = f"the gradient of {torch[k].source} is another"
        made.append(Pair(jax[i], torch[k], layout, "" if jax[i].source in proven else reason))
    made += _untied(sides, pairing, made, equal)
    complete = Counter(f"jax {leaf.source}" for leaf in jax if leaf.cuts)
    complete += Counter(f"torch {leaf.source}" for leaf in torch if leaf.cuts)
    rows, problems = rows_of(_one_layout(made), complete)
    in_rows = {name for row in rows for name in (*(f"jax {n}" for n in row.jax), *(f"torch {n}" for n in row.torch))}
    only_jax = [n for n in dict.fromkeys(leaf.source for leaf in jax) if f"jax {n}" not in in_rows]
    only_torch = [
        n for n in dict.fromkeys(leaf.source for leaf in torch if not leaf.buffer) if f"torch {n}" not in in_rows
    ]
    return Proposed(rows, only_jax, only_torch, {n: why for n in only_jax for names, why in problems if n in names})


def _layouts(
    jax: Sequence[Leaf], torch: Sequence[Leaf], pairing: Pairing, decided: Equal
) -> dict[int, tuple[Layout, str]]:
    """Return the layout of each pair, and why it is uncertain; where shapes leave a choice, as others of its kind."""
    votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    options = {}
    for i, k in pairing.pairs.items():
        usual = usual_layouts(jax[i].shape, torch[k].shape)
        found = decided.get((i, k)) or usual or all_layouts(jax[i].shape, torch[k].shape)
        found = tuple(layout for layout in found if layout in usual) or found
        options[i] = found
        if len(found) == 1:
            votes[_kind(jax[i], torch[k])][_signature(found[0])] += 1
    chosen = {}
    for i, found in options.items():
        kind = _kind(jax[i], torch[pairing.pairs[i]])
        if len(found) == 1:
            chosen[i] = (found[0], "")
            continue
        count = votes[kind]
        best = max(found, key=lambda layout: (count[_signature(layout)], _usual(layout, jax[i], found)))
        others = ", ".join(_described(layout) for layout in found if layout != best)
        like = f", as {count[_signature(best)]} of its kind" if count[_signature(best)] else ""
        chosen[i] = (best, f"its shape leaves a choice: {_described(best)}{like}; or {others}")
    return chosen


def _kind(jax: Leaf, torch: Leaf) -> tuple[str, str]:
    rank = sum(size > 1 for size in torch.shape)
    return jax.parts[-1], f"{torch.parts[-1].removesuffix('_weight')} {rank}"


def _signature(layout: Layout) -> str:
    """Return what layouts of different arrays have in common."""
    axes = [args for kind, args in layout if kind == "transpose"]
    return str(axes[0]) if axes else "identity"


def _usual(layout: Layout, leaf: Leaf, found: Sequence[Layout]) -> float:
    """Return how usual a layout is where no other array tells: tables of embeddings are not transposed."""
    [words] = words_of([leaf])
    table = leaf.parts[-1] in ("embedding", "table") or bool(words.roles & {"embed", "pos", "type"})
    plain = _signature(layout) == "identity"
    return (plain == table) - 0.01 * list(found).index(layout)


def _described(layout: Layout) -> str:
    return " and ".join(f"{kind} {args}" for kind, args in layout) or "as it is"


def _doubt(sides: Leaves, pairing: Pairing, i: int, k: int, decided: Equal) -> str:
    """Return why a pair is uncertain; nothing if it is certain."""
    jax, torch = sides.jax[i], sides.torch[k]
    same = [pair for pair in decided if i == pair[0] or k == pair[1]]
    if (i, k) in decided and len(same) == 1:
        return ""
    alternatives = [
        n for n in np.flatnonzero(pairing.possible[i]) if sides.torch[n].source != torch.source or torch.cuts
    ]
    ours, theirs = ({pair[side] for pair in decided} for side in (0, 1))  # those are another's
    alternatives = [n for n in alternatives if n != k and n not in theirs]
    rivals = [n for n in np.flatnonzero(pairing.possible[:, k]) if n != i and n not in ours]
    lead = min(
        [pairing.telling[i, k] - pairing.telling[i, n] for n in alternatives]
        + [pairing.telling[i, k] - pairing.telling[n, k] for n in rivals],
        default=np.inf,
    )
    if any(cut.kind == "part" for cut in (*jax.cuts, *torch.cuts)) and not torch.parts[-1].startswith(KNOWN_ORDER):
        return "the order of the parts of the fused one is not in its name"
    if pairing.conflicts[i, k]:
        return f"its words say something else than those of {torch.source}"
    vague = pairing.vague[i, k] and (alternatives or rivals)
    if lead >= MARGIN and pairing.alike[i, k] >= ALIKE and not vague:
        return ""
    names = [sides.torch[n].source for n in sorted(alternatives, key=lambda n: -pairing.scores[i, n])][:MAX_NAMED]
    if names:
        more = f" and {len(alternatives) - MAX_NAMED} more" if len(alternatives) > MAX_NAMED else ""
        return f"it may also be {', '.join(dict.fromkeys(names))}{more}"
    if rivals:
        return f"{torch.source} may also be {sides.jax[max(rivals, key=lambda n: pairing.scores[n, k])].source}"
    return "its shape is the only reason"


def _untied(sides: Leaves, pairing: Pairing, made: Sequence[Pair], equal: Equal) -> list[Pair]:
    """Return pairs for heads that torch keeps apart, and JAX ties to the embedding."""
    words = words_of(sides.jax)
    if any("head" in each.roles for each in words):
        return []
    taken, found = set(pairing.pairs.values()), []
    for k, (leaf, theirs) in enumerate(zip(sides.torch, words_of(sides.torch))):
        if k in taken or "head" not in theirs.roles or leaf.label or len(leaf.shape) != 2:
            continue
        for i, partner in pairing.pairs.items():
            if sides.torch[partner].shape == leaf.shape and "embed" in words[i].roles:
                layout = next(layout for jax, _, layout, _ in made if jax is sides.jax[i])
                reason = (
                    ""
                    if (i, k) in equal
                    else f"JAX has one for {leaf.source} and {sides.torch[partner].source}, it seems"
                )
                found.append(Pair(sides.jax[i], leaf, layout, reason))
                break
    return found


def _one_layout(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs, with the layout that most parts of one parameter have; further names of a tied one that differ
    are left out."""
    votes: dict[str, Counter[Layout]] = defaultdict(Counter)
    for jax, torch, layout, _ in pairs:
        for name, leaf in ((f"jax {jax.source}", jax), (f"torch {torch.source}", torch)):
            if leaf.cuts:
                votes[name][layout] += 1
    main = {torch.source: layout for _, torch, layout, _ in pairs if not torch.label}
    found = []
    for jax, torch, layout, reason in pairs:
        if torch.label and main.get(torch.source, layout) != layout:
            continue
        for name in (f"jax {jax.source}", f"torch {torch.source}"):
            if name in votes:
                best = votes[name].most_common(1)[0][0]
                if best in all_layouts(jax.shape, torch.shape):
                    layout = best
        found.append(Pair(jax, torch, layout, reason))
    return found
