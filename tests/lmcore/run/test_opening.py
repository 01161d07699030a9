"""A run checks all it needs before it writes anything, and its processes begin at the same checkpoint."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmcore.config import Config, ModelConfig
from lmcore.errors import UserError
from lmcore.run import trainer
from lmcore.run.opening import check_agreement, open_run, with_vocabulary
from lmcore.run.processes import ALONE
from tests.lmcore.run.folders import Member


def test_the_embedding_takes_the_tokenizers_size_may_have_more_rows_and_never_fewer():
    assert with_vocabulary(Config(), 300).model.vocab_size == 300
    padded = Config(model=ModelConfig(vocab_size=320))
    assert with_vocabulary(padded, 300).model.vocab_size == with_vocabulary(padded, 320).model.vocab_size == 320
    with pytest.raises(UserError, match=r"^model.vocab_size: found 320, expected at least the tokenizer's 321"):
        with_vocabulary(padded, 321)


def test_what_does_not_fit_is_said_before_a_folder_is_made(config: Config, miniature: type):
    long = replace(config, model=ModelConfig(max_seq_len=4000), train=replace(config.train, seq_len=4000))
    with ExitStack() as stack, pytest.raises(UserError, match=r"set a smaller train.seq_len or provide more text"):
        open_run(long, miniature, stack, ALONE)
    assert not Path(config.run_dir or "").exists()


def test_the_first_process_locks_the_folder_and_each_takes_its_rows(
    config: Config, miniature: type, tmp_path: Path, capsys
):
    run_dir, batches = Path(config.run_dir or ""), []
    with ExitStack() as stack:
        for rank in (0, 1):
            own = replace(config, data=replace(config.data, dir=str(tmp_path / f"data{rank}")))  # as on two hosts
            complete, *_, rows, latest = open_run(own, miniature, stack, Member(rank, 2))
            assert (complete.model.vocab_size, latest) == (257, None)
            batches.append(rows)
            assert bool(capsys.readouterr().out) == (rank == 0), "only process 0 prints"
        with pytest.raises(UserError, match="is in use by process"):
            open_run(config, miniature, stack, ALONE)
    with ExitStack() as stack:
        *_, whole, _ = open_run(config, miniature, stack, ALONE)
    assert np.array_equal(np.concatenate([b.batch(3) for b in batches]), whole.batch(3))
    assert [path.name for path in run_dir.iterdir()] == [".lock"]


def test_all_processes_resume_at_the_same_checkpoint(config: Config, miniature: type):
    assert trainer.run(config, miniature) == 0
    resumed = replace(config, train=replace(config.train, steps=9, resume="auto"))
    with ExitStack() as stack:
        found = [open_run(resumed, miniature, stack, Member(rank, 2))[-1] for rank in (0, 1)]
    assert [checkpoint.step for checkpoint in found if checkpoint] == [5, 5]


def test_processes_that_differ_do_not_train_together(config: Config, miniature: type, tmp_path: Path):
    def enter(rank: int, config: Config) -> None:
        with ExitStack() as stack:
            complete, prepared, _, _, latest = open_run(config, miniature, stack, Member(rank, 2))
            check_agreement(Member(rank, 2), complete, prepared, latest)

    resumed = replace(config, train=replace(config.train, steps=9, resume="auto"))
    elsewhere = replace(config, data=replace(config.data, dir=str(tmp_path / "other")))
    assert trainer.run(config, miniature) == 0
    enter(0, resumed)
    enter(1, resumed)
    enter(1, replace(resumed, data=elsewhere.data))
    with pytest.raises(UserError, match=r"^config: found \w+, expected \w+ as process 0 has it; start all processes"):
        enter(1, replace(resumed, optim=replace(resumed.optim, lr=0.5)))
    for checkpoint in (Path(config.run_dir or "") / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    with pytest.raises(UserError, match=r"^checkpoint: found none, expected that of step 5 as process 0 has it"):
        enter(1, resumed)
    (tmp_path / "text.txt").write_text("a tale of a dog " * 10)
    (Path(config.run_dir or "") / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"^text: found \w+, expected \w+ as process 0 has it"):
        enter(1, resumed)
