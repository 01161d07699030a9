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
