"""transformers' Llama in a benchmark: the same shape, weights, loss, clip and optimizer, by its own code.

Training is what a user of it writes in PyTorch: autocast for bfloat16, float32 cross-entropy, fused AdamW. Generation
is its own `generate` with its default cache, the whole model in the type of the run, since it has no mixed one.
"""

import time
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.generate.prompting import CHUNK
from lmcore.model.flops import peak_flops
from parity.bench.base import SHOWN, step_flops, torch_device_bytes, wait_for_torch

__all__ = ["TransformersImplementation"]


class TransformersImplementation:
    """transformers' Llama, eager or compiled."""

    def __init__(self, config: Config, mode: str):
        import torch

        from torchlm.device import device_name, set_up_torch

        self.config = config
        self.torch_device = set_up_torch(config.train)
        self.device = device_name(self.torch_device)
        self.peak = peak_flops(self.device)
        self.step_flops = step_flops(config)
        self.dtype = getattr(torch, config.train.precision)
        self.model = initial_llama(config).to(self.torch_device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        if mode != "train":
            self.model = self.model.to(self.dtype).eval()
            return
        if config.train.remat:
            self.model.gradient_checkpointing_enable()
        self.forward = torch.compile(self.model, dynamic=False) if config.train.compile else self.model
        self.optimizer = adamw(config, self.model)

    def step(self, batch: np.ndarray, lr: float) -> Any:
        import torch
        import torch.nn.functional as F

        tokens = torch.from_numpy(batch).long().to(self.torch_device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.config.train.grad_accum
        total = torch.zeros((), device=self.torch_device)
        for part in tokens.chunk(parts):
            with torch.autocast(self.torch_device.type, self.dtype, enabled=self.dtype != torch.float32):
                logits = self.forward(input_ids=part[:, :-1], use_cache=False).logits
                loss = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten()) / parts
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip or float("inf"))
        self.optimizer.step()
        return total

    def wait(self, value: Any = None) -> None:
        wait_for_torch(self.torch_device)

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            logits = self.model(torch.from_numpy(prompts).long().to(self.torch_device)).logits
        return logits[:, -1, :SHOWN].float().cpu().numpy()

    def generate(self, prompts: np.ndarray) -> tuple[float, float]:
        """As `GeneratingImplementation` says; the first token, sampled with the prefill, counts as decoded."""
        import torch

        sample = self.config.sample
        tokens = torch.from_numpy(prompts).long().to(self.torch_device)
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

    def device_bytes(self) -> int | None:
        return torch_device_bytes(self.torch_device)


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

    from lmcore.errors import UserError
    from parity.convert.families import LLAMA
    from parity.convert.names import convert_names, numpy_to_torch, torch_to_numpy
    from torchlm.engine import initial_params
    from torchlm.model import Decoder

    with torch.device("meta"):
        ours = Decoder(config.model, torch.float32)
        if differences := LLAMA.differences(config.model):
            raise UserError("; ".join(differences))
        fields = LLAMA.write(config.model)
        model = LlamaForCausalLM(LlamaConfig(**fields | {"attn_implementation": "sdpa"}))
    arrays = {name: torch_to_numpy(p) for name, p in initial_params(ours, config.train.seed).items()}
    weights = {name: numpy_to_torch(a) for name, a in convert_names(arrays, config.model, "torch", "hf").items()}
    with torch.device("cpu"):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffer is no weight
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    assert not any(value.is_meta for value in (*model.parameters(), *model.buffers()))
    return model.train()


def adamw(config: Config, model: Any) -> Any:
    """AdamW as the twins have it: weight decay on matrices only."""
    import torch

    optim = config.optim
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
