"""Faults of a run: its batches, repeated calls, checkpoints, execution options, evaluation."""

from dataclasses import replace
from typing import Any

import numpy as np


def first_call_off(forward: Any) -> Any:
    """The first call in a process is slightly inaccurate, as torch's first vectorised exponential was."""
    calls: list[None] = []

    def faulty(self: Any, x: Any) -> Any:
        calls.append(None)
        return forward(self, x) * (1 + 1e-9 * (len(calls) == 1))

    return faulty


def windows_twice(starts: Any) -> Any:
    """The last window of an epoch is read in place of its first one too."""

    def faulty(self: Any, epoch: int) -> np.ndarray:
        windows = starts(self, epoch).copy()
        windows[0] = windows[-1]
        return windows

    return faulty


def shifted(to_device: Any) -> Any:
    """Batches begin one token late."""
    return lambda array, device: to_device(array, device).roll(-1, -1)


def drops_moments(save_state: Any) -> Any:
    """The optimizer's state is saved as zeros."""

    def faulty(folder: Any, params: Any, optimizer: Any) -> Any:
        import torch

        counts = ("step", "count")
        return save_state(folder, params, {n: t if n in counts else torch.zeros_like(t) for n, t in optimizer.items()})

    return faulty


def zeroes_moments(restore_state: Any) -> Any:
    """The optimizer's state is restored as zeros."""

    def faulty(folder: Any, **wanted: Any) -> Any:
        import jax
        import jax.numpy as jnp

        state = restore_state(folder, **wanted)
        if "optimizer" in state:
            zeroed = jax.tree.map(lambda a: jnp.zeros_like(a) if a.ndim else a, state["optimizer"]["state"])
            state["optimizer"] = state["optimizer"] | {"state": zeroed}
        return state

    return faulty


def forgets_count(restore_state: Any) -> Any:
    """The optimizer's count of updates is restored as zero."""

    def faulty(folder: Any, **wanted: Any) -> None:
        restore_state(folder, **wanted)
        if "count" in wanted.get("optimizer", {}):
            wanted["optimizer"]["count"].zero_()

    return faulty


def rounds_to_float32(read_state: Any) -> Any:
    """A conversion passes through float32."""

    def faulty(*args: Any, **kwargs: Any) -> Any:
        state = read_state(*args, **kwargs)
        params = {name: value.astype(np.float32).astype(value.dtype) for name, value in state.params.items()}
        return replace(state, params=params)

    return faulty


def rolled_layers(scanned: Any) -> Any:
    """The scan over the stacked layers begins at the second layer."""

    def faulty(step: Any, blocks: Any, x: Any, keys: Any, weights: Any = None) -> Any:
        import jax
        import jax.numpy as jnp

        return scanned(step, blocks, x, keys, jax.tree.map(lambda w: jnp.roll(w, 1, 0), weights))

    return faulty


def part_lost(with_gradients: Any) -> Any:
    """The gradients of one core's part of the batch are halved."""

    def faulty(*args: Any) -> Any:
        loss, grads = with_gradients(*args)
        return loss, tuple(g / 2 for g in grads)

    return faulty


def half_branch_gradient(checkpoint: Any) -> Any:
    """The gradients of a recomputed block's branches are halved."""

    def faulty(step: Any, x: Any, **options: Any) -> Any:
        branches = checkpoint(step, x, **options) - x
        return x + branches.detach() + (branches - branches.detach()) / 2

    return faulty


def drops_in_evaluation(eval_step: Any) -> Any:
    """Dropout stays on in evaluation."""

    def faulty(model: Any, tokens: Any, targets: Any, documents: Any = None) -> Any:
        import torch

        from torchlm.loss import IGNORED, loss_sum

        with torch.inference_mode():
            return loss_sum(model.train(), tokens, targets, "native", documents), torch.sum(targets != IGNORED)

    return faulty


def misses_last_window(eval_windows: Any) -> Any:
    """Evaluation leaves out the end of a text that is no whole number of windows."""

    def faulty(tokens: Any, *, seq_len: int, **rest: Any) -> Any:
        end = (len(tokens) - 1) // seq_len * seq_len + 1
        return eval_windows(replace(tokens, ids=tokens.ids[:end]), seq_len=seq_len, **rest)

    return faulty


def frozen_keys(attention_in_turns: Any) -> Any:
    """Attention in a long sequence passes no gradient to its keys."""

    def faulty(q: Any, k: Any, *rest: Any) -> Any:
        import jax

        return attention_in_turns(q, jax.lax.stop_gradient(k), *rest)

    return faulty


def takes_all_for_finite(update_is_finite: Any) -> Any:
    """No update is skipped."""

    def faulty(loss: Any, grad_norm: Any) -> Any:
        import jax.numpy as jnp

        return update_is_finite(jnp.zeros_like(loss), jnp.zeros_like(grad_norm))

    return faulty


def looks_at_loss_only(update_is_finite: Any) -> Any:
    """An update whose gradient alone is not finite is not skipped."""
    return lambda loss, grad_norm: update_is_finite(loss, loss)
