"""The options of a run that takes seconds, shared by tests of whole runs."""

from typing import Any

__all__ = ["TINY"]

TINY: dict[str, Any] = {
    "model.dim": 8,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.max_seq_len": 16,
    "data.stories": 20,
    "tokenizer.kind": "bytes",
    "train.device": "cpu",
    "train.cpu_devices": 1,
    "train.batch_size": 2,
    "log.every": 1,
    "eval.windows": 2,
}
