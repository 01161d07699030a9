"""The loop reports, evaluates and saves when the config says, goes on where it stopped, and keeps nothing infinite."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)
from lmcore.data.batches import Tokens
from lmcore.errors import UserError
from lmcore.run import trainer
from lmcore.run.checkpoints import list_checkpoints
from lmcore.run.trackers import read_metrics
from lmcore.run.trainer import Diverged, StopRequest, evaluate, with_vocabulary


def test_the_embedding_takes_the_tokenizers_size_may_have_more_rows_and_never_fewer():
    assert with_vocabulary(Config(), 300).model.vocab_size == 300
    padded = Config(model=ModelConfig(vocab_size=320))
    assert with_vocabulary(padded, 300).model.vocab_size == with_vocabulary(padded, 320).model.vocab_size == 320
    with pytest.raises(UserError, match=r"^model.vocab_size: found 320, expected at least the tokenizer's 321"):
        with_vocabulary(padded, 321)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "text.txt").write_text("a tale of a cat " * 10)
    return Config(
        run_dir=str(tmp_path / "run"),
        model=ModelConfig(max_seq_len=4),
        data=DataConfig(files=[str(tmp_path / "text.txt")], dir=str(tmp_path / "data")),
        tokenizer=TokenizerConfig(kind="bytes"),
        train=TrainConfig(steps=5, batch_size=2),
        log=LogConfig(every=2),
        eval=EvalConfig(every=3),
        checkpoint=CheckpointConfig(every=4),
        sample=SampleConfig(prompt="a", max_tokens=3),
    )


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


def test_each_step_does_what_is_due_and_the_last_does_everything(config: Config, miniature: type, capsys):
    assert trainer.run(config, miniature) == 0
    folder = Path(config.run_dir or "")
    rows = read_metrics(folder / "metrics.jsonl")
    assert [(row["step"], row["tokens"], row["loss"]) for row in rows] == [
        (2, 16, 4.0),
        (3, 24, 2.0),
        (4, 32, 1.0),
        (5, 40, 0.5),
    ]
    # An evaluation comes after its step's update, which halves the loss.
    assert {row["step"]: row["valid_loss"] for row in rows if "valid_loss" in row} == {3: 1.0, 4: 0.5, 5: 0.25}
    assert [(c.step, c.valid_loss) for c in list_checkpoints(folder)] == [(4, 0.5), (5, 0.25)]
    assert "\na!!!\n" in capsys.readouterr().out, "a sample"
    longer = replace(config, train=replace(config.train, steps=6, resume="auto"))
    assert trainer.run(longer, miniature) == 0
    assert "resuming from step 5" in capsys.readouterr().out
    assert read_metrics(folder / "metrics.jsonl")[-1]["loss"] == 0.25


def test_a_signal_stops_after_the_step_and_saves_it(config: Config, miniature: type, capsys):
    class Stopped(miniature):
        def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().train_step(batch, lr)

    assert trainer.run(config, Stopped) == 128 + signal.SIGTERM
    assert [(c.step, c.valid_loss) for c in list_checkpoints(Path(config.run_dir or ""))] == [(1, None)]
    told = f"stopped at step 1, saved; resume with: python -m jaxlm.train --run_dir {config.run_dir} --train.resume"
    assert told in capsys.readouterr().out.replace("\n", "")


def test_a_state_that_became_infinite_is_not_saved(config: Config, miniature: type):
    class Breaking(miniature):
        def is_finite(self) -> bool:
            return self.nats > 0.25

    with pytest.raises(Diverged, match=r"infinite or NaN by step 5, which was not saved; .* is .*step_00000004; try a"):
        trainer.run(config, Breaking)
    assert [c.step for c in list_checkpoints(Path(config.run_dir or ""))] == [4]


def test_the_second_signal_stops_at_once_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
