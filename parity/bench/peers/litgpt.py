"""LitGPT's GPT as a Llama in a benchmark: the same shape, weights, loss, clip and optimizer, by its own code.

Training goes as in `litgpt pretrain`: through Lightning Fabric (precision bf16-mixed or 32-true), with its chunked
cross-entropy; AdamW is fused, which LitGPT chooses on CUDA alone. `litgpt pretrain` always compiles; here both are
timed. Generation is its `generate_fn`, or for several prompts its `batched_generate_fn`, on a model of the run's type.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.generate.prompting import CHUNK
from parity.bench.peers.base import TorchPeer, adamw, check_llama, initial_weights

__all__ = ["LitGPT", "make"]

NAMES = {
    "model.embed_tokens.weight": "transformer.wte.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}
"""Name in Hugging Face's Llama -> name in LitGPT's."""
BLOCK = {
    "input_layernorm": "norm_1",
    "self_attn.o_proj": "attn.proj",
    "post_attention_layernorm": "norm_2",
    "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2",
    "mlp.down_proj": "mlp.proj",
}
"""The same for the modules of a block, less q_proj, k_proj and v_proj, which are one matrix there."""


def make(name: str, config: Config, mode: str) -> "LitGPT":
    """Return LitGPT's Llama: `litgpt`, or with `train.compile` `litgpt-compiled`."""
    return LitGPT(config, mode)


class LitGPT(TorchPeer):
    """LitGPT's GPT with a Llama's config, eager or compiled."""

    def __init__(self, config: Config, mode: str):
        import torch
        from lightning import Fabric

        super().__init__(config)
        model = initial_gpt(config)
        if mode != "train":
            self.drawn = sampling(config)
            self.model = model.to(self.torch_device, self.dtype).eval()
            return
        precision: Any = "32-true" if self.dtype == torch.float32 else "bf16-mixed"
        self.fabric = Fabric(accelerator=self.torch_device.type, devices=1, precision=precision)
        compiled = torch.compile(model, dynamic=False) if config.train.compile else model
        self.model = self.fabric.setup(compiled)
        self.optimizer = self.fabric.setup_optimizers(adamw(config, self.model, fused=True))

    def backward(self, inputs: Any, targets: Any, parts: int) -> Any:
        from litgpt.utils import chunked_cross_entropy

        loss = chunked_cross_entropy(self.model(inputs.contiguous()), targets.contiguous()) / parts
        self.fabric.backward(loss)
        return loss

    def clip(self) -> None:
        if self.config.optim.clip:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.optim.clip)

    def forward(self, tokens: Any) -> Any:
        return self.model(tokens)

    def generate(self, prompts: np.ndarray) -> tuple[float, float]:
        """As `GeneratingImplementation` says; the first token, sampled with the prefill, counts as decoded."""
        whole = self.config.sample.max_tokens
        self.model.max_seq_length = prompts.shape[1] + max(CHUNK, whole)
        self.model.set_kv_cache(len(prompts), device=self.torch_device, dtype=self.dtype)
        for count in (CHUNK, whole):
            times = [time.perf_counter()]
            times += [time.perf_counter() for _ in self.write(prompts, count)]
            self.wait()
        return times[1] - times[0], time.perf_counter() - times[1]

    def write(self, prompts: np.ndarray, count: int) -> Iterator[Any]:
        """Yield the next token of the prompt or, of several, of each of them, `count` times."""
        from litgpt.generate.base import batched_generate_fn, generate_fn

        tokens = self.prompts(prompts)
        length: dict[str, Any] = {"max_returned_tokens": tokens.shape[1] + count}
        length |= {"include_prompt": False, "include_eos": True}
        if len(tokens) == 1:
            yield from generate_fn(self.model, tokens[0], **length, **self.drawn)
        else:
            yield from batched_generate_fn(self.model, tokens, **length, sample_args=self.drawn)


def sampling(config: Config) -> dict[str, Any]:
    """Return the arguments of LitGPT's `sample`.

    Raises:
        UserError: it has no such sampling.
    """
    sample = config.sample
    if sample.temperature and sample.min_p:
        raise UserError(f"sample.min_p: found {sample.min_p}, expected 0.0 to be timed beside LitGPT")
    return {"temperature": sample.temperature, "top_k": sample.top_k or None, "top_p": sample.top_p}


def initial_gpt(config: Config) -> Any:
    """LitGPT's model with the weights of the shared NumPy initialization.

    Raises:
        UserError: it has no such model.
    """
    import torch
    from litgpt import GPT
    from litgpt import Config as GPTConfig

    from parity.convert.names import numpy_to_torch

    check_llama("LitGPT", config)
    model = config.model
    fields: dict[str, Any] = {"vocab_size": model.vocab_size, "padded_vocab_size": model.vocab_size}
    fields |= {"block_size": model.max_seq_len, "n_layer": model.n_layers, "n_embd": model.dim}
    fields |= {"n_head": model.n_heads, "n_query_groups": model.n_kv_heads, "intermediate_size": model.ffn_dim}
    fields |= {"rotary_percentage": 1.0, "rope_base": model.rope_theta, "norm_eps": model.norm_eps}
    fields |= {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False, "parallel_residual": False}
    gpt = GPT(GPTConfig(name="llama", **fields))
    if model.tie_embeddings:
        gpt.transformer.wte.weight = gpt.lm_head.weight
    weights = {name: numpy_to_torch(array) for name, array in rename(initial_weights(config), model.n_layers).items()}
    if model.tie_embeddings:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    gpt.load_state_dict(weights)
    assert all(p.dtype == torch.float32 for p in gpt.parameters())
    return gpt.train()


def rename(weights: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Return Hugging Face's weights of a Llama under LitGPT's names, queries, keys and values in one matrix."""
    renamed = {NAMES[name]: weights[name] for name in NAMES if name in weights}
    for layer in range(layers):
        ours, theirs = f"model.layers.{layer}", f"transformer.h.{layer}"
        renamed |= {f"{theirs}.{new}.weight": weights[f"{ours}.{old}.weight"] for old, new in BLOCK.items()}
        joined = [weights[f"{ours}.self_attn.{part}_proj.weight"] for part in "qkv"]
        renamed[f"{theirs}.attn.qkv.weight"] = np.concatenate(joined)
    return renamed
