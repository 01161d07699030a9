"""A lower bound on the memory of a model, so that one that cannot fit is refused before anything is allocated."""

import os

from lmcore.config import GATED, Config, ModelConfig
from lmcore.errors import UserError
from lmcore.hardware import local_processes, memory_bytes
from lmcore.model.lora import adapter_size
from lmcore.optim.table import OPTIMIZERS

__all__ = ["check_batch", "check_memory", "parameter_parts", "state_bytes"]


def parameter_parts(model: ModelConfig) -> dict[str, int]:
    """Return config fields -> number of matrix elements that they determine; vectors, which are few, are left out."""
    queries, keys = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    mlp = (3 if model.mlp in GATED else 2) * model.dim * model.ffn_dim
    return {
        "model.vocab_size or model.dim": (1 if model.tie_embeddings else 2) * model.vocab_size * model.dim,
        "model.previous_tokens": model.previous_tokens * model.vocab_size * model.dim,
        "model.n_layers, model.dim or model.ffn_dim": model.n_layers * (2 * model.dim * (queries + keys) + mlp),
        "model.max_seq_len or model.dim": model.max_seq_len * model.dim if model.position == "learned" else 0,
    }


def state_bytes(config: Config) -> int:
    """Return a lower bound of the bytes that a checkpoint takes: trained weights and optimizer state."""
    trained = adapter_size(config.model) if config.model.lora else sum(parameter_parts(config.model).values())
    return trained * _copies(config) * _item_bytes(config)


def _item_bytes(config: Config) -> int:
    return 8 if config.train.precision == "float64" else 4


def _copies(config: Config) -> int:
    """Return how many arrays of a matrix's size a checkpoint has of it: the weights, and what the optimizer keeps."""
    return 1 + sum(kind not in ("rows", "columns") for kind in OPTIMIZERS[config.optim.name].matrix)


def check_memory(config: Config, *, training: bool) -> None:
    """Check that a model on the CPU fits into the machine's memory.

    This is a lower bound: it counts the weights, the position table and, with `training`, the optimizer state.
    Gradients and activations take more, but depend on the framework. Of several processes on this host, each holds the
    whole, or its shard.

    Raises:
        UserError: the lower bound exceeds the memory of the machine.
    """
    model = config.model
    size, copies = _item_bytes(config), _copies(config) if training else 1
    frozen = model.lora is not None
    parts = {fields: count * (1 if frozen else copies) * size for fields, count in parameter_parts(model).items()}
    parts["model.lora.rank or model.lora.targets"] = adapter_size(model) * copies * size
    width = {"rope": model.head_dim, "sinusoidal": model.dim}.get(model.position, 0)
    parts["model.max_seq_len"] = model.max_seq_len * width * 8
    needed, available = int(sum(parts.values()) * _copies_on_host(config)), memory_bytes()
    if needed > available:
        largest = max(parts, key=lambda fields: parts[fields])
        what = "weights and optimizer state" if training else "weights"
        raise UserError(
            f"model: found one that needs at least {_gigabytes(needed)} for {what}, expected at most the "
            f"{_gigabytes(available)} of memory in this machine; lower {largest}"
        )


def _copies_on_host(config: Config) -> float:
    """Return at least how many times a host's processes hold a model: a fraction where it is sharded over several."""
    local, count = local_processes(), int(os.environ.get("WORLD_SIZE", "1"))
    sizes = config.parallel.fsdp, config.parallel.tensor
    if sizes == (1, 1):
        return float(local)
    holders = count if -1 in sizes else sizes[0] * sizes[1]
    return max(local / max(local, count), local / holders)


def check_batch(config: Config) -> None:
    """Check that one batch of token ids, which is built in main memory for every device, fits into it.

    Raises:
        UserError: the batch exceeds the memory of the machine.
    """
    train = config.train
    needed, available = train.batch_size * (train.seq_len + 1) * 4, memory_bytes()
    if needed > available:
        size = f"{train.batch_size:,}, which takes {_gigabytes(needed)} for one batch of token ids"
        raise UserError(
            f"train.batch_size: found {size}, expected at most the {_gigabytes(available)} of memory in this machine; "
            f"lower train.batch_size or train.seq_len"
        )


def _gigabytes(count: int) -> str:
    gigabytes = count / 1e9
    return f"{gigabytes:,.1f} GB" if gigabytes < 1e6 else f"{gigabytes:.1e} GB"
