"""llama.cpp in a benchmark of generation, on the CPU: the same weights in a GGUF file, decoded by its own code.

`llama.cpp` has matrices of the run's type: f32, or for bfloat16 bf16, which llama.cpp's converter chooses for a model
in bfloat16, and which has the twins' values. `llama.cpp-q8_0` has them in blocks of 32 values of 8 bits, quantized by
the package `gguf`; llama.cpp then rounds the other factor to 8 bits too. With bfloat16, KV cache and attention are
llama.cpp's defaults: f16, and flash attention. With float32 the cache is f32, and flash attention, which rounds to f16
there, is off. Batches are llama.cpp's own, one sequence id for each prompt.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.generate.prompting import CHUNK
from lmcore.hardware import usable_cores
from parity.bench.base import SHOWN, step_flops
from parity.bench.peers.base import initial_weights
from parity.convert.gguf import Dtype, write_model
from parity.convert.names import convert_names
from parity.convert.tensors import Tensors

__all__ = ["LlamaCpp", "check", "make"]

BLOCK = 32
"""Values of a block of q8_0."""


def make(name: str, config: Config, mode: str) -> "LlamaCpp":
    """Return llama.cpp with the weights of the shared NumPy initialization.

    Args:
        name: `llama.cpp` or `llama.cpp-q8_0`.
        config: shape of the model, dtype, and sampling.
        mode: generate.
    """
    dtype: Dtype = "f32" if config.train.precision == "float32" else "bf16"
    return LlamaCpp(config, "q8_0" if name.endswith("q8_0") else dtype)


class LlamaCpp:
    """A model in llama.cpp."""

    peak = None
    prompts: "Batch"
    next: "Batch"

    def __init__(self, config: Config, dtype: Dtype):
        check(config, dtype)
        import llama_cpp

        self.library: Any = llama_cpp
        self.config = config
        self.threads = usable_cores()
        self.device = f"1 × cpu ({self.threads} threads)"
        self.step_flops = step_flops(config)
        llama_cpp.llama_backend_init()
        self.model = self._load(dtype)
        self.parameters = int(llama_cpp.llama_model_n_params(self.model))
        self.sampler = self._sampler()
        self.context: Any = None
        self.shape: tuple[int, ...] = ()

    def _load(self, dtype: Dtype) -> Any:
        config, library = self.config, self.library
        weights = convert_names(initial_weights(config), config.model, "hf", "torch")
        params = library.llama_model_default_params()
        params.n_gpu_layers = 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.gguf")
            write_model(path, "benchmark", config.model, Tensors.of(weights), {"model": "no_vocab"}, None, dtype)
            model = library.llama_model_load_from_file(str(path).encode(), params)
        assert model, "llama.cpp does not load our file"
        return model

    def _sampler(self) -> Any:
        """Its own samplers in a chain that draws from the twins' distribution."""
        sample, library = self.config.sample, self.library
        chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        if not sample.temperature:
            library.llama_sampler_chain_add(chain, library.llama_sampler_init_greedy())
            return chain
        for used, make_sampler in (
            (sample.top_k > 0, lambda: library.llama_sampler_init_top_k(sample.top_k)),
            (sample.temperature != 1, lambda: library.llama_sampler_init_temp(sample.temperature)),
            (sample.top_p < 1, lambda: library.llama_sampler_init_top_p(sample.top_p, 1)),
            (sample.min_p > 0, lambda: library.llama_sampler_init_min_p(sample.min_p, 1)),
            (True, lambda: library.llama_sampler_init_dist(sample.seed)),
        ):
            if used:
                library.llama_sampler_chain_add(chain, make_sampler())
        return chain

    def wait(self, value: Any = None) -> None:
        if self.context:
            self.library.llama_synchronize(self.context)

    def start(self, prompts: np.ndarray) -> None:
        """Prefill an empty KV cache with prompts, in a context that has room for what is generated after them."""
        if prompts.shape != self.shape:
            self._make_context(*prompts.shape)
            self.shape = prompts.shape
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), False)
        self._decode(self.prompts, prompts, 0)

    def extend(self, count: int) -> np.ndarray:
        """Return `count` tokens of each sequence; the logits after the last are not computed."""
        sequences, length = self.shape
        tokens = np.empty((sequences, count), np.int32)
        for position in range(count):
            last = self.next if position else self.prompts
            for row, index in enumerate(last.indices):
                tokens[row, position] = self.library.llama_sampler_sample(self.sampler, self.context, index)
            if position + 1 < count:
                self._decode(self.next, tokens[:, position : position + 1], length + position)
        return tokens

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        self.start(prompts)
        found = [self.library.llama_get_logits_ith(self.context, index) for index in self.prompts.indices]
        return np.stack([np.ctypeslib.as_array(pointer, shape=(SHOWN,)).copy() for pointer in found])

    def generate(self, prompts: np.ndarray) -> tuple[float, float]:
        """As `GeneratingImplementation` says."""
        for count in (CHUNK, self.config.sample.max_tokens):
            times = [time.perf_counter()]
            self.start(prompts)
            times.append(time.perf_counter())
            self.extend(count)
            times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    def device_bytes(self) -> None:
        """It is on a CPU."""

    def _make_context(self, sequences: int, length: int) -> None:
        library = self.library
        if self.context:
            library.llama_free(self.context)
            for batch in (self.prompts, self.next):
                library.llama_batch_free(batch.inner)
        params = library.llama_context_default_params()
        params.n_ctx = sequences * (length + max(CHUNK, self.config.sample.max_tokens))
        params.n_seq_max, params.n_batch = sequences, sequences * length
        params.n_threads = params.n_threads_batch = self.threads
        if self.config.train.precision == "float32":
            params.type_k = params.type_v = library.GGML_TYPE_F32
            params.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = library.llama_init_from_model(self.model, params)
        assert self.context, f"llama.cpp makes no context for {sequences} × {length} tokens"
        self.prompts, self.next = (Batch(library, sequences, tokens) for tokens in (length, 1))

    def _decode(self, batch: "Batch", tokens: np.ndarray, position: int) -> None:
        batch.fill(tokens, position)
        status = self.library.llama_decode(self.context, batch.inner)
        assert status == 0, f"llama_decode returned {status}"
        self.wait()


class Batch:
    """A llama_batch with as many tokens for each sequence, of which the last gets logits."""

    def __init__(self, library: Any, sequences: int, length: int):
        size = sequences * length
        self.inner = library.llama_batch_init(size, 0, 1)
        self.inner.n_tokens = size
        self.tokens, self.positions, counts, wanted = (
            np.ctypeslib.as_array(getattr(self.inner, name), shape=(size,))
            for name in ("token", "pos", "n_seq_id", "logits")
        )
        self.shape = sequences, length
        self.indices = range(length - 1, size, length)
        """Of the tokens that get logits."""
        counts[:] = 1
        wanted[:] = 0
        wanted[self.indices] = 1
        for index in range(size):
            self.inner.seq_id[index][0] = index // length

    def fill(self, tokens: np.ndarray, position: int) -> None:
        """Take tokens, whose first is at a position of each sequence."""
        self.tokens[:] = tokens.ravel()
        self.positions.reshape(self.shape)[:] = np.arange(position, position + self.shape[1])


def check(config: Config, dtype: Dtype) -> None:
    """Check that llama.cpp can be timed with a config.

    Args:
        config: shape of the model, and device.
        dtype: of the matrices.

    Raises:
        UserError: it cannot.
    """
    if config.train.device not in ("auto", "cpu"):
        raise UserError(f"train.device: found {config.train.device!r}, expected cpu to be timed beside llama.cpp")
    model = config.model
    attention = model.n_heads * model.head_dim
    widths = {"model.dim": model.dim, "n_heads × head_dim": attention, "model.ffn_dim": model.ffn_dim}
    for name, found in widths.items() if dtype == "q8_0" else ():
        if found % BLOCK:
            raise UserError(f"{name}: found {found}, expected a multiple of {BLOCK} to be timed in llama.cpp-q8_0")
