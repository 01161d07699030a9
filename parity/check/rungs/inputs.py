"""Rungs 1 and 2, the inputs of both twins: the token ids of a batch, and the weights."""

from collections.abc import Iterator
from functools import partial

import ml_dtypes
import numpy as np

from lmcore.config import TokenizerConfig
from lmcore.data.batches import Batches, Tokens
from lmcore.data.chat import CHATML, CHATML_TOKENS, ChatTemplate
from lmcore.data.conversations import conversation, encode_conversations
from lmcore.data.marks import target_ids
from lmcore.data.tokenizer import train
from parity.backends.base import CANONICAL, Pair, Twin
from parity.check.result import Result, identical, judge
from parity.check.rungs.base import Options, training_batches
from parity.convert import names as mapping
from parity.convert.families import fitting
from parity.convert.families.tensors import from_family, to_family
from parity.difference import Difference, difference

__all__ = ["batches", "weights"]


def batches(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 1: both train steps receive the token ids that the shared core drew."""
    differences = []
    for step, batch in enumerate(training_batches(pair, 2)):
        expected = batch.reshape(pair.config.train.grad_accum, -1, batch.shape[1])
        received = pair.each(("received", step), partial(_received, pair, batch))
        for label, ids in zip(pair.labels, received, strict=True):
            differences.append(difference(f"batch {step} in {label}", expected, ids))
    yield judge(1, f"ids of {len(differences) // 2} batches", pair.dtype, differences, 0.0)
    yield _each_token_once(pair)
    if pair.config.data.is_marked:
        yield _assistants_alone(pair)


def _received(pair: Pair, batch: np.ndarray, twin: Twin) -> np.ndarray:
    return pair.loaded(twin).received(batch)


def _each_token_once(pair: Pair) -> Result:
    """Check that each token of a short text is a target once per epoch, but for a rest shorter than a window.

    The text's ids are its positions, so that a batch says which part of the text it is.
    """
    length, sequences, windows = pair.config.train.seq_len, pair.config.train.batch_size, 5
    text = Tokens(ids=np.arange(windows * length + 1), documents=1, bytes=1, unknown=0)
    drawn = Batches(text, seq_len=length, batch_size=sequences, seed=pair.config.train.seed)
    count = -(-2 * windows // sequences)
    targets = np.concatenate([drawn.batch(step)[:, 1:] for step in range(count)])[: 2 * windows]
    differences = []
    for epoch, ids in enumerate(targets.reshape(2, -1)):
        differences.append(difference(f"tokens read in epoch {epoch}", windows * length, len(np.unique(ids))))
    return judge(1, "two epochs, each token once", pair.dtype, differences, 0.0)


def _assistants_alone(pair: Pair) -> Result:
    """Check which tokens of a conversation count: what the assistant says, and the token that ends its turn."""
    inner = TokenizerConfig(kind="bytes", special_tokens=list(CHATML_TOKENS))
    tokenizer, (start, end) = train(inner, ()), CHATML_TOKENS
    said = [("user", "Who is there?"), ("assistant", "A fox."), ("user", "Alone?"), ("assistant", "With an owl.")]
    value = [{"role": role, "content": content} for role, content in said]
    (marked, _, _), *_ = encode_conversations(tokenizer, ChatTemplate(CHATML), conversation(value, "", ""))
    expected = []
    for role, content in said:
        before, own, after = tokenizer.encodings([f"{start}{role}\n", f"{content}{end}", "\n"], special=True)
        expected += [-1] * len(before.ids) + (own.ids if role == "assistant" else [-1] * len(own.ids))
        expected += [-1] * len(after.ids)
    targets = [difference("targets of a conversation", np.array(expected), target_ids(marked.astype(np.int32)))]
    return judge(1, "the assistant's tokens alone count", pair.dtype, targets, 0.0)


def weights(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 2: the same initial weights, and a round trip through every layout that changes no bit."""
    if pair.fresh:
        reference, port = pair.each("initial", lambda twin: twin.initial())
        initial = [identical(name, reference[name], port[name]) for name in reference]
        yield judge(2, "initial weights of each twin", pair.dtype, initial, 0.0)
    if round_trips := _round_trips(pair):
        yield judge(2, "table of names, there and back", pair.dtype, round_trips, 0.0)
    loaded = pair.each("loaded", lambda twin: pair.loaded(twin).params())
    in_models = [
        identical(f"{name} ({label})", pair.start[name], values[name])
        for label, values in zip(pair.labels, loaded, strict=True)
        for name in pair.start
    ]
    yield judge(2, "weights in the models", pair.dtype, in_models, 0.0)


def _round_trips(pair: Pair) -> list[Difference]:
    """Convert the weights to the names of each twin and of Hugging Face and back, in their dtype and in bfloat16.

    On Hugging Face's side they pass through the tensors of the family's file, if the model is of a family.
    """
    model = pair.config.model
    sides = list(dict.fromkeys(twin.backend.side for twin in pair if twin.backend.side != CANONICAL))
    sides.append("hf")
    family = fitting(model)
    differences = []
    for dtype in (pair.start[next(iter(pair.start))].dtype, np.dtype(ml_dtypes.bfloat16)):
        typed = {name: value.astype(dtype) for name, value in pair.start.items()}
        for side in sides:
            converted = mapping.convert_names(typed, model, CANONICAL, side)
            if side == "hf" and family:
                converted = dict(from_family(to_family(converted, family, model), family, model))
            back = mapping.convert_names(converted, model, side, CANONICAL)
            differences += [identical(f"{name} ({dtype}, {side})", typed[name], back[name]) for name in typed]
    return differences
