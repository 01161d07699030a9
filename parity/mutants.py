"""Deliberate faults that the ladder must catch: the check's proof that it can fail.

Each fault patches the real modules of one twin, in the way in which ports really go wrong, and names the rung on which
it must be caught. They act on a small model of odd sizes in float64, whose weights are scaled up and whose norms are
not all one, so that nothing hides: on fresh weights a norm before its weight is the same as one after. The healthy
twin is asked once; a faulty one is made anew for each fault, so that no compiled function outlives its patch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import numpy as np

from lmcore.config import Config, ModelConfig, OptimConfig, TrainConfig
from parity.ladder import Options, climb
from parity.twins import Arrays, Pair, Twin, check_config, framework_settings, make_pair

__all__ = ["MUTANTS", "Caught", "Mutant", "odd_config", "self_test", "shaken"]

STEPS = 8


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    twin: Literal["jax", "torch"]
    """Which of them has it."""
    rung: int
    """Where it must be caught."""
    plant: Callable[[], AbstractContextManager[Any]]
    """Patches that twin for as long as the context is open."""
    fresh: bool = False
    """Whether it is a fault of the initial weights, which shaken ones would cover."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What the model is trained by."""


@dataclass(frozen=True)
class Caught:
    """What became of a fault."""

    mutant: Mutant
    rung: int | None
    """Where it was caught; None if it slipped through."""
    where: str

    @property
    def ok(self) -> bool:
        """Whether it was caught where it should be, not later."""
        return self.rung is not None and self.rung <= self.mutant.rung


def odd_config() -> Config:
    """A small model of odd sizes, whose queries and outputs are square so that a missing transpose fits."""
    model = ModelConfig(vocab_size=61, dim=36, n_layers=3, n_heads=6, n_kv_heads=3, ffn_dim=44, max_seq_len=37)
    optim = OptimConfig(lr=1e-2, warmup_steps=3, weight_decay=0.3, beta2=0.97, clip=0.7)
    config = Config(model=model, optim=optim, train=TrainConfig(steps=20, batch_size=4, grad_accum=2, seq_len=19))
    return check_config(config, "float64")


def shaken(params: Arrays, seed: int = 0, scale: float = 8.0) -> Arrays:
    """Weights scaled up, norms away from one, biases from zero: nothing is too small to show."""
    rng = np.random.default_rng(seed)
    return {
        name: (value * scale if value.ndim > 1 else value + rng.uniform(-0.5, 0.5, value.shape)).astype(value.dtype)
        for name, value in params.items()
    }


def self_test(mutants: Iterable[Mutant]) -> Iterator[Caught]:
    """Plant each fault in turn and climb until something fails.

    Raises:
        AssertionError: the healthy twins themselves differ.
    """
    with framework_settings():
        options, healthy = Options(steps=STEPS), {}
        for mutant in mutants:
            kind = mutant.optimizer, mutant.fresh
            if kind not in healthy:
                healthy[kind] = _healthy(mutant, options)
            yield _try(mutant, healthy[kind], options)


def _healthy(mutant: Mutant, options: Options) -> Pair:
    """Twins for a fault to be planted in, seen to be the same up to the rungs where such faults are caught."""
    config = odd_config()
    config = replace(config, optim=replace(config.optim, name=mutant.optimizer))
    tokens = np.random.default_rng(0).integers(config.model.vocab_size, size=5000).astype(np.int32)
    pair = make_pair(config, tokens)
    if not mutant.fresh:
        pair = Pair(pair.jax, pair.torch, config, shaken(pair.start), tokens, False)
    rungs = range(1, 3) if mutant.fresh else range(1, 9)
    failed = next((r for r in climb(pair, rungs, options) if not r.ok), None)
    assert failed is None, f"the healthy twins differ: {failed}"
    return pair


def _try(mutant: Mutant, healthy: Pair, options: Options) -> Caught:
    from parity.jax_twin import JaxTwin
    from parity.torch_twin import TorchTwin

    with mutant.plant():
        make: Any = JaxTwin if mutant.twin == "jax" else TorchTwin
        device = replace(healthy.config, train=replace(healthy.config.train, device="cpu"))
        sides: dict[str, Twin] = {"jax": healthy.jax, "torch": healthy.torch} | {mutant.twin: make(device)}
        pair = Pair(sides["jax"], sides["torch"], healthy.config, healthy.start, healthy.tokens, healthy.fresh)
        pair.kept = healthy.kept | {mutant.twin: {}}
        failed = next((r for r in climb(pair, range(1, 9), options, stop=True) if not r.ok), None)
    if failed is None:
        return Caught(mutant, None, "slipped through")
    return Caught(mutant, failed.rung, f"{failed.what}: {failed.where}")


def _patch(target: str, make: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Replace what the dotted name holds by what `make` makes of it."""

    def plant() -> AbstractContextManager[Any]:
        getter, name = mock._get_target(target)  # type: ignore[attr-defined]
        return mock.patch(target, make(getattr(getter(), name)))

    return plant


# Faults of the model.


def _interleaved(rotate: Any) -> Any:
    """Feature 2i turns with 2i + 1, as in GPT-J, instead of i with i + H/2."""

    def faulty(x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        apart = np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)])
        return rotate(x[..., apart], cos, sin)[..., np.argsort(apart)]

    return faulty


def _changed(**changes: Any) -> Callable[[Any], Any]:
    """A function of a config that sees other values in it."""
    return lambda function: lambda config, *rest: function(replace(config, **changes), *rest)


def _eps_times_ten(init: Any) -> Any:
    def faulty(self: Any, dim: int, eps: float) -> None:
        init(self, dim, eps * 10)

    return faulty


def _weight_before_norm(forward: Any) -> Any:
    def faulty(self: Any, x: Any) -> Any:
        return forward(self, x * self.weight) / self.weight

    return faulty


def _swapped(forward: Any) -> Any:
    def faulty(self: Any, x: Any) -> Any:
        gate, up = self.gate_proj, self.up_proj
        with mock.patch.dict(self._modules, {"gate_proj": up, "up_proj": gate}):
            return forward(self, x)

    return faulty


def _tiled_heads(attend: Any) -> Any:
    """Key head n mod K for query head n, instead of n // G."""

    def faulty(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        n_heads, n_kv_heads = q.shape[2], k.shape[2]
        order = np.arange(n_heads).reshape(-1, n_kv_heads).T.ravel()
        return attend(q[:, :, order], k, v, **rest)[:, :, np.argsort(order)]

    return faulty


class _Math:
    """`math` for a function that forgets the root."""

    inf = float("inf")

    @staticmethod
    def sqrt(x: float) -> float:
        return x


def _sees_next(attend: Any) -> Any:
    """Each query sees the key after its own."""

    def faulty(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        import torch

        from torchlm.attention import attention, by_head

        length = q.shape[1]
        return attention(q, by_head(k), by_head(v), torch.ones(1, length, length, dtype=torch.bool).tril(1))

    return faulty


def _no_residual(forward: Any) -> Any:
    def faulty(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, x, *args, **kwargs) - x

    return faulty


def _gelu(silu: Any) -> Any:
    import torch

    return torch.nn.functional.gelu


def _rounded(function: Any) -> Any:
    """A float32 island in a float64 model."""

    def faulty(x: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x.float(), *args, **kwargs).to(x.dtype)

    return faulty


def _no_transpose(convert: Any) -> Any:
    """The table forgets to turn one square kernel, in both directions."""

    def faulty(arrays: Arrays, config: Any, source: str, target: str) -> Arrays:
        found = convert(arrays, config, source, target)
        names = [name for name in found if name.endswith(("self_attn.o_proj.kernel", "self_attn.o_proj.weight"))]
        turned = {name: np.ascontiguousarray(found[name].T) for name in names} if source != target else {}
        return found | turned

    return faulty


# Faults of loss and gradient.


def _mean_of_means(total: Any) -> Any:
    """The mean over rows of each row's mean, made a sum again: right only where all rows have as many targets."""

    def faulty(model: Any, tokens: Any, targets: Any, key: Any = None) -> Any:
        means = [total(model, x[None], y[None], key) / (y != -1).sum() for x, y in zip(tokens, targets)]
        return sum(means) / len(means) * (targets != -1).sum()

    return faulty


def _counts_ignored(cross_entropy: Any) -> Any:
    return lambda logits, targets: cross_entropy(logits, targets.clamp_min(0))


def _untied(head: Any) -> Any:
    """The head is a copy of the embedding: the same logits, but no gradient."""
    return property(lambda self: head.fget(self).detach().clone())


def _by_micro_batch(train_step: Any) -> Any:
    """Divides by the targets of one micro-batch instead of all."""

    def faulty(config: Any, state: Any, batch: Any, lr: float, loss_sum: Any) -> Any:
        return train_step(config, state, batch, lr, lambda *args: len(batch) * loss_sum(*args))

    return faulty


# Faults of the optimizer.


def _per_tensor(clip: Any) -> Any:
    def faulty(parameters: Any, max_norm: float) -> Any:
        return sum(clip([p], max_norm) ** 2 for p in parameters) ** 0.5

    return faulty


def _no_clip_eps(clip: Any) -> Any:
    def faulty(grads: Any, max_norm: float) -> Any:
        import jax
        import jax.numpy as jnp

        norm = clip(grads, 0.0)[1]
        return jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / norm), grads), norm

    return faulty


def _decays_all(mask: Any) -> Any:
    return lambda params: dict.fromkeys(params, True)


def _coupled(adamw: Any) -> Any:
    """Decay added to the gradient, as in Adam with L2."""

    def faulty(*args: Any, **kwargs: Any) -> Any:
        optimizer = adamw(*args, **kwargs)
        for group in optimizer.param_groups:
            group["decoupled_weight_decay"] = False
        return optimizer

    return faulty


def _betas_swapped(scale_by_adam: Any) -> Any:
    return lambda b1, b2, eps: scale_by_adam(b2, b1, eps)


def _eps_inside(scale_by_adam: Any) -> Any:
    return lambda b1, b2, eps: scale_by_adam(b1, b2, 0.0, eps)


def _uncorrected(correction: Any) -> Any:
    return lambda moment, decay, count: moment


def _without_nesterov(muon: Any) -> Any:
    return lambda *args, **kwargs: muon(*args, **kwargs, nesterov=False)


def _late_warmup(apply_updates: Any) -> Any:
    """Each update takes the learning rate of the one before it, and the first takes zero."""
    last = [0.0]

    def faulty(optimizer: Any, lr: float, scaler: Any = None) -> None:
        apply_updates(optimizer, last[0], scaler)
        last[0] = lr

    return faulty


def _piles_up(zero_grad: Any) -> Any:
    return lambda self, set_to_none=True: None


# Faults of data and decoding.


def _shifted(to_device: Any) -> Any:
    """Batches begin one token late."""
    return lambda array, device: to_device(array, device).roll(-1, -1)


def _unscaled_outputs(initial_weight: Any) -> Any:
    """Projections onto the residual stream with the std of the others."""
    return lambda seed, name, shape, model: (
        initial_weight(seed, name, shape, model)
        * np.float32((2 * model.n_layers) ** 0.5 if "o_proj" in name or "down_proj" in name else 1)
    )


def _blind_to_itself(cache_mask: Any) -> Any:
    """A decoded token does not see its own key."""
    return lambda columns, pads, size: cache_mask(columns - int(len(columns) == 1), pads, size)


def _late_positions(rope: Any) -> Any:
    """A decoded token turns by the position after its own."""
    return lambda self, positions: rope(self, positions + int(positions.shape[1] == 1))


def _sees_padding(cache_mask: Any) -> Any:
    return lambda columns, pads, size: cache_mask(columns, pads * 0, size)


MUTANTS = (
    Mutant("batches shifted by one", "torch", 1, _patch("torchlm.engine.to_device", _shifted)),
    Mutant("residual init unscaled", "torch", 2, _patch("torchlm.engine.initial_weight", _unscaled_outputs), True),
    Mutant("missing transpose", "torch", 3, _patch("parity.mapping.convert_names", _no_transpose)),
    Mutant("RoPE interleaved", "torch", 3, _patch("torchlm.model.rotate", _interleaved)),
    Mutant("RoPE theta", "jax", 3, _patch("jaxlm.model.rope_tables", _changed(rope_theta=500000.0))),
    Mutant("norm eps × 10", "torch", 3, _patch("torchlm.model.RMSNorm.__init__", _eps_times_ten)),
    Mutant("norm after weight", "torch", 3, _patch("torchlm.model.RMSNorm.forward", _weight_before_norm)),
    Mutant("gate and up swapped", "torch", 3, _patch("torchlm.model.SwiGLU.forward", _swapped)),
    Mutant("KV heads tiled", "torch", 3, _patch("torchlm.model.causal_attention", _tiled_heads)),
    Mutant("KV heads tiled (JAX)", "jax", 3, _patch("jaxlm.model.causal_attention", _tiled_heads)),
    Mutant("softmax scale 1/H", "jax", 3, _patch("jaxlm.attention.math", lambda _: _Math)),
    Mutant("mask off by one", "torch", 3, _patch("torchlm.model.causal_attention", _sees_next)),
    Mutant("residual left out", "torch", 3, _patch("torchlm.model.Block.forward", _no_residual)),
    Mutant("GELU for SiLU", "torch", 3, _patch("torchlm.model.F.silu", _gelu)),
    Mutant("softmax in float32", "torch", 3, _patch("torchlm.attention.torch.softmax", _rounded)),
    Mutant("mean of means", "torch", 4, _patch("torchlm.engine.loss_sum", _mean_of_means)),
    Mutant("ignored targets counted", "torch", 4, _patch("torchlm.loss.cross_entropy", _counts_ignored)),
    Mutant("tied head untied", "torch", 5, _patch("torchlm.model.Decoder.head", _untied)),
    Mutant("divided by micro-batch", "torch", 5, _patch("torchlm.engine.train_step", _by_micro_batch)),
    Mutant("clip per tensor", "torch", 6, _patch("torchlm.engine.clip_by_global_norm", _per_tensor)),
    Mutant("clip without 1e-6", "jax", 6, _patch("jaxlm.engine.clip_by_global_norm", _no_clip_eps)),
    Mutant("decay on norms", "jax", 6, _patch("jaxlm.optim.decay_mask", _decays_all)),
    Mutant("decay in the gradient", "torch", 6, _patch("torchlm.optim.torch.optim.AdamW", _coupled)),
    Mutant("no bias correction", "jax", 6, _patch("optax.tree.bias_correction", _uncorrected)),
    Mutant("betas swapped", "jax", 6, _patch("optax.scale_by_adam", _betas_swapped)),
    Mutant("eps inside the root", "jax", 6, _patch("optax.scale_by_adam", _eps_inside)),
    Mutant("Muon without Nesterov", "torch", 6, _patch("torchlm.optim._Muon", _without_nesterov), optimizer="muon"),
    Mutant(
        "Muon in bfloat16", "torch", 6, _patch("torchlm.optim._NotInBfloat16", lambda _: nullcontext), optimizer="muon"
    ),
    Mutant("warmup off by one", "torch", 6, _patch("torchlm.engine.apply_updates", _late_warmup)),
    Mutant("gradients pile up", "torch", 7, _patch("torch.optim.AdamW.zero_grad", _piles_up)),
    Mutant("cache misses last column", "torch", 8, _patch("torchlm.model.cache_mask", _blind_to_itself)),
    Mutant("positions late in decoding", "torch", 8, _patch("torchlm.model.Decoder.rope", _late_positions)),
    Mutant("padding seen in decoding", "jax", 8, _patch("jaxlm.model.cache_mask", _sees_padding)),
)
"""Every fault, by the rung on which it must be caught."""
