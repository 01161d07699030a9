"""Which kernel is chosen for which mesh, from shapes alone; and the TPU's, interpreted, against the plain form."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, get_abstract_mesh, use_abstract_mesh

from jaxlm.attention import causal_attention as plain_attention
from jaxlm.fast import kernels
from jaxlm.fast.attention import causal_attention
from jaxlm.fast.kernels import kernel_attention, splash
from lmcore.run.mesh import AXES

DEVICES = {"gpu": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite", "cpu": "cpu"}


def mesh_of(platform: str) -> AbstractMesh:
    device = AbstractDevice(DEVICES[platform], 1 if platform == "tpu" else None, platform)
    return AbstractMesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


def drawn(dtype: type = jnp.float32, length: int = 256, head_dim: int = 32) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, length, heads, head_dim)), dtype) for heads in (4, 2, 2)]


DOCUMENTS = jnp.asarray(np.stack([np.where(np.arange(256) < 100, 0, 100), np.where(np.arange(256) < 30, 0, 30)]))


def chosen(platform: str, *given: jax.Array, **rest: Any) -> str:
    """Name of the kernel that the fast form calls; an empty string for none."""
    called = []
    named = {
        name: mock.Mock(side_effect=lambda q, *_, name=name: called.append(name) or q) for name in ("cudnn", "splash")
    }
    with use_abstract_mesh(mesh_of(platform)), mock.patch.multiple(kernels, **named):
        jax.eval_shape(lambda *given: causal_attention(*given, **rest), *given)
    return "".join(called)


@pytest.mark.parametrize(
    ("platform", "expected", "changes"),
    [
        ("gpu", "cudnn", {}),
        ("gpu", "cudnn", {"window": 70}),
        ("gpu", "", {"softcap": 30.0}),
        ("gpu", "", {"documents": DOCUMENTS}),
        ("gpu", "", {"rate": 0.1, "key": jax.random.key(0)}),
        ("tpu", "splash", {}),
        ("tpu", "splash", {"window": 70, "softcap": 30.0, "documents": DOCUMENTS}),
        ("tpu", "", {"rate": 0.1, "key": jax.random.key(0)}),
        ("cpu", "", {}),
    ],
)
def test_the_mesh_chooses_the_kernel(platform: str, expected: str, changes: dict[str, Any]) -> None:
    assert chosen(platform, *drawn(jnp.bfloat16), **changes) == expected


@pytest.mark.parametrize(
    ("platform", "given"),
    [
        ("gpu", drawn(jnp.float32)),
        ("gpu", drawn(jnp.bfloat16, head_dim=12)),
        ("gpu", drawn(jnp.bfloat16, head_dim=136)),
        ("tpu", drawn(jnp.float32)),
        ("tpu", drawn(jnp.bfloat16, length=200)),
    ],
)
def test_what_a_kernel_does_not_take_goes_without(platform: str, given: list[jax.Array]) -> None:
    assert chosen(platform, *given) == ""


def test_without_a_mesh_there_is_no_kernel() -> None:
    assert get_abstract_mesh().empty
    assert kernel_attention(*drawn(jnp.bfloat16)) is None


@pytest.mark.parametrize("window", [0, 70])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_the_kernel_of_tpus_is_the_plain_form(window: int, documents: jax.Array | None) -> None:
    """Interpreted on a CPU, in float32: values and gradients."""
    softcap = 1.5 if window else 0.0
    given, direction = drawn(), drawn()[0][::-1]
    found, expected, other = (
        (value, *transpose(direction))
        for value, transpose in (
            jax.vjp(lambda *qkv: splash(*qkv, documents, window, softcap, interpret=True), *given),
            jax.vjp(lambda *qkv: plain_attention(*qkv, 0.0, None, documents, window, softcap), *given),
            jax.vjp(lambda *qkv: plain_attention(*qkv, 0.0, None, documents, window + 100, softcap), *given),
        )
    )
    for ours, exact, wrong in zip(found, expected, other, strict=True):
        assert np.abs(ours - exact).max() <= 2e-6 * np.abs(exact).max()
        assert np.abs(ours - wrong).max() > 1e-2 * np.abs(exact).max()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerator_without_a_kernel_keeps_no_weights(platform: str) -> None:
    def largest_kept(platform: str) -> int:
        with use_abstract_mesh(mesh_of(platform)):
            kept = jax.eval_shape(lambda *given: jax.vjp(causal_attention, *given)[1], *drawn(length=300))
        return max(leaf.size for leaf in jax.tree.leaves(kept))

    assert largest_kept(platform) <= 2 * 4 * 384 * 32  # the queries, padded
    assert largest_kept("cpu") > 2 * 4 * 128 * 200  # weights of a block
