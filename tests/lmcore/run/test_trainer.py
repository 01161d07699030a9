"""The loop reports, evaluates and saves when the config says, goes on where it stopped, and keeps nothing infinite."""

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.run import trainer
from lmcore.run.checkpoints import list_checkpoints
from lmcore.run.trackers import read_metrics
from lmcore.run.trainer import Diverged
from tests.lmcore.run.folders import limited


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


@pytest.mark.parametrize("is_command", [True, False])
def test_a_command_keeps_freed_memory_from_its_first_step_on(
    config: Config, miniature: type, monkeypatch: pytest.MonkeyPatch, is_command: bool
):
    events = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: events.append("keeps"))

    class Counts(miniature):
        def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
            events.append("step")
            return super().train_step(batch, lr)

    assert trainer.run(config, Counts, is_command) == 0
    assert events == ["step", *["keeps"] * is_command, *["step"] * 4]


def test_a_signal_stops_after_the_step_and_saves_it(config: Config, miniature: type, capsys):
    class Stopped(miniature):
        def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().train_step(batch, lr)

    assert trainer.run(config, Stopped) == 128 + signal.SIGTERM
    assert [(c.step, c.valid_loss) for c in list_checkpoints(Path(config.run_dir or ""))] == [(1, None)]
    told = f"stopped at step 1, saved; resume with: python -m jaxlm.train --run_dir {config.run_dir} --train.resume"
    assert told in capsys.readouterr().out.replace("\n", "")


def test_a_sample_is_written_before_the_checkpoint_of_its_step(config: Config, miniature: type):
    """A run that is killed between the two starts after that step, and would not write the sample again."""
    folder, found = Path(config.run_dir or ""), {}

    class Looks(miniature):
        def save(self, state: Path) -> Any:
            found[int(state.parent.name[5:13])] = sorted(path.name for path in (folder / "samples").glob("*"))
            return super().save(state)

    sampled = replace(config, sample=replace(config.sample, every=2), checkpoint=replace(config.checkpoint, every=2))
    assert trainer.run(sampled, Looks) == 0
    assert {step: names[-1] for step, names in found.items()} == {
        2: "sample-000002.txt",
        4: "sample-000004.txt",
        5: "sample-000005.txt",
    }


def test_sigusr1_saves_after_the_step_and_changes_nothing_else(config: Config, miniature: type, tmp_path: Path, capsys):
    class Asked(miniature):
        steps = 0

        def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
            self.steps += 1
            if self.steps in (1, 4):  # not due, and due anyway
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().train_step(batch, lr)

    config = replace(config, checkpoint=replace(config.checkpoint, keep=9))
    assert trainer.run(config, Asked) == 0
    said = capsys.readouterr().out
    asked = Path(config.run_dir or "")
    assert trainer.run(replace(config, run_dir=str(tmp_path / "plain")), miniature) == 0
    assert [line for line in said.splitlines() if "SIGUSR1" in line] == [
        "SIGUSR1 received, saving step 1",
        "SIGUSR1 received, saving step 4",
    ]
    assert [(c.step, c.valid_loss) for c in list_checkpoints(asked)] == [(1, None), (4, 0.5), (5, 0.25)]
    rows = [
        [{**row, "tokens_per_second": 0} for row in read_metrics(run / "metrics.jsonl")]
        for run in (asked, tmp_path / "plain")
    ]
    assert rows[0] == rows[1]


def test_checkpoints_that_a_killed_process_did_not_delete_are_deleted_at_the_end(config: Config, miniature: type):
    everything = replace(config, checkpoint=replace(config.checkpoint, every=1, keep=9))
    assert trainer.run(everything, miniature) == 0
    folder = Path(config.run_dir or "")
    assert len(list_checkpoints(folder)) == 5
    resumed = replace(config, train=replace(config.train, resume="auto"), checkpoint=replace(config.checkpoint, keep=1))
    assert trainer.run(resumed, miniature) == 0
    assert [c.step for c in list_checkpoints(folder)] == [5]


def test_a_state_that_became_infinite_is_not_saved(config: Config, miniature: type):
    class Breaking(miniature):
        def is_finite(self) -> bool:
            return self.nats > 0.25

    with pytest.raises(Diverged, match=r"infinite or NaN by step 5, which was not saved; .* is .*step_00000004; try a"):
        trainer.run(config, Breaking)
    assert [c.step for c in list_checkpoints(Path(config.run_dir or ""))] == [4]


def failing_at(miniature: type, steps: set[int]) -> type:
    """An engine whose loss is NaN at these steps, and which leaves their updates out."""

    class Failing(miniature):
        def init(self, weights: Any = None) -> None:
            self.step = 0
            super().init(weights)

        def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
            self.step += 1
            if self.step in steps:
                return {"loss": np.nan, "grad_norm": np.nan, "skipped": True}
            return super().train_step(batch, lr) | {"skipped": False}

    return Failing


def skipping(config: Config) -> Config:
    return replace(config, optim=replace(config.optim, nonfinite="skip"))


def test_updates_that_are_not_finite_are_skipped_counted_and_said_where_that_is_wanted(
    config: Config, miniature: type, capsys
):
    assert trainer.run(skipping(config), failing_at(miniature, {2, 4})) == 0
    folder = Path(config.run_dir or "")
    rows = read_metrics(folder / "metrics.jsonl")
    assert {row["step"]: row["skipped_steps"] for row in rows} == {2: 1, 3: 1, 4: 2, 5: 2}
    assert [row["loss"] for row in rows if np.isfinite(row["loss"])] == [4.0, 2.0]
    assert [(c.step, c.valid_loss, c.skipped) for c in list_checkpoints(folder)] == [(4, 2.0, 2), (5, 1.0, 2)]
    assert "skipped the update of step 4; 2 skipped so far" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_a_run_that_does_not_skip(config: Config, miniature: type):
    with pytest.raises(Diverged, match=r"^the loss became nan by step 2, which was not saved; no checkpoint had been"):
        trainer.run(config, failing_at(miniature, {2}))


def test_a_run_that_only_skips_stops(config: Config, miniature: type):
    longer = skipping(replace(config, train=replace(config.train, steps=50)))
    with pytest.raises(Diverged, match=r"^20 updates in a row were skipped, since loss or gradient .* by step 24"):
        trainer.run(longer, failing_at(miniature, set(range(5, 51))))
    assert max(c.step for c in list_checkpoints(Path(config.run_dir or ""))) == 20


def test_a_resumed_run_counts_on_from_its_checkpoint(config: Config, miniature: type):
    class Stopped(failing_at(miniature, {1})):  # type: ignore[misc]
        def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().train_step(batch, lr)

    assert trainer.run(skipping(config), Stopped) == 128 + signal.SIGTERM
    resumed = skipping(replace(config, train=replace(config.train, resume="auto")))
    engine = failing_at(miniature, set())
    engine.step = 0  # type: ignore[attr-defined]
    assert trainer.run(resumed, engine) == 0
    assert {row["skipped_steps"] for row in read_metrics(Path(config.run_dir or "") / "metrics.jsonl")} == {1}


@pytest.fixture(params=["stop", "continue"])
def filling(request: pytest.FixtureRequest, config: Config, miniature: type) -> tuple[Config, type]:
    """A config, and an engine that fills the disk before its third step and, with seed 0, frees it before its fifth."""

    class Filling(miniature):
        def train_step(self, batch: np.ndarray, lr: float) -> dict[str, Any]:
            full, freed = self.nats == 2.0, self.nats == 0.5 and self.config.sample.seed == 0
            if full or freed:
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else hard, hard))
            return super().train_step(batch, lr)

    return replace(config, checkpoint=replace(config.checkpoint, every=1, on_error=request.param)), Filling


def test_a_full_disk_stops_the_run_or_is_said_as_the_config_says(filling: tuple[Config, type], capsys):
    config, engine = filling
    folder = Path(config.run_dir or "")
    with limited(resource.RLIM_INFINITY):
        if config.checkpoint.on_error == "stop":
            with pytest.raises(UserError, match=r"could not be written \(.*File too large.*; free some space"):
                trainer.run(config, engine)
        else:
            assert trainer.run(config, engine) == 0
    if config.checkpoint.on_error == "stop":
        assert [c.step for c in list_checkpoints(folder)] in ([1], [1, 2]), "2 is written in the background"
        return
    assert [c.step for c in list_checkpoints(folder)] in ([1, 5], [2, 5])
    assert [row["loss"] for row in read_metrics(folder / "metrics.jsonl")] == [8.0, 4.0, 2.0, 1.0, 0.5]
    notes = capsys.readouterr().err.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    assert sum("checkpoint: that of step" in line for line in notes) in (2, 3)
    assert sum("metrics.jsonl: is written again" in line for line in notes) == 1


def test_a_run_that_ends_without_its_last_checkpoint_says_so(filling: tuple[Config, type], capsys):
    config, engine = filling
    never_freed = replace(config, sample=replace(config.sample, seed=1))
    with limited(resource.RLIM_INFINITY), pytest.raises(UserError, match="could not be written") as error:
        trainer.run(never_freed, engine)
    ends = config.checkpoint.on_error == "continue"
    assert error.value.exit_code == (1 if ends else 2)
    assert ("the run ends without it" in str(error.value)) == ends
    assert all(line.startswith("note: ") for line in capsys.readouterr().err.splitlines())
