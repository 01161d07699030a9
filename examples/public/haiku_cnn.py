"""google-deepmind/dm-haiku#120: a small CNN with Adam and a penalty on its weights. Does JAX train it differently?"""

import haiku as hk
import jax
import numpy as np
import optax
import torch
import torch.nn.functional as F
from torch import nn

from parity import compare
from parity.transforms import chain, reshape, transpose

rng = np.random.default_rng(0)
batches = [(rng.standard_normal((20, 32, 32, 3)), rng.integers(10, size=20)) for _ in range(50)]
layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
module = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10))


@hk.without_apply_rng
@hk.transform
def model(x):
    convs = [hk.Conv2D(16, 3), jax.nn.relu, hk.MaxPool(2, 2, "VALID"), hk.Conv2D(32, 3), jax.nn.relu]
    return hk.Sequential([*convs, hk.MaxPool(2, 2, "VALID"), hk.Flatten(), hk.Linear(10)])(x)


def jax_fn(params, images, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images), labels)
    return losses.mean() + 5e-4 * sum((p**2).sum() for p in jax.tree.leaves(params))


def call_module(module, images, labels):
    penalty = 5e-4 * sum((p**2).sum() for p in module.parameters())
    return F.cross_entropy(module(images.permute(0, 3, 1, 2)), labels) + penalty


names = {"conv2_d.w": ("0.weight", (3, 2, 0, 1)), "conv2_d_1.w": ("3.weight", (3, 2, 0, 1)), "conv2_d.b": "0.bias"}
names |= {"linear.w": ("7.weight", chain(reshape(8, 8, 32, 10), transpose(3, 2, 0, 1), reshape(10, 2048)))}
names |= {"conv2_d_1.b": "3.bias", "linear.b": "7.bias"}
optimizers = optax.adam(1e-3), lambda parameters: torch.optim.Adam(parameters, lr=1e-3)
given = {"names": names, "call_module": call_module, "optimizers": optimizers, "batches": batches}
print(compare(jax_fn, module, *batches[0], params=model.init(jax.random.key(0), batches[0][0]), **given))
