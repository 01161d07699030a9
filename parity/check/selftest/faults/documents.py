"""Faults of documents in one sequence: the mask between them, and the targets that count."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lmcore.data.marks import token_ids
from parity.check.selftest.faults import patch


def unmasked(attend: Any) -> Any:
    """A query also attends to the documents before its own."""
    return lambda *args, documents=None, **options: attend(*args, **options)


def late(document_starts: Any) -> Any:
    """The first token of a document belongs to the one before."""

    def faulty(marked: Any) -> Any:
        import jax.numpy as jnp

        return document_starts(jnp.roll(marked, 1, axis=1))

    return faulty


def all_known(call: Any) -> Any:
    """The tokens before a document's first belong to it."""
    return lambda self, x, before, positions: call(self, x, before, positions + before.shape[-1])


@contextmanager
def unmasked_in_both() -> Iterator[None]:
    """Neither twin masks documents, as if shared code had lost where they begin."""
    with ExitStack() as stack:
        for package in ("jaxlm", "torchlm"):
            stack.enter_context(patch(f"{package}.model.causal_attention", unmasked)())
        yield


def users_count(counted: Any) -> Any:
    """Of a conversation, every token counts, also what the user has written."""
    return lambda offsets, spans: counted(offsets, [(0, offsets[-1][1])])


def all_count(target_ids: Any) -> Any:
    """Every token is a target of the loss."""
    return token_ids


def counts_all(counts: Any) -> Any:
    """The loss is divided by the number of all targets."""
    return lambda marked: counts(token_ids(marked))
