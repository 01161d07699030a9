"""Measure a causal language model of `transformers` for `evaluate --baseline`: see `lmcore.run.baseline`.

`python -m torchlm.baseline` reads a request as JSON from standard input and writes what it measured to standard output.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lmcore.data.batches import Tokens, eval_windows
from lmcore.errors import UserError, command
from lmcore.run.baseline import Measured, Request, as_stream
from torchlm.device import choose_device, to_device
from torchlm.math_kernels import choose_math_kernels

__all__ = ["encode", "load", "main", "measure"]

HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer."""
LOGITS = 2**27
"""Maximum number of logits at a time: half a gigabyte in float32."""


def load(name: str) -> tuple[Any, Any]:
    """Return a model, in float32, and its tokenizer, from a local folder or the hub.

    Raises:
        UserError: there is no such model, or it cannot be fetched.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    local = Path(name).is_dir()
    only_local = local or not _answers(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=only_local)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, local_files_only=only_local
        )
    except Exception as error:  # what transformers raises for a missing or broken file depends on the kind of model
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)
        why = (
            f"cannot be loaded ({reason})" if local else "is not a local folder, and cannot be downloaded from the hub"
        )
        raise UserError(
            f"{name!r} {why}; name a local folder with config.json, model.safetensors and tokenizer.json"
        ) from error
    return model.eval(), tokenizer


def _answers(name: str) -> bool:
    """Return whether the hub answers: where it doesn't, transformers would retry for half a minute per file."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        pass  # it answers; if it refuses, transformers says why
    except Exception:  # the error's class depends on which HTTP client is installed
        return False
    return True


def encode(tokenizer: Any, eos_id: int, texts: Sequence[tuple[str, bool]]) -> Tokens:
    """Encode documents as one stream of token ids; each begins with the bos token, where it differs from eos.

    Text never becomes a special token: a document that spells one out is encoded by its characters.

    Args:
        tokenizer: from transformers.
        eos_id: token id that ends a document.
        texts: (text, whether it ends a document).
    """
    bos_id = None if tokenizer.bos_token_id in (None, eos_id) else int(tokenizer.bos_token_id)
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    before = [] if bos_id is None else [bos_id]
    documents = []
    for text, ends in texts:
        ids = tokenizer(text, **options)["input_ids"]
        documents.append(np.array([*before, *ids, *([eos_id] if ends else [])], np.uint32))
    size = sum(len(text.encode()) for text, _ in texts)
    # gpt2, which encodes every text, names its eos_token as its unk_token too.
    unk_id = None if tokenizer.unk_token_id in (eos_id, bos_id) else tokenizer.unk_token_id
    return as_stream(documents, eos_id, unk_id, size, tuple(before))


@torch.inference_mode()
def measure(request: Request) -> Measured:
    """Sum a model's losses over a text, in windows as in `lmcore.run.baseline`.

    Raises:
        UserError: the model cannot be loaded, or has no token that ends a document.
    """
    device = choose_device(request.device)
    choose_math_kernels()
    model, tokenizer = load(request.model)
    eos_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else model.config.eos_token_id
    if not isinstance(eos_id, int):
        raise UserError(f"{request.model!r} has no single eos_token, which must end a document; set it in the folder")
    stream = encode(tokenizer, eos_id, request.documents)
    vocab_size, highest = model.get_output_embeddings().weight.shape[0], int(stream.ids.max())
    if highest >= vocab_size:
        raise UserError(f"{request.model!r}: its tokenizer gives id {highest}, and the model has {vocab_size} tokens")
    context = min(request.context, getattr(model.config, "max_position_embeddings", None) or request.context)
    width = min(context, len(stream) - 1)
    batch = max(1, min(request.batch_size, LOGITS // (width * vocab_size)))
    model.to(device)
    nats, count = 0.0, 0
    for inputs, targets in eval_windows(stream, seq_len=width, batch_size=batch, windows=0):
        logits = model(to_device(inputs, device), use_cache=False).logits.float()
        wanted = to_device(targets, device)
        nats += float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction="sum"))
        count += int((wanted != -1).sum())
    size = sum(p.numel() for p in model.parameters())
    return Measured(parameters=size, context=context, targets=count, unknown=stream.unknown, nats=nats)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Answer the request on standard input."""
    request = Request(**json.load(sys.stdin))
    print(json.dumps(asdict(measure(request))))


if __name__ == "__main__":
    sys.exit(main())
