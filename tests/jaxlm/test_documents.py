"""Documents packed into one sequence are computed as if each were a sequence by itself."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import attention as plain
from jaxlm.documents import document_starts, read_batch, target_count
from jaxlm.engine import Engine
from jaxlm.fast import attention as fast
from jaxlm.loss import loss_sum
from lmcore.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from lmcore.data.marks import BEGINS, UNCOUNTED

BOUNDS = [0, 6, 12, 18]
"""Beginnings of the documents of a row; the last one has no target of its own."""
SIZES = {"dim": 12, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "ffn_dim": 20, "max_seq_len": 19}


def engine_of(model: dict[str, Any] | None = None, tensor: int = 1, **train: Any) -> Engine:
    fields = {"seq_len": 18, "batch_size": 2, "precision": "float64", "device": "cpu", "cpu_devices": tensor, **train}
    sizes = ModelConfig(vocab_size=31, **SIZES | (model or {}))
    parallel = ParallelConfig(tensor=tensor)
    data = DataConfig(document_mask=True)
    engine = Engine(Config(model=sizes, data=data, parallel=parallel, train=TrainConfig(**fields)))
    engine.init()
    engine.state = replace(engine.state, params=jax.tree.map(lambda p: 8 * p, engine.state.params))
    return engine


def packed_row(seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(31, size=(1, 19)).astype(np.int32)
    ids[0, BOUNDS] |= BEGINS
    return ids


def loss_and_gradients(engine: Engine, rows: np.ndarray) -> Any:
    """Loss and gradients, summed over rows."""

    def total(params: Any) -> jax.Array:
        inputs, targets, documents = read_batch(engine.config.data, jnp.asarray(rows))
        return loss_sum(engine.model(params), inputs, targets, None, documents)

    return jax.jit(jax.value_and_grad(total))(engine.state.params)


def test_a_packed_row_is_its_documents_one_by_one() -> None:
    engine, row = engine_of({"position": "learned", "previous_tokens": 2}), packed_row()
    by_themselves = np.concatenate([row[:, first : first + 7] & ~BEGINS for first in BOUNDS[:-1]])
    packed, alone = loss_and_gradients(engine, row), loss_and_gradients(engine, by_themselves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), packed, alone)
    late = np.roll(row & BEGINS, 1) | (row & ~BEGINS)
    for control in (row & ~BEGINS, late):
        targets = control[:, 1:] & ~BEGINS
        assert not np.isclose(engine.eval_step(control[:, :-1], targets)[0], alone[0], rtol=1e-4)


@pytest.mark.parametrize(("block", "most"), [(128, 8), (4, 8), (4, 2)])
def test_attention_is_masked_by_documents_in_every_form(block: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, in blocks of queries, and in turns within each block."""
    monkeypatch.setattr(fast, "QUERY_BLOCK", block)
    monkeypatch.setattr(fast, "MAX_BLOCKS", most)
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(np.random.default_rng(n).normal(size=(1, 18, 2, 4))) for n in range(3))
        starts = document_starts(jnp.asarray(packed_row()[:, :-1]))
        for form in (plain.causal_attention, fast.causal_attention):
            packed = form(q, k, v, documents=starts)
            for first in BOUNDS[:-1]:
                own = slice(first, first + 6)
                alone = plain.causal_attention(q[:, own], k[:, own], v[:, own])
                np.testing.assert_allclose(packed[:, own], alone, rtol=1e-12, atol=1e-14)


def test_a_step_is_the_same_however_it_is_computed() -> None:
    batch = np.concatenate([packed_row(), packed_row(1)])
    batch[0, 3:9] |= UNCOUNTED  # so that the halves of the batch count differently
    other = engine_of({"scan_layers": True}, tensor=2, remat=True, grad_accum=2)
    expected, found = (engine.train_step(batch, 0.0) for engine in (engine_of(), other))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_a_step_divides_by_the_targets_that_count() -> None:
    batch = np.concatenate([packed_row(), packed_row(1)])
    batch[0, 3:9] |= UNCOUNTED
    engine = engine_of()
    total, count = engine.eval_step(batch[:, :-1], np.where(batch[:, 1:] & UNCOUNTED, -1, batch[:, 1:] & ~BEGINS))
    assert int(count) == 2 * 18 - 6
    np.testing.assert_allclose(engine.train_step(batch, 0.0)["loss"], total / count, rtol=1e-12)
    assert target_count(replace(engine.config.data, document_mask=False), jnp.asarray(batch)[None]) == 36
    assert int(target_count(engine.config.data, jnp.asarray(batch | UNCOUNTED)[None])) == 1, "never zero"


def test_every_token_knows_where_its_document_begins() -> None:
    assert document_starts(jnp.asarray(packed_row())).tolist() == [[0] * 6 + [6] * 6 + [12] * 6 + [18]]
