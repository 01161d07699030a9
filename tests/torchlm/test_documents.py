"""Documents packed into one sequence are computed as if each were a sequence by itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmcore.config import Config, DataConfig, ModelConfig, TrainConfig
from lmcore.data.marks import BEGINS, UNCOUNTED
from torchlm.documents import document_starts, read_batch, target_count
from torchlm.engine import Engine
from torchlm.fast import attention as fast
from torchlm.loss import loss_sum

BOUNDS = [0, 5, 6, 13, 19]
"""Beginnings of the documents of a row, and its end; one document is a single token."""
SIZES = {"dim": 12, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 20, "max_seq_len": 19}


def engine_of(model: dict[str, Any] | None = None, **train: Any) -> Engine:
    fields = {"seq_len": 18, "batch_size": 2, "precision": "float64", "device": "cpu", "cpu_devices": 1, **train}
    sizes = ModelConfig(vocab_size=31, **SIZES | (model or {}))
    engine = Engine(Config(model=sizes, data=DataConfig(document_mask=True), train=TrainConfig(**fields)))
    engine.init()
    for p in engine.state.model.parameters():
        p.data *= 8
    return engine


def packed_row(seed: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(31, size=(1, BOUNDS[-1])).astype(np.int32)
    ids[0, BOUNDS[:-1]] |= BEGINS
    return ids


def losses_and_gradients(engine: Engine, rows: list[np.ndarray]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients summed over rows; a target that begins a document is read with the row before it."""
    model = engine.state.model.train()
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        inputs, targets, documents = read_batch(engine.config.data, torch.from_numpy(row))
        total = total + loss_sum(model, inputs, targets, None, documents)
    total.backward()
    return total.detach(), [p.grad.clone() for p in model.parameters()]


def by_themselves(row: np.ndarray) -> list[np.ndarray]:
    """Every document of a row alone, with the target after its last token."""
    ends = [*(end + 1 for end in BOUNDS[1:-1]), BOUNDS[-1]]
    return [row[:, first:end] & ~BEGINS for first, end in zip(BOUNDS[:-1], ends, strict=True)]


@pytest.mark.parametrize("part", [{}, {"position": "learned"}, {"position": "sinusoidal"}, {"previous_tokens": 2}])
@pytest.mark.parametrize("block", [4, 128])
def test_a_packed_row_is_its_documents_one_by_one(part: dict, block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fast, "QUERY_BLOCK", block)
    engine, row = engine_of(part), packed_row()
    packed, alone = losses_and_gradients(engine, [row]), losses_and_gradients(engine, by_themselves(row))
    torch.testing.assert_close(packed, alone, rtol=1e-11, atol=1e-12)
    late = np.roll(row & BEGINS, 1) | (row & ~BEGINS)
    for control in (row & ~BEGINS, late):
        assert not torch.isclose(losses_and_gradients(engine, [control])[0], alone[0], rtol=1e-4)


def test_the_plain_form_is_masked_by_documents_too():
    engine, row = engine_of(), packed_row()
    expected = losses_and_gradients(engine, [row])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torchlm.model.causal_attention", fast.plain_attention)
        torch.testing.assert_close(losses_and_gradients(engine, [row]), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("how", [{"remat": True}, {"cpu_devices": 2}, {"grad_accum": 2}, {"dropout_masks": "threefry"}])
def test_a_step_is_the_same_however_it_is_computed(how: dict[str, Any]):
    batch = np.concatenate([packed_row(), packed_row(1)])
    batch[0, 3:9] |= UNCOUNTED  # so that the halves of the batch count differently
    plain, other = engine_of(), engine_of(**how)
    expected, found = (e.train_step(batch, 0.0) for e in (plain, other))
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=0)


def test_a_step_divides_by_the_targets_that_count():
    batch = np.concatenate([packed_row(), packed_row(1)])
    batch[0, 3:9] |= UNCOUNTED
    engine = engine_of()
    total, count = engine.eval_step(batch[:, :-1], np.where(batch[:, 1:] & UNCOUNTED, -1, batch[:, 1:] & ~BEGINS))
    assert int(count) == 2 * 18 - 6
    torch.testing.assert_close(engine.train_step(batch, 0.0)["loss"], total / count, rtol=1e-12, atol=0)
    assert target_count(replace(engine.config.data, document_mask=False), torch.from_numpy(batch)[None]) == 36
    assert int(target_count(engine.config.data, torch.from_numpy(batch | UNCOUNTED)[None])) == 1, "never zero"


def test_every_token_knows_where_its_document_begins():
    starts = document_starts(torch.from_numpy(packed_row()))
    assert starts.tolist() == [[0] * 5 + [5] + [6] * 7 + [13] * 6]
