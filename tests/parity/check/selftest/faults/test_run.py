"""Faults of a run: batches, checkpoints, execution options and evaluation, each by one wrong value."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from lmcore.data.batches import Tokens
from parity.check.selftest.faults import run
from parity.convert.states import State


def test_only_the_first_call_is_off():
    faulty = run.first_call_off(lambda self, x: x)
    assert [faulty(None, 1.0) for _ in range(3)] == [1 + 1e-9, 1, 1]


def test_a_window_is_read_twice_and_a_batch_begins_late():
    starts = np.array([30, 0, 10, 20])
    faulty = run.windows_twice(lambda self, epoch: starts)
    assert faulty(None, 0).tolist() == [20, 0, 10, 20]
    assert starts[0] == 30, "a copy"
    shifted = run.shifted(lambda array, device: torch.from_numpy(array))
    assert shifted(np.array([[1, 2, 3]]), None).tolist() == [[2, 3, 1]]


def test_moments_are_saved_or_restored_as_zeros_and_counts_stay():
    saved: dict[str, Any] = {}
    run.drops_moments(lambda folder, params, optimizer: saved.update(optimizer))(
        None, {}, {"step": torch.tensor(4), "count": torch.tensor(4.0), "exp_avg.w": torch.ones(2)}
    )
    assert {name: tensor.tolist() for name, tensor in saved.items()} == {"step": 4, "count": 4, "exp_avg.w": [0, 0]}
    state = {"params": 1, "optimizer": {"step": 4, "state": {"mu": jnp.ones(2), "count": jnp.array(4)}}}
    restored = run.zeroes_moments(lambda folder, **wanted: dict(state))(None)["optimizer"]
    assert (restored["step"], int(restored["state"]["count"])) == (4, 4)
    assert restored["state"]["mu"].tolist() == [0, 0]
    count = torch.tensor(4.0)
    run.forgets_count(lambda folder, **wanted: None)(None, optimizer={"count": count, "step": torch.tensor(4)})
    assert float(count) == 0


def test_a_conversion_through_float32_keeps_the_type_and_loses_digits():
    third = np.array([1 / 3])
    state = run.rounds_to_float32(lambda: State("jax", 1, {"w": third}, None))()
    assert state.params["w"].dtype == np.float64
    assert state.params["w"][0] == np.float32(1 / 3) != third[0]


def test_layers_are_rolled_and_parts_of_gradients_lost():
    faulty = run.rolled_layers(lambda step, blocks, x, keys, weights: weights)
    assert faulty(None, None, None, None, {"w": jnp.arange(3)})["w"].tolist() == [2, 0, 1]
    assert run.part_lost(lambda: (5.0, (2.0, 4.0)))() == (5.0, (1.0, 2.0))


def test_a_recomputed_block_has_the_same_values_and_half_the_gradient_of_its_branch():
    x = torch.tensor(2.0, requires_grad=True)
    y = run.half_branch_gradient(lambda step, x: step(x))(lambda x: x + x**2, x)
    y.backward()
    assert (float(y.detach()), float(x.grad)) == (6.0, 1 + 2 * 2 / 2)


def test_an_evaluation_leaves_out_the_end():
    text = Tokens(ids=np.arange(12), documents=1, bytes=12, unknown=0)
    faulty = run.misses_last_window(lambda tokens, seq_len: tokens.ids[-1])
    assert faulty(text, seq_len=4) == 8, "of three windows of at most four targets, the last has three"
    assert faulty(Tokens(ids=np.arange(13), documents=1, bytes=12, unknown=0), seq_len=4) == 12
