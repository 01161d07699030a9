"""The validation loss is the same mean, whatever the engine and the size of its batches."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import Config
from lmcore.data.batches import Tokens
from lmcore.run.engine import evaluate


def test_the_loss_is_the_mean_over_targets_however_they_are_batched(config: Config, miniature: type):
    class ByToken(miniature):
        """Each target costs its own id in nats."""

        def eval_step(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
            counted = targets[targets >= 0]
            return float(counted.sum()), len(counted)

    tokens = Tokens(ids=np.arange(12, dtype=np.uint16), documents=1, bytes=24, unknown=0)
    for batch_size in (1, 2, 3):
        sizes = replace(config, eval=replace(config.eval, batch_size=batch_size))
        row = evaluate(ByToken(sizes), tokens, sizes, windows=0)
        assert row["valid_loss"] == pytest.approx(6)  # of 1 to 11, the last window's three weighted as three
        assert row["valid_perplexity"] == pytest.approx(math.exp(6))
        assert row["valid_bits_per_byte"] == pytest.approx(6 / math.log(2) / 2)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_processes_evaluate_parts_that_together_are_the_whole(config: Config, miniature: type, batch_size: int):
    class Counting(miniature):
        """Notes the targets of its own rows; each target costs its own id in nats."""

        def eval_step(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
            self.shapes.add(tokens.shape)
            counted = targets[targets >= 0]
            seen.extend(counted.tolist())
            return float(counted.sum()), max(1, len(counted))

    tokens = Tokens(ids=np.arange(30, dtype=np.uint16), documents=1, bytes=60, unknown=0)
    sizes = replace(config, eval=replace(config.eval, batch_size=batch_size))
    seen: list[int] = []
    shapes = []
    for rank in range(3):
        engine = Counting(sizes)
        engine.shard = rank, 3
        evaluate(engine, tokens, sizes, 0)
        shapes.append(engine.shapes)
    assert sorted(seen) == list(range(1, 30)), "each target once"
    assert shapes[0] == shapes[1] == shapes[2] == {(-(-batch_size // 3), 4)}, "of as many rows each"
