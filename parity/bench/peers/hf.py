"""transformers' Llama in a benchmark: the same shape, weights, loss, clip and optimizer, by its own code.

Training is what a user of it writes in PyTorch: autocast for bfloat16, float32 cross-entropy, fused AdamW. Generation
is its own `generate` with its default cache, the whole model in the type of the run, since it has no mixed one.
"""

import time
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.generate.prompting import CHUNK
from parity.bench.peers.base import TorchPeer, adamw, initial_weights

__all__ = ["Transformers", "make"]


def make(name: str, config: Config, mode: str) -> "Transformers":
    """Return transformers' Llama: `transformers`, or with `train.compile` `transformers-compiled`."""
    return Transformers(config, mode)


class Transformers(TorchPeer):
    """transformers' Llama, eager or compiled."""

    def __init__(self, config: Config, mode: str):
        import torch

        super().__init__(config)
        self.model = initial_llama(config).to(self.torch_device)
        if mode != "train":
            self.model = self.model.to(self.dtype).eval()
            return
        if config.train.remat:
            self.model.gradient_checkpointing_enable()
        self.called = torch.compile(self.model, dynamic=False) if config.train.compile else self.model
        self.optimizer = adamw(config, self.model, fused=True)

    def backward(self, inputs: Any, targets: Any, parts: int) -> Any:
        import torch
        import torch.nn.functional as F

        with torch.autocast(self.torch_device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.called(input_ids=inputs, use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()) / parts
        loss.backward()
        return loss

    def clip(self) -> None:
        import torch

        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip or float("inf"))

    def forward(self, tokens: Any) -> Any:
        return self.model(tokens).logits

    def generate(self, prompts: np.ndarray) -> tuple[float, float]:
        """As `GeneratingImplementation` says; the first token, sampled with the prefill, counts as decoded."""
        import torch

        sample = self.config.sample
        tokens = self.prompts(prompts)
        drawn: dict[str, Any] = {"do_sample": False}
        if sample.temperature:
            drawn = {"do_sample": True, "temperature": sample.temperature}
            drawn |= {"top_k": sample.top_k, "top_p": sample.top_p, "min_p": sample.min_p or None}
        for count in (CHUNK, sample.max_tokens):
            clock = Clock()
            self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=count,
                min_new_tokens=count,
                pad_token_id=0,
                streamer=clock,
                **drawn,
            )
            self.wait()
        return clock.times[1] - clock.times[0], time.perf_counter() - clock.times[1]


class Clock:
    """Notes when `generate` hands out the prompts, the first token, and each that follows."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to be shown."""


def initial_llama(config: Config) -> Any:
    """transformers' Llama with the weights of the shared NumPy initialization.

    Raises:
        UserError: it has no such model.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from parity.convert.families import LLAMA
    from parity.convert.names import numpy_to_torch

    weights = {name: numpy_to_torch(array) for name, array in initial_weights(config).items()}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA.write(config.model) | {"attn_implementation": "sdpa"}))
    with torch.device("cpu"):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffer is no weight
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))
    return model.train()
