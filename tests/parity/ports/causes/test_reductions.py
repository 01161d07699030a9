"""Faults in losses are named: sum or mean, a mean of means, ignored targets, a factor of a half."""

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parity.ports.causes.pairs import normal, suggested

V = 4
X = normal(3, 5, 6)
PARAMS = {"w": normal(6, V)}
NAMES = {"w": ("weight", (1, 0))}
TARGETS = [[0, 1, 2, 3, 0], [1, 1, -100, -100, -100], [3, 2, 1, -100, -100]]
MASK = [[1.0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


def each(logits):
    targets = jnp.maximum(jnp.asarray(TARGETS), 0)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets) * jnp.asarray(MASK)


def per_token(out):
    targets = torch.tensor(TARGETS).clamp(min=0)
    return F.cross_entropy(out.transpose(1, 2), targets, reduction="none") * torch.tensor(MASK)


def counted(out, **options):
    return F.cross_entropy(out.transpose(1, 2), torch.tensor(TARGETS), **options)


def mean_of_means(out):
    mask = jnp.asarray(MASK)
    return (each(out).sum(-1) / mask.sum(-1)).mean()


def overall(out):
    return each(out).sum() / jnp.asarray(MASK).sum()


def torch_mean_of_means(out):
    return (per_token(out).sum(-1) / torch.tensor(MASK).sum(-1)).mean()


def squared(out):
    return optax.l2_loss(out, jnp.ones_like(out)).mean()


CASES = [
    ("mean of means by hand", overall, torch_mean_of_means, "mean of means -> mean over all"),
    (
        "mean over all by hand",
        mean_of_means,
        lambda o: per_token(o).sum() / torch.tensor(MASK).sum(),
        "mean over all -> ",
    ),
    ("mean over all", mean_of_means, counted, "mean over all targets -> mean of means"),
    ("ignored", lambda o: each(o).mean(), counted, "mean over the targets that count -> over all"),
    ("sum", overall, lambda o: counted(o, reduction="sum"), "reduction sum -> mean"),
    ("mean", lambda o: each(o).sum(), counted, "reduction mean -> sum"),
    ("half", squared, lambda o: F.mse_loss(o, torch.ones_like(o)), "loss times 0.5"),
    ("mean by hand", lambda o: (o**3).sum(), lambda o: (o**3).mean(), "mean -> sum"),
]


@pytest.mark.parametrize(("ours", "theirs", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_fault_of_a_loss_is_named(ours, theirs, said: str):
    found = suggested(
        lambda params, x: x @ params["w"], PARAMS, nn.Linear(6, V, bias=False), NAMES, X, losses=(ours, theirs)
    )
    assert len(found) == 1, found
    assert found[0].startswith(f"likely: {said}"), found
    assert "in the loss (agrees " in found[0], found


def test_the_axis_of_log_softmax_is_named():
    def ours(out):
        return (jax.nn.log_softmax(out)[..., 0] ** 2).sum()

    def theirs(out):
        return (torch.log_softmax(out, 1)[..., 0] ** 2).sum()

    [found] = suggested(
        lambda params, x: x @ params["w"], PARAMS, nn.Linear(6, V, bias=False), NAMES, X, losses=(ours, theirs)
    )
    assert found.startswith("likely: axis -2 -> -1 of log_softmax in the loss ("), found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "theirs",
    [lambda o: counted(o, label_smoothing=0.1), lambda o: counted(o * 1.1), lambda o: 0.9 * counted(o)],
)
def test_another_loss_is_not_named(theirs, whole: bool):
    found = suggested(
        lambda params, x: x @ params["w"],
        PARAMS,
        nn.Linear(6, V, bias=False),
        NAMES,
        X,
        losses=(overall, theirs),
        whole=whole,
    )
    assert found == []
