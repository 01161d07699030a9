"""Rung 8, int8 weights: the same values and scales in both twins, and a decoding that computes with just those.

Cached decoding with them is compared with a full forward pass of an ordinary model whose weights are what values and
scales stand for: in the twin's own framework, without adapters and with an output head of its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from lmcore.model.lora import is_adapter
from lmcore.model.quantize import Quantized, dequantize
from parity.backends import make_twin
from parity.backends.base import Pair, Twin
from parity.check.result import Result, distributions, identical, judge
from parity.difference import difference

__all__ = ["int8"]

PROMPT, DECODED = 5, 6
"""Tokens of the prefill, and those decoded after it, where the context is long enough."""


def int8(pair: Pair) -> Iterator[Result]:
    """Compare the int8 weights of both twins, and their logits with those of a full forward pass."""
    if pair.dtype == "float16":
        return  # where a generator refuses int8 weights
    layers = pair.each("int8 layers", lambda twin: pair.loaded(twin).int8_layers())
    differences = [
        identical(f"{name}, {kind}", *(getattr(quantized.get(name, EMPTY), kind) for quantized in layers))
        for name in dict.fromkeys([*layers[0], *layers[1]])
        for kind in Quantized._fields
    ]
    yield judge(8, f"int8 values and scales of {len(layers[0])} layers", pair.dtype, differences, 0.0)
    total = min(PROMPT + DECODED, pair.context)
    rows = pair.rows(1, total)
    decoded = pair.each("int8, cached", partial(_decode, pair, rows=rows))
    full = [
        pair.ask(twin, "int8, full forward", partial(_full, pair, rows=rows, layers=quantized))
        for twin, quantized in zip(pair, layers, strict=True)
    ]
    names = [f"{label}, int8 weights, cache against full forward" for label in pair.labels]
    compared = [*zip(names, decoded, full, strict=True), (f"{' against '.join(pair.labels)}, int8 weights", *decoded)]
    for what, left, right in compared:
        logits = [difference("logits", left, right)]
        if pair.dtype == "bfloat16":
            yield distributions(8, what, pair.dtype, left, right, logits)
        else:
            yield judge(8, what, pair.dtype, logits, "logits")


EMPTY = Quantized(np.zeros((0, 0), np.int8), np.zeros(0, np.float32))
"""Stands for a layer that a twin lacks."""


def _decode(pair: Pair, twin: Twin, rows: np.ndarray) -> np.ndarray:
    prompt, pads = min(PROMPT, rows.shape[1] - 1), np.zeros(len(rows), np.int32)
    return pair.loaded(twin).decode(rows, pads, prompt, rows.shape[1] + 3, "int8")[0]


def _full(pair: Pair, twin: Twin, rows: np.ndarray, layers: dict[str, Quantized]) -> np.ndarray:
    """Return the logits of all decoded tokens by the full forward pass of an ordinary model with these weights."""
    config = twin.engine.config
    # In bfloat16 the weights would be rounded once more.
    precision = "float32" if pair.dtype == "bfloat16" else pair.dtype
    model, train = (
        replace(config.model, tie_embeddings=False, lora=None),
        replace(config.train, precision=precision),
    )
    config = replace(config, model=model, train=train)
    others = {name: array for name, array in pair.start.items() if not is_adapter(name)}
    dtype = others["embed_tokens.weight"].dtype
    kernels = {f"{name}.kernel": dequantize(quantized, dtype).T for name, quantized in layers.items()}
    ordinary = make_twin(twin.backend.framework, config)
    ordinary.load(others | {name: np.ascontiguousarray(kernel) for name, kernel in kernels.items()})
    return ordinary.logits(rows)[0, min(PROMPT, rows.shape[1] - 1) - 1 :]
