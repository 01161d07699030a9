"""What all backends share: the pair and its answers, the config of a check, and weights moved by one ulp."""

from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import Config, TrainConfig
from lmcore.optim.schedule import learning_rate
from parity.backends import framework_settings
from parity.backends.base import Pair, check_config, train
from parity.backends.torch import TorchTwin
from parity.check.selftest.mutants import odd_config


def test_a_config_is_checked_in_small_batches_with_nothing_that_only_speeds_up():
    config = Config(train=TrainConfig(batch_size=64, seq_len=256, remat=True, compile=True, cpu_devices=8))
    found = check_config(config, "bfloat16").train
    assert (found.batch_size, found.grad_accum, found.seq_len) == (4, 2, 32)
    assert (found.remat, found.compile, found.cpu_devices) == (False, False, 1)
    assert (found.precision, found.dropout_masks) == ("bfloat16", "threefry")
    assert check_config(replace(config, train=replace(config.train, seq_len=9)), "float32").train.seq_len == 9


class Other(TorchTwin):
    backend = replace(TorchTwin.backend, framework="other")


@pytest.fixture
def pair():
    config = odd_config()
    with framework_settings():
        twins = TorchTwin(config), Other(config)
        yield Pair(*twins, config, twins[0].initial(), np.arange(10), fresh=True)


def test_rows_are_spread_over_a_text_that_is_repeated(pair: Pair):
    assert pair.rows(2, 4).tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert pair.rows(2, 7, first=1).tolist() == [[1, 2, 3, 4, 5, 6, 7], [6, 7, 8, 9, 0, 1, 2]]
    assert pair.rows(12, 1)[10:].tolist() == [[0], [1]]


def test_an_answer_is_computed_once_and_kept_with_its_twin(pair: Pair):
    asked = []

    def answer(twin: TorchTwin) -> str:
        asked.append(twin.backend.framework)
        return twin.backend.framework

    assert pair.each("question", answer) == pair.each("question", answer) == ("torch", "other")
    assert asked == ["torch", "other"]
    again = pair.with_twins(pair.reference, Other(pair.config))
    again.each("question", answer)
    assert asked[2:] == ["other"], "a new twin answers for itself"
    pair.with_weights(pair.start).each("question", answer)
    assert asked[3:] == ["torch", "other"], "other weights have other answers"


def test_a_run_takes_the_learning_rates_of_its_schedule(pair: Pair):
    batches = [pair.rows(4, 20, first=step) for step in range(3)]
    losses = train(pair.reference, pair.config, pair.start, batches)
    pair.port.load(pair.start)
    steps = [pair.port.step(batch, learning_rate(pair.config, step)) for step, batch in enumerate(batches)]
    assert losses.tolist() == [step.loss for step in steps]
    assert train(pair.reference, pair.config, pair.start, batches).tolist() == losses.tolist(), "from the start again"
