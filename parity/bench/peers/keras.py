"""KerasHub's Llama in a benchmark, on Keras' JAX or PyTorch backend: the same shape, weights, loss, clip and optimizer.

Training is what a user of it writes: `compile` with Keras' AdamW and global clip, then `train_on_batch`, with the
dtype policy mixed_bfloat16 for bfloat16. So JAX runs compiled and PyTorch eagerly, which is what Keras chooses.
Generation is its own `generate`, the whole model in the type of the run, on prompts of token ids. Keras reads its
backend from the environment when it is imported, so that a process has one.
"""

import os
import sys
import time
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.model.flops import peak_flops
from parity.bench.base import SHOWN, step_flops
from parity.bench.peers.base import check_llama, initial_weights

__all__ = ["KerasHub", "make"]


def make(name: str, config: Config, mode: str) -> "KerasHub":
    """Return KerasHub's Llama.

    Args:
        name: `keras-jax` or `keras-torch`.
        config: shape of the model and batch.
        mode: train or generate.
    """
    return KerasHub(name.removeprefix("keras-"), config, mode)


class KerasHub:
    """KerasHub's Llama on one of Keras' backends."""

    def __init__(self, backend: str, config: Config, mode: str):
        self.config, self.backend = config, backend
        self.device = set_up(backend, config)
        self.peak = peak_flops(self.device)
        self.step_flops = step_flops(config)
        self.model = initial_llama(config, mode)
        self.parameters: int = self.model.count_params()
        if mode == "train":
            self._compile_training()
        else:
            self.model.compile(sampler=sampler(config))
            self.compiled: set[tuple[int, ...]] = set()

    def _compile_training(self) -> None:
        import keras

        optim, parts = self.config.optim, self.config.train.grad_accum
        optimizer = keras.optimizers.AdamW(
            learning_rate=optim.lr,
            weight_decay=optim.weight_decay,
            beta_1=optim.beta1,
            beta_2=optim.beta2,
            epsilon=optim.eps,
            global_clipnorm=optim.clip or None,
            gradient_accumulation_steps=parts if parts > 1 else None,
        )
        vectors = [variable for variable in self.model.trainable_variables if len(variable.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)
        self.model.compile(optimizer=optimizer, weighted_metrics=None)  # its loss is cross-entropy of the logits

    def step(self, batch: np.ndarray, lr: float) -> float:
        self.model.optimizer.learning_rate = lr
        losses = []
        for part in np.split(batch, self.config.train.grad_accum):
            logs = self.model.train_on_batch(inputs(part[:, :-1]), part[:, 1:], return_dict=True)
            losses.append(float(logs["loss"]))
        return float(np.mean(losses))

    def wait(self, value: Any = None) -> None:
        """Every call here returns numbers on the host, so that nothing is left to wait for."""

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        import keras

        return np.asarray(keras.ops.convert_to_numpy(self.model(inputs(prompts))[:, -1, :SHOWN]), np.float32)

    def generate(self, prompts: np.ndarray) -> tuple[float, float]:
        """As `GeneratingImplementation` says, but that decoding is the time of a whole call.

        KerasHub generates in one call, which prefills all positions of the result: prefill is a call for one token.
        """
        whole = self.config.sample.max_tokens
        if prompts.shape not in self.compiled:
            self.write(prompts, whole)
            self.compiled.add(prompts.shape)
        self.write(prompts, 1)
        times = [time.perf_counter()]
        for count in (1, whole):
            self.write(prompts, count)
            times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    def write(self, prompts: np.ndarray, count: int) -> np.ndarray:
        """Return the prompts with `count` tokens after each."""
        padding = ((0, 0), (0, count))
        given = {"token_ids": np.pad(prompts, padding), "padding_mask": np.pad(np.ones_like(prompts), padding)}
        return self.model.generate(given, stop_token_ids=None)["token_ids"]

    def device_bytes(self) -> int | None:
        if self.backend == "torch":
            import torch

            return torch.cuda.max_memory_allocated() if torch.cuda.is_available() and "cpu" not in self.device else None
        import jax

        stats = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else None


def set_up(backend: str, config: Config) -> str:
    """Set up this process for a backend, device and dtype, before Keras is imported; return the device's name.

    The frameworks get what the twins set: all cores, and full-precision matmuls in float32.

    Args:
        backend: jax or torch.
        config: device and dtype.
    """
    assert "keras" not in sys.modules, "Keras has chosen its backend"
    os.environ["KERAS_BACKEND"] = backend
    if backend == "torch":
        from torchlm.device import device_name, set_up_torch

        device = set_up_torch(config.train)
        os.environ["KERAS_TORCH_DEVICE"] = device.type
        return device_name(device)
    import jax

    if config.train.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if config.train.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    device = jax.local_devices()[0]
    return f"1 × {'cpu' if device.platform == 'cpu' else device.device_kind}"


def inputs(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What KerasHub's models take; nothing is padded."""
    return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}


def sampler(config: Config) -> Any:
    """KerasHub's sampler for the config.

    Raises:
        UserError: it has no such one.
    """
    import keras_hub

    sample = config.sample
    for name, found, expected in (
        ("top_k", sample.top_k, 0),
        ("top_p", sample.top_p, 1.0),
        ("min_p", sample.min_p, 0.0),
    ):
        if sample.temperature and found != expected:
            raise UserError(f"sample.{name}: found {found}, expected {expected} to be timed beside KerasHub")
    if not sample.temperature:
        return keras_hub.samplers.GreedySampler()
    return keras_hub.samplers.RandomSampler(temperature=sample.temperature, seed=config.train.seed)


def initial_llama(config: Config, mode: str) -> Any:
    """KerasHub's model with the weights of the shared NumPy initialization.

    Raises:
        UserError: it has no such model.
    """
    import keras_hub

    check_llama("KerasHub", config)
    model, dtype = config.model, config.train.precision
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=model.vocab_size,
        num_layers=model.n_layers,
        num_query_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        hidden_dim=model.dim,
        intermediate_dim=model.ffn_dim,
        rope_max_wavelength=model.rope_theta,
        layer_norm_epsilon=model.norm_eps,
        tie_word_embeddings=model.tie_embeddings,
        dtype="mixed_bfloat16" if mode == "train" and dtype == "bfloat16" else dtype,
    )
    weights = rename(initial_weights(config), model.n_layers)
    for variable in backbone.variables:
        array = weights.pop(variable.path)
        variable.assign(array.reshape(variable.shape))
    assert not weights, f"KerasHub has no variables {', '.join(weights)}"
    return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)


NAMES = {
    "input_layernorm": "self_attention_layernorm/scale",
    "self_attn.q_proj": "self_attention/query/kernel",
    "self_attn.k_proj": "self_attention/key/kernel",
    "self_attn.v_proj": "self_attention/value/kernel",
    "self_attn.o_proj": "self_attention/attention_output/kernel",
    "post_attention_layernorm": "feedforward_layernorm/scale",
    "mlp.gate_proj": "feedforward_gate_dense/kernel",
    "mlp.up_proj": "feedforward_intermediate_dense/kernel",
    "mlp.down_proj": "feedforward_output_dense/kernel",
}
"""Module of a layer in Hugging Face's Llama -> path of its variable in KerasHub's."""


def rename(weights: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Return Hugging Face's weights of a Llama by KerasHub's paths, matrices as inputs × outputs.

    KerasHub's attention kernels have an axis for the heads; in that order, a reshape gives it.
    """
    paths = {
        "model.embed_tokens.weight": "token_embedding/embeddings",
        "model.norm.weight": "sequence_output_layernorm/scale",
        "lm_head.weight": "token_embedding/reverse_embeddings",
    }
    for layer in range(layers):
        modules = {f"model.layers.{layer}.{old}.weight": new for old, new in NAMES.items()}
        paths |= {name: f"transformer_layer_{layer}/{path}" for name, path in modules.items()}
    embedding = "model.embed_tokens.weight"
    return {paths[name]: array if name == embedding else array.T for name, array in weights.items()}
