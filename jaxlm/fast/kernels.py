"""Attention by the kernels of accelerators, which keep no T × T tensor: cuDNN's on NVIDIA GPUs, JAX's own on TPUs.

Which of them runs is said by the mesh that is set, so a program for an accelerator can be traced where there is none.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.sharding import platform

__all__ = ["cudnn", "kernel_attention", "splash"]

LANES = 128
"""Lanes of a TPU's vector unit: sequences must be a multiple."""
BLOCKS = (512, 256, LANES)
"""Queries and keys in a block of the TPU's kernel: the largest that divides the length."""


def kernel_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    documents: Int[Array, "B T"] | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Float[Array, "B T N H"] | None:
    """Return causal attention by the kernel for the mesh's platform; None where there is none for these arguments.

    Args:
        q: queries.
        k: keys.
        v: values.
        documents: position at which each token's document begins; None where a sequence is one document.
        window: number of positions that each attends to, with its own the last; 0 for all.
        softcap: of the scores, as in `model.attention_softcap`; 0 for none.
    """
    _, length, _, head_dim = q.shape
    if q.dtype.itemsize != 2:
        return None
    if platform() == "gpu" and head_dim % 8 == 0 and head_dim <= 128 and documents is None and softcap == 0:
        return cudnn(q, k, v, window)
    if platform() == "tpu" and length % LANES == 0:
        return splash(q, k, v, documents, window, softcap)
    return None


def cudnn(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], window: int = 0
) -> Float[Array, "B T N H"]:
    """Return causal attention by cuDNN's flash attention.

    Args:
        q: queries.
        k: keys.
        v: values.
        window: number of positions that each attends to, with its own the last; 0 for all.
    """
    before = (window - 1, 0) if window else None
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=before, implementation="cudnn")


def splash(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    documents: Int[Array, "B T"] | None = None,
    window: int = 0,
    softcap: float = 0.0,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Return causal attention by JAX's splash attention: a flash attention for TPUs that skips masked blocks.

    The kernel takes no scale, so the queries are scaled before, and rounded again where √H is no power of two.

    Args:
        q: queries.
        k: keys.
        v: values.
        documents: position at which each token's document begins; None where a sequence is one document.
        window: number of positions that each attends to, with its own the last; 0 for all.
        softcap: of the scores, as in `model.attention_softcap`; 0 for none.
        interpret: run the kernel step by step, on any device, to test it.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as tpu  # takes a second to import

    _, length, n_heads, head_dim = q.shape
    shape, size = (length, length), next(size for size in BLOCKS if length % size == 0)
    mask = tpu.LocalMask(shape, (window - 1, 0), 0) if window else tpu.CausalMask(shape)
    attend = tpu.make_splash_mha_single_device(
        tpu.MultiHeadMask([mask] * n_heads),
        block_sizes=tpu.BlockSizes(
            block_q=size,
            block_kv=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_kv_dkv_compute=size,
            block_q_dq=size,
            block_kv_dq=size,
        ),
        attn_logits_soft_cap=softcap or None,
        interpret=interpret,
    )
    scaled = (q.astype(jnp.float32) / math.sqrt(head_dim)).astype(q.dtype)
    segments = None if documents is None else tpu.SegmentIds(documents, documents)
    return jax.vmap(attend)(*(x.swapaxes(1, 2) for x in (scaled, k, v)), segments).swapaxes(1, 2)
