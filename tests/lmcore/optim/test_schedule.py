"""The learning rate at exact steps of every shape, and its bounds at all others."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmcore.config import Config, OptimConfig, TrainConfig
from lmcore.optim.schedule import learning_rate

SHAPES = ("cosine", "linear", "constant", "wsd")


def rates(schedule: str, steps: int = 12, warmup: int = 4, lr: float = 1.0, floor: float = 0.0, **more) -> list[float]:
    optim = OptimConfig(schedule=schedule, lr=lr, min_lr_ratio=floor, warmup_steps=warmup, **more)
    config = Config(optim=optim, train=TrainConfig(steps=steps))
    return [learning_rate(config, step) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "more", "decay"),
    [
        ("cosine", {}, [0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(8)]),
        ("linear", {}, [1 - i / 8 for i in range(8)]),
        ("constant", {}, [1.0] * 8),
        ("wsd", {"decay_fraction": 1 / 3}, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ("wsd", {"decay_fraction": 0.0}, [1.0] * 8),
        ("wsd", {"decay_fraction": 1.0}, [1 - i / 8 for i in range(8)]),  # begins where the warmup ends, not before
    ],
)
def test_every_shape_at_every_step(schedule: str, more: dict[str, float], decay: list[float]):
    assert rates(schedule, **more) == pytest.approx([0.25, 0.5, 0.75, 1.0, *decay], abs=1e-12)


def test_shapes_differ():
    assert len({tuple(rates(schedule)) for schedule in SHAPES}) == len(SHAPES)


def test_the_floor_is_a_share_of_the_peak():
    for schedule in SHAPES:
        bare, raised = rates(schedule), rates(schedule, lr=2.0, floor=0.25)
        assert raised[:4] == [0.5, 1.0, 1.5, 2.0], "the warmup has none"
        assert raised[4:] == pytest.approx([2 * (0.25 + 0.75 * rate) for rate in bare[4:]], abs=1e-12)


def test_cosine_is_symmetric_about_its_middle():
    decay = [*rates("cosine", steps=24, warmup=4)[4:], 0.0]  # the rate at step 24 would be the floor
    assert [a + b for a, b in zip(decay, decay[::-1])] == pytest.approx([1.0] * 21, abs=1e-12)
    straight = [0.9**i for i in range(21)]
    assert [a + b for a, b in zip(straight, straight[::-1])] != pytest.approx([1.0] * 21, abs=1e-2)


def test_wsd_is_stable_then_falls_in_equal_parts():
    found = rates("wsd", steps=100, warmup=10, decay_fraction=0.3)
    assert set(found[9:71]) == {1.0}
    falls = [a - b for a, b in zip(found[70:], [*found[71:], 0.0])]
    assert falls == pytest.approx([1 / 30] * 30, abs=1e-12)


@pytest.mark.parametrize("schedule", SHAPES)
def test_a_run_of_one_step_takes_the_peak(schedule: str):
    assert rates(schedule, steps=1, warmup=0, lr=3e-3) == [3e-3]


@pytest.mark.parametrize("schedule", SHAPES)
def test_the_default_warmup_is_a_twentieth_and_may_be_none(schedule: str):
    train = TrainConfig(steps=40)
    optim = OptimConfig(schedule=schedule, lr=1.0)
    assert [learning_rate(Config(optim=optim, train=train), step) for step in range(2)] == [0.5, 1.0]
    assert rates(schedule, steps=40, warmup=0)[0] == 1.0


@given(
    schedule=st.sampled_from(SHAPES),
    steps=st.integers(1, 300),
    warmup=st.integers(0, 299),
    lr=st.floats(0, 10),
    floor=st.floats(0, 1),
    fraction=st.floats(0, 1),
)
def test_the_rate_rises_to_its_peak_at_the_end_of_warmup_then_never_rises_nor_passes_the_floor(
    schedule, steps, warmup, lr, floor, fraction
):
    assume(warmup < steps)
    found = rates(schedule, steps, warmup, lr, floor, decay_fraction=fraction)
    rounding = 1e-12 * lr
    assert all(0 <= rate <= lr + rounding for rate in found)
    assert found[0] > 0 or lr < 1e-300, "the first step is not wasted"
    assert found[max(0, warmup - 1)] == pytest.approx(lr, abs=rounding)
    assert found[warmup] == pytest.approx(lr, abs=rounding)
    assert found[:warmup] == sorted(found[:warmup])
    assert all(later <= earlier + rounding for earlier, later in zip(found[warmup:], found[warmup + 1 :]))
    assert min(found[warmup:]) >= floor * lr - rounding
