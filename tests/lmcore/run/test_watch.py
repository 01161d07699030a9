"""Skipped updates are counted wherever they fall, and a spike is a loss far above those before it."""

import math

import pytest

from lmcore.run.watch import FIRST, MAX_PENDING, SPIKE, WINDOW, Watch

STEADY = [2.0, 2.1, 1.9, 2.05, 1.95] * 3


def reported(watch: Watch, step: int, loss: float, *, counts: bool = False) -> tuple[dict, list[str]]:
    row = {"step": step, "loss": loss}
    return row, watch.report(row, counts)


def rows(losses: list[float]) -> list[dict]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


def test_skipped_updates_are_counted_and_named_once():
    watch = Watch(skipped=2)
    for step, flag in enumerate([False, True, True, False, True], 1):
        watch.observe(step, {"loss": 1.0, "skipped": flag})
    row, messages = reported(watch, 5, math.nan, counts=True)
    assert row["skipped_steps"] == watch.skipped == 5
    assert messages == ["loss or gradient not finite: skipped the update of step 2, 3, 5; 5 skipped so far"]
    assert watch.in_a_row == 1
    assert reported(watch, 6, 1.0, counts=True) == ({"step": 6, "loss": 1.0, "skipped_steps": 5}, [])


def test_nothing_is_counted_where_nothing_can_be_skipped():
    watch = Watch()
    watch.observe(1, {"loss": 1.0})
    assert reported(watch, 1, 1.0) == ({"step": 1, "loss": 1.0}, [])


def test_flags_are_left_on_the_device_and_not_for_ever():
    class Flag:
        read = 0

        def __bool__(self) -> bool:
            Flag.read += 1
            return True

    watch = Watch()
    for step in range(1, MAX_PENDING):
        watch.observe(step, {"skipped": Flag()})
    assert Flag.read == 0
    watch.observe(MAX_PENDING, {"skipped": Flag()})
    assert Flag.read == watch.skipped == watch.in_a_row == MAX_PENDING


def test_a_spike_is_logged_with_its_size_and_does_not_hide_the_next():
    watch = Watch(rows(STEADY))
    for step in (16, 17):
        row, [message] = reported(watch, step, 4.0)
        assert row["loss_spike"] == pytest.approx(2.0 / (1.4826 * 0.05), rel=0.4)
        assert message == f"step {step}: loss 4.000 is a spike; the median was 2.000"
    assert reported(watch, 18, 2.05)[1] == []


@pytest.mark.parametrize("loss", [2.2, 0.1, math.nan])
def test_a_loss_within_the_noise_below_it_or_not_finite_is_no_spike(loss: float):
    row, messages = reported(Watch(rows(STEADY)), 16, loss)
    assert "loss_spike" not in row
    assert messages == []


def test_a_loss_that_hardly_moves_or_has_just_begun_has_no_spikes():
    assert reported(Watch(rows([2.0] * 20)), 21, 2.0 * (1 + 0.9 * SPIKE * 0.02))[1] == []
    assert reported(Watch(rows([2.0] * 20)), 21, 2.0 * (1 + 1.1 * SPIKE * 0.02))[1] != []
    assert reported(Watch(rows(STEADY[: FIRST - 1])), FIRST, 9.0)[1] == []


def test_a_resumed_run_sees_what_the_unbroken_one_sees():
    losses = [3 - step / 40 + (step % 7) / 50 for step in range(WINDOW + 20)]
    losses[5] = math.nan
    unbroken = Watch()
    for step, loss in enumerate(losses, 1):
        reported(unbroken, step, loss)
    resumed = Watch(rows(losses))
    assert reported(resumed, 99, 9.0) == reported(unbroken, 99, 9.0)
