"""Deliberate faults that the ladder must catch: the check's proof that it can fail.

Each fault patches the real modules of one twin with a mistake that ports really contain, and names the rung on which it
must be caught. The faults are planted in a small model of odd sizes in float64, whose weights are scaled up and whose
norm weights are not all one, so that every fault shows: with fresh weights, a norm after its weight gives the same as
one before it. The healthy twin computes once; a faulty one is a new twin for each fault, so that no compiled function
outlives its patch.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lmcore.config import Config, LoraConfig, ModelConfig, OptimConfig, TrainConfig
from lmcore.data.marks import UNCOUNTED
from parity.arrays import Arrays, scaled_matrix
from parity.backends import BACKENDS, framework_settings, make_pair, make_twin
from parity.backends.base import Pair, check_config
from parity.check.ladder import climb
from parity.check.rungs.base import Options, in_short_documents
from parity.check.selftest.faults import decoding, documents, lora, model, optimizer, patch, run

__all__ = ["MUTANTS", "Caught", "Mutant", "odd_config", "self_test", "shaken"]

STEPS = 8
FAMILIES: dict[str, Any] = {
    "norm": "zero_centered_rmsnorm",
    "mlp": "geglu_tanh",
    "bias": "qkv",
    "qk_norm": True,
    "parallel_residual": True,
    "layer_types": ["sliding", "full", "nope"],
    "sliding_window": 5,
    "sliding_rope_theta": 500.0,
    "rotary_dim": 4,
    "previous_tokens": 2,
    "embedding_scale": 2.0,
    "residual_scale": 0.7,
    "attention_scale": 0.3,
    "attention_softcap": 3.0,
    "logit_divisor": 1.5,
    "logit_softcap": 4.0,
}
"""Parts that families of models other than Llama have, all in one."""
EARLY = (2, 3, 4, 5)
ADAPTERS = LoraConfig(rank=5, alpha=13.0, targets=["q_proj", "v_proj", "down_proj"])
"""Adapters of the model in which their faults are planted: one of a layer with as many outputs as inputs."""
CLIMBED = (*range(9), 10, 11)
"""Rungs of the self-test: all but the third implementation, which no fault needs to be caught."""


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    twin: str
    """The framework whose twin has it; `both` where it is in shared code."""
    rung: int
    """Rung on which it must be caught, or on an earlier one."""
    plant: Callable[[], AbstractContextManager[Any]]
    """Returns a context in which that twin is patched."""
    fresh: bool = False
    """Whether it is a fault of the initial weights, which shaken weights would hide."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer that trains the model."""
    lora: bool = False
    """Whether the model has adapters."""
    context: int = 37
    """Maximum number of positions of the model."""
    parts: Literal["default", "families"] = "default"
    """Parts of the model: those of a Llama, or FAMILIES."""
    masked: bool = False
    """Whether the tokens have marks: short documents, masked from one another, of which half of the tokens count."""
    rungs: tuple[int, ...] = CLIMBED
    """Rungs that are climbed; fewer where a model is too long for all."""


@dataclass(frozen=True)
class Caught:
    """Whether and where a fault was caught."""

    mutant: Mutant
    rung: int | None
    """Rung on which it was caught; None if it was not."""
    where: str

    @property
    def ok(self) -> bool:
        """Whether it was caught on its rung or an earlier one."""
        return self.rung is not None and self.rung <= self.mutant.rung


def odd_config() -> Config:
    """Return the config of a small odd-sized model, with square query and output kernels: a missing transpose fits."""
    model = ModelConfig(vocab_size=61, dim=36, n_layers=3, n_heads=6, n_kv_heads=3, ffn_dim=44, max_seq_len=37)
    optim = OptimConfig(lr=1e-2, warmup_steps=3, weight_decay=0.3, beta2=0.97, clip=0.7)
    config = Config(model=model, optim=optim, train=TrainConfig(steps=20, batch_size=4, grad_accum=2, seq_len=19))
    return check_config(config, "float64")


def shaken(params: Arrays, seed: int = 0, scale: float = 8.0) -> Arrays:
    """Return weights scaled up, with norm weights that are not one and biases that are not zero, so that faults show.

    Args:
        params: weights by name.
        seed: of the random values that are added to norm weights and biases.
        scale: factor of the matrices.
    """
    rng = np.random.default_rng(seed)
    return {
        name: scaled_matrix(value, scale, rng)
        if value.ndim > 1
        else (value + rng.uniform(-0.5, 0.5, value.shape)).astype(value.dtype)
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
            parts = mutant.parts, mutant.masked, mutant.lora
            kind = mutant.optimizer, mutant.fresh, mutant.context, *parts, mutant.rungs
            if kind not in healthy:
                healthy[kind] = _healthy(mutant, options)
            yield _try(mutant, healthy[kind], options)


def _healthy(mutant: Mutant, options: Options) -> Pair:
    """Return healthy twins for a fault to be planted in, after checking them on the rungs that catch such faults."""
    config = odd_config()
    parts = FAMILIES if mutant.parts == "families" else {}
    parts = parts | {"lora": ADAPTERS if mutant.lora else None}
    model = replace(config.model, max_seq_len=mutant.context, **parts)
    config = replace(config, model=model, optim=replace(config.optim, name=mutant.optimizer))
    tokens = np.random.default_rng(0).integers(config.model.vocab_size, size=5000).astype(np.int32)
    if mutant.masked:
        config = replace(config, data=replace(config.data, document_mask=True))
        tokens = in_short_documents(tokens) | UNCOUNTED * np.random.default_rng(1).integers(
            2, size=5000, dtype=np.int32
        )
    pair = make_pair(config, tokens)
    if not mutant.fresh:
        pair = pair.with_weights(shaken(pair.start))
    pair.fresh_process = False  # no patch reaches another process
    rungs = range(3) if mutant.fresh else mutant.rungs
    failed = next((r for r in climb(pair, rungs, options) if not r.ok), None)
    assert failed is None, f"the healthy twins differ: {failed}"
    return pair


def _try(mutant: Mutant, healthy: Pair, options: Options) -> Caught:
    with mutant.plant():
        device = replace(healthy.config, train=replace(healthy.config.train, device="cpu"))
        names = [twin.backend.framework for twin in healthy]
        faulty = names if mutant.twin == "both" else [mutant.twin]
        assert set(faulty) <= set(names), f"{mutant.name}: no twin of {mutant.twin} in {names}"
        twins = [make_twin(name, device) if name in faulty else twin for name, twin in zip(names, healthy, strict=True)]
        pair = healthy.with_twins(*twins)
        failed = next((r for r in climb(pair, mutant.rungs, options, stop=True) if not r.ok), None)
    if failed is None:
        return Caught(mutant, None, "not caught")
    return Caught(mutant, failed.rung, f"{failed.what}: {failed.where}")


def _choosing(framework: str, change: Callable[[Any], dict[str, Any]]) -> Callable[[], AbstractContextManager[Any]]:
    """Return a fault that chooses tokens with other options."""
    return patch(f"{BACKENDS[framework].package}.decoding.choose_tokens", decoding.other_options(change))


PARTS: dict[str, Any] = {"parts": "families", "rungs": EARLY}
ZERO_CENTERED = "torchlm.norms.ZeroCenteredRMSNorm.forward"

MUTANTS = (
    Mutant("first call off", "torch", 0, patch("torchlm.model.RMSNorm.forward", run.first_call_off)),
    Mutant("window read twice", "both", 1, patch("lmcore.data.batches.Batches._starts", run.windows_twice)),
    Mutant(
        "user's turns count", "both", 1, patch("lmcore.data.conversations._counted", documents.users_count), masked=True
    ),
    Mutant("batches shifted by one", "torch", 1, patch("torchlm.engine.to_device", run.shifted)),
    Mutant(
        "residual init unscaled",
        "torch",
        2,
        patch("torchlm.engine.initial_weight", model.unscaled_outputs),
        True,
    ),
    Mutant("missing transpose", "torch", 3, patch("parity.convert.names.convert_names", model.no_transpose)),
    Mutant("RoPE interleaved", "torch", 3, patch("torchlm.model.rotate", model.interleaved)),
    Mutant("RoPE theta", "jax", 3, patch("jaxlm.model.rope_tables", model.changed(rope_theta=500000.0))),
    Mutant("norm eps × 10", "torch", 3, patch("torchlm.model.RMSNorm.__init__", model.eps_times_ten)),
    Mutant("norm after weight", "torch", 3, patch("torchlm.model.RMSNorm.forward", model.weight_before_norm)),
    Mutant("gate and up swapped", "torch", 3, patch("torchlm.mlps.GatedMLP.forward", model.swapped)),
    Mutant("KV heads tiled", "torch", 3, patch("torchlm.model.causal_attention", model.tiled_heads)),
    Mutant("KV heads tiled (JAX)", "jax", 3, patch("jaxlm.model.causal_attention", model.tiled_heads)),
    Mutant("softmax scale 1/H", "jax", 3, patch("jaxlm.attention.math", lambda _: model.RootlessMath)),
    Mutant("mask off by one", "torch", 3, patch("torchlm.model.causal_attention", model.sees_next)),
    Mutant("residual left out", "torch", 3, patch("torchlm.model.Block.forward", model.no_residual)),
    Mutant("GELU for SiLU", "torch", 3, patch("torchlm.mlps.ACTIVATIONS", model.gelu)),
    Mutant("softmax in float32", "torch", 3, patch("torchlm.attention.torch.softmax", model.rounded)),
    Mutant("window one longer", "torch", 3, patch("torchlm.model.causal_attention", model.wider), **PARTS),
    Mutant("scores not capped", "jax", 3, patch("jaxlm.model.causal_attention", model.uncapped), **PARTS),
    Mutant("RoPE where none is", "torch", 3, patch("torchlm.model.rope_tables", model.rotates_all_layers), **PARTS),
    Mutant("whole head rotated", "jax", 3, patch("jaxlm.model.rope_tables", model.changed(rotary_dim=6)), **PARTS),
    Mutant("one branch after the other", "torch", 3, patch("torchlm.model.Block.__init__", model.in_series), **PARTS),
    Mutant("weight without one", "torch", 3, patch(ZERO_CENTERED, model.weight_alone), **PARTS),
    Mutant("factors left out", "jax", 3, patch("jaxlm.model.times", model.no_factor), **PARTS),
    Mutant("exact GELU", "jax", 3, patch("jaxlm.mlps.ACTIVATIONS", model.exact_gelu), **PARTS),
    Mutant("cap without its slope", "torch", 5, patch("torchlm.loss.HeadLoss", model.no_slope), **PARTS),
    Mutant("previous tokens reversed", "torch", 3, patch("torchlm.model.preceding", model.reversed_order), **PARTS),
    Mutant(
        "previous tokens of other documents",
        "jax",
        3,
        patch("jaxlm.previous.PreviousTokens.__call__", documents.all_known),
        masked=True,
        **PARTS,
    ),
    Mutant(
        "documents not masked", "torch", 3, patch("torchlm.model.causal_attention", documents.unmasked), masked=True
    ),
    Mutant("documents begin late", "jax", 3, patch("jaxlm.documents.document_starts", documents.late), masked=True),
    Mutant("documents masked by neither", "both", 4, documents.unmasked_in_both, masked=True),
    Mutant("adapters unscaled", "torch", 3, patch("torchlm.lora.Adapter.__init__", lora.unscaled), lora=True),
    Mutant("A and B swapped", "torch", 3, patch("torchlm.lora.Adapter.forward", lora.swapped), lora=True),
    Mutant("mean of means", "torch", 4, patch("torchlm.engine.loss_sum", model.mean_of_means)),
    Mutant("ignored targets counted", "torch", 4, patch("torchlm.loss.cross_entropy", model.counts_ignored)),
    Mutant("tied head untied", "torch", 5, patch("torchlm.model.Decoder.head", model.untied)),
    Mutant("all targets count", "torch", 5, patch("torchlm.documents.target_ids", documents.all_count), masked=True),
    Mutant("divided by all targets", "jax", 5, patch("jaxlm.documents.counts", documents.counts_all), masked=True),
    Mutant("divided by micro-batch", "torch", 5, patch("torchlm.engine.train_step", model.by_micro_batch)),
    Mutant("base trained", "torch", 5, patch("torchlm.lora.is_trained", lora.all_trained), lora=True),
    Mutant("base trained (JAX)", "jax", 5, patch("jaxlm.functional.is_trained", lora.all_trained), lora=True),
    Mutant("clip per tensor", "torch", 6, patch("torchlm.engine.clip_by_global_norm", optimizer.per_tensor)),
    Mutant("clip without 1e-6", "jax", 6, patch("jaxlm.engine.clip_by_global_norm", optimizer.no_clip_eps)),
    Mutant("decay on norms", "jax", 6, patch("jaxlm.optim.decay_mask", optimizer.decays_all)),
    Mutant("decay in the gradient", "torch", 6, patch("torchlm.optim.torch.optim.AdamW", optimizer.coupled)),
    Mutant("no bias correction", "jax", 6, patch("optax.tree.bias_correction", optimizer.uncorrected)),
    Mutant("betas swapped", "jax", 6, patch("optax.scale_by_adam", optimizer.betas_swapped)),
    Mutant("eps inside the root", "jax", 6, patch("optax.scale_by_adam", optimizer.eps_inside)),
    Mutant(
        "Muon without Nesterov",
        "torch",
        6,
        patch("torchlm.optim._Muon", optimizer.without_nesterov),
        optimizer="muon",
    ),
    Mutant(
        "Muon in bfloat16",
        "torch",
        6,
        patch("torchlm.optim._NotInBfloat16", lambda _: nullcontext),
        optimizer="muon",
    ),
    Mutant("warmup off by one", "torch", 6, patch("torchlm.engine.apply_updates", optimizer.late_warmup)),
    Mutant("gradients pile up", "torch", 7, patch("torchlm.model.Decoder.zero_grad", optimizer.piles_up)),
    Mutant("lr 1e-4 off later", "torch", 7, patch("torchlm.engine.apply_updates", optimizer.faster_later(1.0001))),
    Mutant("lr 1e-4 off later (JAX)", "jax", 7, patch("jaxlm.engine.train_step", optimizer.colder_later(0.9999))),
    Mutant("top_p 2 % larger", "torch", 8, _choosing("torch", lambda o: {"top_p": min(1.0, o.top_p * 1.02)})),
    Mutant("top_k + 1", "jax", 8, _choosing("jax", lambda o: {"top_k": o.top_k + (o.top_k > 0)})),
    Mutant("min_p 10 % smaller", "torch", 8, _choosing("torch", lambda o: {"min_p": o.min_p * 0.9})),
    Mutant("temperature 1 % higher", "jax", 8, _choosing("jax", lambda o: {"temperature": o.temperature * 1.01})),
    Mutant(
        "newer half forgotten", "both", 8, patch("parity.check.rungs.decoding.write_tokens", decoding.forgets_newer)
    ),
    Mutant("one stop token of three", "both", 8, patch("lmcore.data.tokenizer.Tokenizer.__init__", decoding.one_stop)),
    Mutant("cache misses last position", "torch", 8, patch("torchlm.model.causal_mask", decoding.blind_to_itself)),
    Mutant("positions late in decoding", "torch", 8, patch("torchlm.model.Decoder.rope", decoding.late_positions)),
    Mutant("padding seen in decoding", "jax", 8, patch("jaxlm.model.causal_mask", decoding.sees_padding)),
    Mutant("one length for all", "jax", 8, patch("jaxlm.model.write", decoding.one_length)),
    Mutant(
        "previous tokens of the prompt alone",
        "torch",
        8,
        patch("torchlm.model.latest", decoding.keeps_previous),
        parts="families",
        rungs=(8,),
    ),
    Mutant("options of the neighbour", "torch", 8, patch("torchlm.slots.choose_tokens", decoding.neighbours_options)),
    Mutant("int8 scale per tensor", "torch", 8, patch("torchlm.fast.decoding.quantized_layers", decoding.per_tensor)),
    Mutant("adapters merged unscaled", "jax", 8, patch("jaxlm.engine.merge", lora.merged_unscaled), lora=True),
    Mutant("moments not saved", "torch", 10, patch("torchlm.engine.save_state", run.drops_moments)),
    Mutant("moments restored as zeros", "jax", 10, patch("jaxlm.engine.restore_state", run.zeroes_moments)),
    Mutant("count restored as zero", "torch", 10, patch("torchlm.engine.restore_state", run.forgets_count)),
    Mutant(
        "converted by float32",
        "both",
        10,
        patch("parity.check.rungs.restart.read_state", run.rounds_to_float32),
    ),
    Mutant("scanned layers rolled", "jax", 11, patch("jaxlm.functional.scanned", run.rolled_layers)),
    Mutant("half of a core's gradient", "torch", 11, patch("torchlm.fast.parallel._with_gradients", run.part_lost)),
    Mutant("remat halves gradients", "torch", 11, patch("torchlm.model.checkpoint", run.half_branch_gradient)),
    Mutant("dropout in evaluation", "torch", 11, patch("torchlm.engine.eval_step", run.drops_in_evaluation)),
    Mutant("evaluation ends early", "both", 11, patch("lmcore.run.engine.eval_windows", run.misses_last_window)),
    Mutant(
        "NaN updates not skipped (JAX)", "jax", 11, patch("jaxlm.engine.update_is_finite", run.takes_all_for_finite)
    ),
    Mutant("NaN updates not skipped", "torch", 11, patch("torchlm.engine.update_is_finite", run.looks_at_loss_only)),
    Mutant(
        "no gradient to far keys",
        "jax",
        11,
        patch("jaxlm.fast.attention.attention_in_turns", run.frozen_keys),
        context=1100,
        rungs=(11,),
    ),
)
"""Every fault, by the rung on which it must be caught."""
