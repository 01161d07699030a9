"""How a run begins: what it needs is checked and made before anything is written into its folder."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmcore.config import Config, to_dict
from lmcore.data.batches import Batches, Tokens, eval_windows, read_header
from lmcore.data.packing import PackedBatches, packed_windows
from lmcore.data.prepare import CONTENT, Prepared, prepare
from lmcore.errors import UserError
from lmcore.files import check_folder, check_links
from lmcore.model.pretrained import open_pretrained
from lmcore.run import folder as run_folder
from lmcore.run.base import with_base
from lmcore.run.checkpoints import OWN, Checkpoint
from lmcore.run.engine import Engine, EngineClass
from lmcore.run.processes import Processes

__all__ = ["check_agreement", "open_run", "with_vocabulary"]


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """Return the config with `model.vocab_size` set, from the tokenizer if it is 0.

    Raises:
        UserError: `model.vocab_size` is smaller than the tokenizer's.
    """
    model_size = config.model.vocab_size or vocab_size
    if model_size < vocab_size:
        raise UserError(
            f"model.vocab_size: found {model_size}, expected at least the tokenizer's {vocab_size}, or 0 to take that"
        )
    return replace(config, model=replace(config.model, vocab_size=model_size))


def open_run(
    config: Config, engine_class: EngineClass, stack: ExitStack, processes: Processes
) -> tuple[Config, Prepared, Engine, Batches, Checkpoint | None]:
    """Return the config with its vocabulary, the text, the engine, the batches, and the checkpoint to resume from.

    Args:
        config: the run.
        engine_class: the framework's engine.
        stack: receives the lock of the folder.
        processes: those that train together; the first makes the text, and locks the folder.

    Raises:
        UserError: the config does not fit the run folder, the data or the machine.
    """
    assert config.run_dir is not None
    folder = Path(config.run_dir)
    existed = folder.is_dir()
    if existed:
        check_links(folder, OWN)
        _lock(folder, stack, processes)
    config = with_base(config, engine_class.framework)
    latest = run_folder.open_run(config, engine_class.framework)
    if not existed:
        _check_can_be_created(folder)
    trained = latest is not None and latest.step > 0  # an imported model starts at step 0, on any text
    report = print if processes.rank == 0 else _nowhere
    if latest is None and config.train.init_from is not None:
        open_pretrained(config.train.init_from, config.data.dir, report, config.checkpoint.verify).check(config)
    prepared = prepare(config, report, run_dir=folder if trained else None)
    complete = with_vocabulary(config, prepared.tokenizer.vocab_size)
    run_folder.check_config(complete, imported=latest is not None and not trained)
    engine = engine_class(complete, processes)
    batches = _batches(prepared, complete, engine.shard, report)
    if not existed:
        _lock(folder, stack, processes)
        # another process may have started a run meanwhile
        latest = run_folder.open_run(config, engine_class.framework)
    return complete, prepared, engine, batches, latest


def check_agreement(processes: Processes, config: Config, prepared: Prepared, latest: Checkpoint | None) -> None:
    """Check that all processes train the same config on the same text, from the same checkpoint.

    Raises:
        UserError: this process differs from the first; only those that differ raise it.
    """
    header = read_header(prepared.folder)
    plain = to_dict(replace(config, data=replace(config.data, dir="")))  # each host may have the text elsewhere
    facts = {
        "config": _digest(plain),
        "text": _digest({name: header.get(name) for name in CONTENT}),
        "checkpoint": f"that of step {latest.step}" if latest else "none",
    }
    expected = json.loads(processes.broadcast(json.dumps(facts)))
    if different := [name for name in facts if facts[name] != expected[name]]:
        name = different[0]
        raise UserError(
            f"{name}: found {facts[name]}, expected {expected[name]} as process 0 has it; start all processes with the "
            f"same command, and let run_dir, {config.run_dir}, be on a disk that all hosts share"
        )


def _digest(values: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _nowhere(text: str) -> None:
    """Print nothing."""


def _batches(prepared: Prepared, config: Config, shard: tuple[int, int], report: Callable[[str], None]) -> Batches:
    train = config.train
    options: dict[str, Any] = {
        "seq_len": train.seq_len,
        "batch_size": train.batch_size,
        "seed": train.seed,
        "shard": shard,
        "micro_batches": train.grad_accum,
    }
    if config.data.format == "chat":
        for split, tokens in (("training", prepared.train), ("validation", prepared.valid)):
            _check_targets(split, tokens, train.seq_len)
        batches = PackedBatches(prepared.train, **options)
        report(f"train: {batches.packed.describe(train.seq_len + 1)}")
        return batches
    next(
        eval_windows(prepared.valid, seq_len=train.seq_len, batch_size=1, windows=1)
    )  # raises for text that is too short
    return Batches(prepared.train, **options)


def _check_targets(split: str, tokens: Tokens, seq_len: int) -> None:
    """Check that some of the assistant's tokens are left where long conversations are cut."""
    rows = packed_windows(tokens, seq_len=seq_len, batch_size=64, windows=0)
    if not any((targets >= 0).any() for _, targets in rows):
        raise UserError(
            f"train.seq_len: found {seq_len}, expected more: the assistant says nothing within the first {seq_len} "
            f"tokens of any {split} conversation"
        )


def _lock(folder: Path, stack: ExitStack, processes: Processes) -> None:
    """Lock the run's folder for all its processes, until the stack is closed."""
    if processes.rank > 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(run_folder.unlock_run, run_folder.lock_run(folder))
    except OSError as error:
        raise _cannot_be_created(folder, error) from error


def _check_can_be_created(folder: Path) -> None:
    check_folder("run_dir", folder)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise _cannot_be_created(folder, f"{parent} cannot be written to")


def _cannot_be_created(folder: Path, reason: object) -> UserError:
    return UserError(f"run_dir: {folder} cannot be created ({reason}); name another folder")
