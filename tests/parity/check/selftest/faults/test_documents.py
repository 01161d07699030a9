"""Faults of documents in one sequence, each by one wrong value."""

import jax.numpy as jnp
import numpy as np

import jaxlm.model
import torchlm.model
from lmcore.data.conversations import _counted
from lmcore.data.marks import BEGINS, UNCOUNTED, counts, target_ids
from parity.check.selftest.faults import documents

MARKED = np.array([[5 | BEGINS, 6 | UNCOUNTED, 7]], np.int32)


def test_attention_is_not_told_of_documents_in_one_twin_or_in_both():
    faulty = documents.unmasked(lambda *args, **options: (args, options))
    assert faulty(1, 2, documents=3, rate=0.5) == ((1, 2), {"rate": 0.5})
    before = jaxlm.model.causal_attention, torchlm.model.causal_attention
    with documents.unmasked_in_both():
        within = jaxlm.model.causal_attention, torchlm.model.causal_attention
        assert not set(before) & set(within)
    assert (jaxlm.model.causal_attention, torchlm.model.causal_attention) == before


def test_a_document_begins_a_token_late():
    assert documents.late(lambda marked: marked)(jnp.arange(4)[None]).tolist() == [[3, 0, 1, 2]]


def test_all_targets_count():
    assert target_ids(MARKED).tolist() == [[5, -1, 7]]
    assert documents.all_count(target_ids)(MARKED).tolist() == [[5, 6, 7]]
    assert counts(MARKED).sum() == 2
    assert documents.counts_all(counts)(MARKED).sum() == 3


def test_the_users_turns_count_too():
    offsets = [(0, 3), (3, 5), (5, 6)]
    assert _counted(offsets, [(3, 5)]).tolist() == [False, True, False]
    assert documents.users_count(_counted)(offsets, [(3, 5)]).all()
