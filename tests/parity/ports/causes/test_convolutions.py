"""Faults in convolutions, pooling, resizing and flattening are named."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parity.ports.causes.pairs import normal, suggested

C, K = 2, 3
X = normal(2, C, 6, 6)
PARAMS = {"kernel": normal(K, K, C, 4)}
NAMES = {"kernel": ("conv.weight", (3, 2, 0, 1))}


def last(x):
    return jnp.moveaxis(x, 1, -1)


def first(x):
    return jnp.moveaxis(x, -1, 1)


def conv(padding, stride=2, flip=False, after=lambda y: y):
    def run(params, x):
        kernel = params["kernel"][::-1, ::-1] if flip else params["kernel"]
        dims = ("NHWC", "HWIO", "NHWC")
        return first(
            after(jax.lax.conv_general_dilated(last(x), kernel, (stride,) * 2, padding, dimension_numbers=dims))
        )

    return run


class Network(nn.Module):
    def __init__(self, conv, after=lambda y: y):
        super().__init__()
        self.conv, self.after = conv, after

    def forward(self, x):
        return self.after(self.conv(x))


def torch_conv(padding=1, stride=2):
    return nn.Conv2d(C, 4, K, stride=stride, padding=padding, bias=False)


def pooled(function, padding):
    return lambda y: function(y, (2, 2), strides=(2, 2), padding=padding)


CASES = [
    ("SAME", conv("SAME"), torch_conv(), None, "padding -> SAME in conv"),
    ("SAME_LOWER", conv("SAME_LOWER"), torch_conv(0), None, "padding -> SAME_LOWER in conv"),
    ("VALID", conv("VALID"), torch_conv(), None, "padding -> VALID in conv"),
    ("flip", conv([(1, 1)] * 2, flip=True), torch_conv(), None, "kernel -> flipped in space in conv"),
    (
        "max pool",
        conv([(1, 1)] * 2, 1, after=lambda y: linen.max_pool(y, (3, 3), (2, 2), "SAME")),
        torch_conv(1, 1),
        nn.MaxPool2d(3, 2, 1),
        "padding -> SAME in after",
    ),
    (
        "average pool",
        conv([(1, 1)] * 2, 1, after=lambda y: linen.avg_pool(y, (3, 3), (3, 3), [(1, 1)] * 2, count_include_pad=False)),
        torch_conv(1, 1),
        nn.AvgPool2d(3, 3, 1),
        "count_include_pad True -> False in after",
    ),
    (
        "average pool, SAME",
        conv([(1, 1)] * 2, 1, after=lambda y: linen.avg_pool(y, (3, 3), (2, 2), "SAME", count_include_pad=False)),
        torch_conv(1, 1),
        nn.AvgPool2d(3, 2, 1),
        "padding -> SAME, not counted in after",
    ),
    (
        "ceil_mode",
        conv([(1, 1)] * 2, 1, after=lambda y: linen.max_pool(y, (4, 4), (4, 4), [(0, 2)] * 2)),
        torch_conv(1, 1),
        nn.MaxPool2d(4, 4),
        "ceil_mode False -> True in after",
    ),
    (
        "resize",
        conv([(1, 1)] * 2, 1, after=lambda y: jax.image.resize(y, (2, 12, 12, 4), "linear")),
        torch_conv(1, 1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        "align_corners True -> False in after",
    ),
    (
        "antialias",
        conv([(1, 1)] * 2, 1, after=lambda y: jax.image.resize(y, (2, 4, 4, 4), "linear")),
        torch_conv(1, 1),
        lambda y: F.interpolate(y, (4, 4), mode="bilinear"),
        "antialias False -> True in the module itself",
    ),
    (
        "nearest",
        conv([(1, 1)] * 2, 1, after=lambda y: jax.image.resize(y, (2, 4, 4, 4), "nearest")),
        torch_conv(1, 1),
        lambda y: F.interpolate(y, (4, 4)),
        "nearest -> nearest-exact in the module itself",
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "after", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_fault_of_a_convolution_is_named(ours, theirs, after, said: str):
    found = suggested(ours, PARAMS, Network(theirs, after or (lambda y: y)), NAMES, X)
    assert found, "nothing was named"
    assert found[0].startswith(f"likely: {said} ("), found


def test_the_padding_of_a_causal_convolution_is_named():
    def run(params, x):
        dims = ("NWC", "WIO", "NWC")
        return first(jax.lax.conv_general_dilated(last(x), params["kernel"], (1,), [(2, 0)], dimension_numbers=dims))

    module = Network(nn.Conv1d(C, 4, K, padding=1, bias=False))
    names = {"kernel": ("conv.weight", (2, 1, 0))}
    [said] = suggested(run, {"kernel": normal(K, C, 4)}, module, names, normal(2, C, 7))
    assert said.startswith("likely: padding -> CAUSAL in conv ("), said


def test_corners_of_a_sampled_grid_are_named():
    grid = torch.rand(2, 3, 3, 2, dtype=torch.float64) * 1.6 - 0.8

    def sample(y):  # in JAX, by hand: of corners that are the centres of the outer pixels
        at = (jnp.asarray(grid.numpy()) + 1) / 2 * 5
        samples = [
            jax.scipy.ndimage.map_coordinates(y[b, ..., c], [at[b, ..., 1], at[b, ..., 0]], 1)
            for b in range(2)
            for c in range(4)
        ]
        return jnp.moveaxis(jnp.stack(samples).reshape(2, 4, 3, 3), 1, -1)

    module = Network(torch_conv(1, 1), lambda y: F.grid_sample(y, grid, align_corners=False))
    [said] = suggested(conv([(1, 1)] * 2, 1, after=sample), PARAMS, module, NAMES, X)
    assert said.startswith("likely: align_corners False -> True in the module itself ("), said


TRANSPOSED = {"kernel": ("conv.weight", (2, 3, 0, 1))}


def transposed(params, x):
    return first(
        jax.lax.conv_transpose(last(x), params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )


def test_a_transposed_convolution_that_needs_its_kernel_flipped_is_named():
    module = Network(nn.ConvTranspose2d(C, 4, 4, stride=2, padding=1, bias=False))
    [said] = suggested(transposed, {"kernel": normal(4, 4, C, 4)}, module, TRANSPOSED, X)
    assert said.startswith("likely: kernel -> flipped in space in conv ("), said


def test_its_padding_is_named_beside():
    module = Network(nn.ConvTranspose2d(C, 4, 3, stride=2, padding=1, output_padding=1, bias=False))
    [said] = suggested(transposed, {"kernel": normal(3, 3, C, 4)}, module, TRANSPOSED, X)
    assert "kernel -> flipped in space in conv" in said, said
    assert "padding -> SAME as of jax.lax.conv_transpose in conv" in said, said


class Flattened(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.conv, self.out, self.way = torch_conv(1, 1), nn.Linear(4 * 36, 3, bias=False), way

    def forward(self, x):
        return self.out(self.way(torch.tanh(self.conv(x))))


FLAT_PARAMS = PARAMS | {"out": normal(4 * 36, 3)}
FLAT_NAMES = NAMES | {"out": ("out.weight", (1, 0))}


def flattened(params, x):
    y = jnp.tanh(last(conv("SAME", 1)(params, x)))
    return y.reshape(len(y), -1) @ params["out"]


@pytest.mark.parametrize("way", [lambda y: y.flatten(1), lambda y: y.reshape(len(y), -1), nn.Flatten()])
def test_channels_last_when_flattened_are_named(way):
    [said] = suggested(flattened, FLAT_PARAMS, Flattened(way), FLAT_NAMES, X)
    assert said.startswith("likely: flattened with channels first -> last in "), said


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (conv([(2, 0)] * 2), torch_conv()),
        (conv("SAME", after=jnp.sin), torch_conv()),
        (conv([(1, 1)] * 2, 1, after=lambda y: y + 0.1 * jnp.roll(y, 1, 1)), torch_conv(1, 1)),
    ],
    ids=["unusual padding", "sine", "roll"],
)
def test_another_convolution_is_not_named(ours, theirs, whole: bool):
    assert suggested(ours, PARAMS, Network(theirs), NAMES, X, whole=whole) == []
