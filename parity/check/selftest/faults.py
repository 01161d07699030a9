"""The faults that the self-test plants: each takes what it replaces, and returns it as ports get it wrong."""

import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from parity.backends.base import Arrays


def patch(target: str, make: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Replace what the dotted name holds by what `make` makes of it."""

    def plant() -> AbstractContextManager[Any]:
        return mock.patch(target, make(pkgutil.resolve_name(target)))

    return plant


# Faults of the model.


def interleaved(rotate: Any) -> Any:
    """Feature 2i turns with 2i + 1, as in GPT-J, instead of i with i + H/2."""

    def faulty(x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        apart = np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)])
        return rotate(x[..., apart], cos, sin)[..., np.argsort(apart)]

    return faulty


def changed(**changes: Any) -> Callable[[Any], Any]:
    """A function of a config that sees other values in it."""
    return lambda function: lambda config, *rest: function(replace(config, **changes), *rest)


def eps_times_ten(init: Any) -> Any:
    def faulty(self: Any, dim: int, eps: float) -> None:
        init(self, dim, eps * 10)

    return faulty


def weight_before_norm(forward: Any) -> Any:
    def faulty(self: Any, x: Any) -> Any:
        return forward(self, x * self.weight) / self.weight

    return faulty


def swapped(forward: Any) -> Any:
    def faulty(self: Any, x: Any) -> Any:
        gate, up = self.gate_proj, self.up_proj
        with mock.patch.dict(self._modules, {"gate_proj": up, "up_proj": gate}):
            return forward(self, x)

    return faulty


def tiled_heads(attend: Any) -> Any:
    """Key head n mod K for query head n, instead of n // G."""

    def faulty(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        n_heads, n_kv_heads = q.shape[2], k.shape[2]
        order = np.arange(n_heads).reshape(-1, n_kv_heads).T.ravel()
        return attend(q[:, :, order], k, v, **rest)[:, :, np.argsort(order)]

    return faulty


class RootlessMath:
    """`math` for a function that forgets the root."""

    inf = float("inf")

    @staticmethod
    def sqrt(x: float) -> float:
        return x


def sees_next(attend: Any) -> Any:
    """Each query sees the key after its own."""

    def faulty(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        import torch

        from torchlm.attention import attention, by_head, causal_mask

        length = q.shape[1]
        return attention(q, by_head(k), by_head(v), causal_mask(torch.arange(length) + 1, length))

    return faulty


def no_residual(forward: Any) -> Any:
    def faulty(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, x, *args, **kwargs) - x

    return faulty


def gelu(activations: Any) -> Any:
    """GELU in the place of SiLU."""
    return activations | {"swiglu": activations["geglu"]}


def rounded(function: Any) -> Any:
    """A float32 island in a float64 model."""

    def faulty(x: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x.float(), *args, **kwargs).to(x.dtype)

    return faulty


def no_transpose(convert: Any) -> Any:
    """The table forgets to turn one square kernel, in both directions."""

    def faulty(arrays: Arrays, config: Any, source: str, target: str) -> Arrays:
        found = convert(arrays, config, source, target)
        names = [name for name in found if name.endswith(("self_attn.o_proj.kernel", "self_attn.o_proj.weight"))]
        turned = {name: np.ascontiguousarray(found[name].T) for name in names} if source != target else {}
        return found | turned

    return faulty


# Faults of loss and gradient.


def mean_of_means(total: Any) -> Any:
    """The mean over rows of each row's mean, made a sum again: right only where all rows have as many targets."""

    def faulty(model: Any, tokens: Any, targets: Any, key: Any = None) -> Any:
        means = [total(model, x[None], y[None], key) / (y != -1).sum() for x, y in zip(tokens, targets)]
        return sum(means) / len(means) * (targets != -1).sum()

    return faulty


def counts_ignored(cross_entropy: Any) -> Any:
    return lambda logits, targets: cross_entropy(logits, targets.clamp_min(0))


def untied(head: Any) -> Any:
    """The head is a copy of the embedding: the same logits, but no gradient."""
    return property(lambda self: head.fget(self).detach().clone())


def by_micro_batch(train_step: Any) -> Any:
    """Divides by the targets of one micro-batch instead of all."""

    def faulty(config: Any, state: Any, batch: Any, lr: float, loss_sum: Any) -> Any:
        return train_step(config, state, batch, lr, lambda *args: len(batch) * loss_sum(*args))

    return faulty


# Faults of the optimizer.


def per_tensor(clip: Any) -> Any:
    def faulty(parameters: Any, max_norm: float) -> Any:
        return sum(clip([p], max_norm) ** 2 for p in parameters) ** 0.5

    return faulty


def no_clip_eps(clip: Any) -> Any:
    def faulty(grads: Any, max_norm: float) -> Any:
        import jax
        import jax.numpy as jnp

        norm = clip(grads, 0.0)[1]
        return jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / norm), grads), norm

    return faulty


def decays_all(mask: Any) -> Any:
    return lambda params: dict.fromkeys(params, True)


def coupled(adamw: Any) -> Any:
    """Decay added to the gradient, as in Adam with L2."""

    def faulty(*args: Any, **kwargs: Any) -> Any:
        optimizer = adamw(*args, **kwargs)
        for group in optimizer.param_groups:
            group["decoupled_weight_decay"] = False
        return optimizer

    return faulty


def betas_swapped(scale_by_adam: Any) -> Any:
    return lambda b1, b2, eps: scale_by_adam(b2, b1, eps)


def eps_inside(scale_by_adam: Any) -> Any:
    return lambda b1, b2, eps: scale_by_adam(b1, b2, 0.0, eps)


def uncorrected(correction: Any) -> Any:
    return lambda moment, decay, count: moment


def without_nesterov(muon: Any) -> Any:
    return lambda *args, **kwargs: muon(*args, **kwargs, nesterov=False)


def late_warmup(apply_updates: Any) -> Any:
    """Each update takes the learning rate of the one before it, and the first takes zero."""
    last = [0.0]

    def faulty(optimizer: Any, lr: float, scaler: Any = None) -> None:
        apply_updates(optimizer, last[0], scaler)
        last[0] = lr

    return faulty


def piles_up(zero_grad: Any) -> Any:
    return lambda self, set_to_none=True: None


# Faults of data and decoding.


def shifted(to_device: Any) -> Any:
    """Batches begin one token late."""
    return lambda array, device: to_device(array, device).roll(-1, -1)


def unscaled_outputs(initial_weight: Any) -> Any:
    """Projections onto the residual stream with the std of the others."""
    return lambda seed, name, shape, model: (
        initial_weight(seed, name, shape, model)
        * np.float32((2 * model.n_layers) ** 0.5 if "o_proj" in name or "down_proj" in name else 1)
    )


def blind_to_itself(causal_mask: Any) -> Any:
    """A decoded token does not see its own key."""
    return lambda positions, size, pads: causal_mask(positions - int(len(positions) == 1), size, pads)


def late_positions(rope: Any) -> Any:
    """A decoded token turns by the position after its own."""
    return lambda self, positions: rope(self, positions + int(positions.shape[1] == 1))


def sees_padding(causal_mask: Any) -> Any:
    return lambda positions, size, pads: causal_mask(positions, size, pads * 0)


# Faults of repetition.


def first_call_off(forward: Any) -> Any:
    """The first call in a process is a little off, as torch's first vectorised exponential was."""
    calls: list[None] = []

    def faulty(self: Any, x: Any) -> Any:
        calls.append(None)
        return forward(self, x) * (1 + 1e-9 * (len(calls) == 1))

    return faulty


def windows_twice(starts: Any) -> Any:
    """The last window of an epoch is read in the place of its first one too."""

    def faulty(self: Any, epoch: int) -> np.ndarray:
        found = starts(self, epoch).copy()
        found[0] = found[-1]
        return found

    return faulty


# Faults of single steps in a run.


def faster_later(scale: float) -> Callable[[Any], Any]:
    """The learning rate is off from the sixth update on."""

    def make(apply_updates: Any) -> Any:
        def faulty(optimizer: Any, lr: float, scaler: Any = None) -> None:
            made = max(float(kept["step"]) for kept in optimizer.state.values())
            apply_updates(optimizer, lr * (scale if made >= 5 else 1), scaler)

        return faulty

    return make


def colder_later(scale: float) -> Callable[[Any], Any]:
    """Every update from the sixth on is off, in JAX."""

    def make(train_step: Any) -> Any:
        def faulty(model: Any, state: Any, batch: Any, lr: Any) -> Any:
            import jax.numpy as jnp

            return train_step(model, state, batch, jnp.where(state.step >= 5, scale, 1.0) * lr)

        return faulty

    return make


# Faults of sampling.


def other_options(change: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Any]:
    """Tokens are chosen with other options than asked for."""

    def make(choose_tokens: Any) -> Any:
        def faulty(logits: Any, uniforms: Any, options: Any) -> Any:
            return choose_tokens(logits, uniforms, replace(options, **change(options)))

        return faulty

    return make


def forgets_newer(write_tokens: Any) -> Any:
    """When the context is full, the newer half is forgotten."""
    import lmcore.generate.prompting as prompting

    class Wrong:
        def __init__(self, generator: Any):
            self.generator = generator
            self.first: np.ndarray | None = None

        def start(self, tokens: Any, pads: Any, size: int) -> Any:
            if self.first is not None:
                tokens = np.concatenate([self.first[:, : tokens.shape[1] - 1], tokens[:, -1:]], axis=1)
            self.first = np.asarray(tokens)
            return self.generator.start(tokens, pads, size)

        def has_nan(self, state: Any) -> Any:
            return self.generator.has_nan(state)

        def extend(self, state: Any, uniforms: Any) -> Any:
            return self.generator.extend(state, uniforms)

    def faulty(generator: Any, *args: Any, **kwargs: Any) -> Iterator[np.ndarray]:
        return prompting.write_tokens(Wrong(generator), *args, **kwargs)

    return faulty


# Faults of saving and restoring.


def drops_moments(save_state: Any) -> Any:
    """What the optimizer keeps is saved as zeros."""

    def faulty(folder: Any, params: Any, optimizer: Any) -> Any:
        import torch

        counts = ("step", "count")
        return save_state(folder, params, {n: t if n in counts else torch.zeros_like(t) for n, t in optimizer.items()})

    return faulty


def zeroes_moments(restore_state: Any) -> Any:
    """What the optimizer keeps is restored as zeros."""

    def faulty(folder: Any, **wanted: Any) -> Any:
        import jax
        import jax.numpy as jnp

        found = restore_state(folder, **wanted)
        if "optimizer" in found:
            zeroed = jax.tree.map(lambda a: jnp.zeros_like(a) if a.ndim else a, found["optimizer"]["state"])
            found["optimizer"] = found["optimizer"] | {"state": zeroed}
        return found

    return faulty


def forgets_count(restore_state: Any) -> Any:
    """The optimizer begins to count its updates again."""

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


def one_stop(init: Any) -> Any:
    """Only end-of-text ends a text."""

    def faulty(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.stop_ids = frozenset({self.eot_id})

    return faulty


# Faults of ways of computing.


def rolled_layers(scanned: Any) -> Any:
    """The loop over the stacked layers begins at the second."""

    def faulty(step: Any, blocks: Any, x: Any, keys: Any, weights: Any = None) -> Any:
        import jax
        import jax.numpy as jnp

        return scanned(step, blocks, x, keys, jax.tree.map(lambda w: jnp.roll(w, 1, 0), weights))

    return faulty


def part_lost(with_gradients: Any) -> Any:
    """A core's gradients count half."""

    def faulty(*args: Any) -> Any:
        loss, grads = with_gradients(*args)
        return loss, tuple(g / 2 for g in grads)

    return faulty


def half_branch_gradient(checkpoint: Any) -> Any:
    """A recomputed block has half the gradient of its branches."""

    def faulty(step: Any, x: Any, **options: Any) -> Any:
        branches = checkpoint(step, x, **options) - x
        return x + branches.detach() + (branches - branches.detach()) / 2

    return faulty


def drops_in_evaluation(eval_step: Any) -> Any:
    """Evaluation leaves dropout on."""

    def faulty(model: Any, tokens: Any, targets: Any) -> Any:
        import torch

        from torchlm.loss import IGNORED, loss_sum

        with torch.inference_mode():
            return loss_sum(model.train(), tokens, targets, "native"), torch.sum(targets != IGNORED)

    return faulty


def misses_last_window(eval_windows: Any) -> Any:
    """Evaluation leaves out the end of a text that is no whole number of windows."""

    def faulty(tokens: Any, *, seq_len: int, **rest: Any) -> Any:
        whole = (len(tokens) - 1) // seq_len * seq_len + 1
        return eval_windows(replace(tokens, ids=tokens.ids[:whole]), seq_len=seq_len, **rest)

    return faulty


def frozen_keys(attention_in_turns: Any) -> Any:
    """Attention in a long sequence passes no gradient to its keys."""

    def faulty(q: Any, k: Any, v: Any, start: int) -> Any:
        import jax

        return attention_in_turns(q, jax.lax.stop_gradient(k), v, start)

    return faulty
