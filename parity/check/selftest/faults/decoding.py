"""Faults of decoding: the KV cache, the choice of a token, the end of the context and of a sequence."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lmcore.model.quantize import Quantized, dequantize, quantize


def blind_to_itself(causal_mask: Any) -> Any:
    """A decoded token does not attend to its own position."""
    return lambda positions, *rest, **more: causal_mask(positions - int(positions.shape[-1] == 1), *rest, **more)


def late_positions(rope: Any) -> Any:
    """A decoded token is rotated by the position after its own."""
    return lambda self, positions: rope(self, positions + int(positions.shape[1] == 1))


def sees_padding(causal_mask: Any) -> Any:
    """Padding is attended to."""
    return lambda positions, size, pads, **more: causal_mask(positions, size, pads * 0, **more)


def one_length(write: Any) -> Any:
    """All sequences are written to the cache behind the longest of them, as with one length for all."""
    return lambda cached, new, starts: write(cached, new, starts * 0 + starts.max())


def neighbours_options(choose_tokens: Any) -> Any:
    """Each sequence's token is chosen by the options of the sequence before it."""

    def faulty(logits: Any, uniforms: Any, options: Any) -> Any:
        return choose_tokens(
            logits, uniforms, options._replace(**{k: np.roll(v, 1) for k, v in options._asdict().items()})
        )

    return faulty


def per_tensor(quantized_layers: Any) -> Any:
    """The int8 weights of a layer have one scale for all output channels."""

    def faulty(*args: Any) -> Any:
        layers = {}
        for name, quantized in quantized_layers(*args).items():
            whole = quantize(dequantize(quantized, np.dtype(np.float32)).reshape(1, -1))
            layers[name] = Quantized(whole.values.reshape(quantized.values.shape), 0 * quantized.scales + whole.scales)
        return layers

    return faulty


def other_options(change: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Any]:
    """Tokens are chosen with other options than asked for."""

    def make(choose_tokens: Any) -> Any:
        def faulty(logits: Any, uniforms: Any, options: Any) -> Any:
            return choose_tokens(logits, uniforms, replace(options, **change(options)))

        return faulty

    return make


def forgets_newer(write_tokens: Any) -> Any:
    """When the context is full, the newer half is dropped."""
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


def one_stop(init: Any) -> Any:
    """Only the end-of-text token stops a sequence."""

    def faulty(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.stop_ids = frozenset({self.eot_id})

    return faulty


def keeps_previous(latest: Any) -> Any:
    """Each decoded token follows what the cache began with."""
    return lambda tokens, previous, counts: previous
