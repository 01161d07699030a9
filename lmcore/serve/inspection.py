"""What the page asks beside the API: facts about the model, and the attention weights of a text.

`GET /info` answers:

    {"model": "quickstart",          id of the model, for the field "model" of requests
     "package": "jaxlm",             the twin that serves it
     "parameters": 1064960,
     "n_layers": 4, "n_heads": 4,
     "vocab_size": 4096,
     "context": 256,                 maximum sum of prompt and generated tokens
     "chat": false,                  whether it has a chat template, so that /v1/chat/completions works
     "device": "cpu",
     "slots": 8,                     sequences that are decoded together
     "max_attention": 256,           maximum number of tokens of /attention
     "api_key": false,               whether requests need "Authorization: Bearer KEY"
     "sampling": {"prompt": "Once upon a time", "max_tokens": 256, "temperature": 0.7, "top_k": 0, "top_p": 1.0,
                  "min_p": 0.0, "seed": 0}}      the run's own defaults for samples

`POST /attention` takes `{"prompt": "text" or [token ids], "layer": 0, "head": 0}` and answers:

    {"tokens": ["Once", " upon"],    text of each token; the prompt begins as for /v1/completions
     "layer": 0, "head": 0,
     "weights": [[1.0, 0.0], [0.25, 0.75]]}      query position × key position, rounded to 4 decimals

Errors are `{"error": {"message": …, "type": …, "param": …, "code": …}}` with status 4xx or 5xx, as of the API.
"""

from typing import Any

import numpy as np

from lmcore.errors import shown
from lmcore.serve.errors import ApiError
from lmcore.serve.requests import AttentionRequest
from lmcore.serve.scheduler import Scheduler
from lmcore.serve.served import Served

__all__ = ["MAX_ATTENTION", "attention", "info"]

MAX_ATTENTION = 256
"""Maximum number of tokens of a text whose attention weights are returned."""
SAMPLING = ("prompt", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")


def info(served: Served, slots: int, has_key: bool) -> dict[str, Any]:
    """Return the facts about a model.

    Args:
        served: the model.
        slots: number of sequences that are decoded together.
        has_key: whether requests need an API key.
    """
    return {
        "model": served.name,
        "package": served.package,
        "parameters": served.parameters,
        "n_layers": served.model.n_layers,
        "n_heads": served.model.n_heads,
        "vocab_size": served.model.vocab_size,
        "context": served.context,
        "chat": served.template is not None,
        "device": served.device,
        "slots": slots,
        "max_attention": min(MAX_ATTENTION, served.context),
        "api_key": has_key,
        "sampling": {name: getattr(served.sampling, name) for name in SAMPLING},
    }


async def attention(served: Served, scheduler: Scheduler, request: AttentionRequest) -> dict[str, Any]:
    """Return the attention weights of one head over a text.

    Args:
        served: the model.
        scheduler: asks the twin for them.
        request: text, layer and head.

    Raises:
        ApiError: the text is too long, or there is no such layer or head.
    """
    for name, count in (("layer", served.model.n_layers), ("head", served.model.n_heads)):
        if getattr(request, name) >= count:
            raise ApiError(400, f"{name}: found {shown(getattr(request, name), 80)}, expected less than {count}", name)
    (prompt,) = served.encode(request.prompt)
    limit = min(MAX_ATTENTION, served.context)
    if len(prompt.ids) > limit:
        raise ApiError(400, f"prompt: found {len(prompt.ids)} tokens, expected at most {limit}", "prompt")
    tokens = np.array(prompt.ids, np.int32)
    heads = await scheduler.call(lambda slots: np.asarray(slots.attention(tokens, request.layer)))
    weights = heads[request.head].astype(np.float64)
    if not np.isfinite(weights).all():
        raise ApiError(500, "the model gives NaN: its weights are not finite; serve another checkpoint")
    return {
        "tokens": [served.texts.text_of(token) for token in prompt.ids],
        "layer": request.layer,
        "head": request.head,
        "weights": weights.round(4).tolist(),
    }
