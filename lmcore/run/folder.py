"""The run folder: its lock, whether a run in it may be resumed, and whether its files match their checksums.

    RUN/config.yaml  tokenizer.json  metrics.jsonl  samples/  loss.png  run.json
    RUN/meta.json                                   identity of the training text
    RUN/checkpoints/step_00000300/                  see `lmcore.run.checkpoints`

`config.yaml` has its checksum in the first line, `meta.json` in a field. The tokenizer's checksum is in `meta.json` and
in every checkpoint; each checkpoint also has the checksum of the metrics up to its step.
"""

from dataclasses import replace
from pathlib import Path

from lmcore import config as configs
from lmcore import files, locks
from lmcore.config import Config
from lmcore.data.batches import HEADER, read_header
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.files import Damaged
from lmcore.locks import Lock
from lmcore.run.checkpoints import Checkpoint, newest_checkpoint

__all__ = ["check_config", "check_tokenizer", "load_run", "lock_run", "open_run", "unlock_run"]

CHANGEABLE = (
    *("run_dir", "train.steps", "train.resume", "train.remat", "train.cpu_devices", "data.dir"),
    *("train.device", "train.compile", "train.deterministic", "model.scan_layers"),
    *("tokenizer.stop_tokens", "tokenizer.file"),
    *("optim.", "parallel.", "eval.", "checkpoint.", "log.", "sample."),
)
"""Fields, or prefixes of fields, that may change when a run is resumed; the others would make it another run."""
UNCHANGEABLE = ("optim.name", "train.init_from")
"""Fields that may not change, whatever their prefix: one optimizer cannot load the state of another."""


def load_run(checkpoint: Checkpoint, verify: bool = True) -> tuple[Config, Tokenizer]:
    """Load the config and the tokenizer of a checkpoint's run.

    Raises:
        UserError: a file is missing or cannot be read.
        Damaged: a file does not match its checksum.
    """
    run_dir = checkpoint.run_dir
    config = configs.load(run_dir / "config.yaml", verify)
    config = replace(config, parallel=configs.ParallelConfig())  # that of its training, which holds for nothing else
    if verify:
        check_tokenizer(run_dir, checkpoint)
    named = config.tokenizer
    tokenizer = Tokenizer.load(run_dir / "tokenizer.json", named.eot_token, named.stop_tokens)
    if 0 < config.model.vocab_size < tokenizer.vocab_size:
        expected = f"at most the model's {config.model.vocab_size}"
        raise UserError(f"{run_dir / 'tokenizer.json'}: found {tokenizer.vocab_size} tokens, expected {expected}")
    return config, tokenizer


def check_tokenizer(run_dir: Path, checkpoint: Checkpoint | None) -> bool:
    """Compare a run's tokenizer with its checksums in the checkpoint and in the header of the training text.

    Returns:
        False if there is no tokenizer, or no checksum of it.

    Raises:
        Damaged: it matches neither.
    """
    path = run_dir / "tokenizer.json"
    known = {checkpoint.run_sums.get("tokenizer")} if checkpoint else set()
    if (run_dir / HEADER).exists():
        known.add(read_header(run_dir).get("files", {}).get(path.name))
    if not path.exists() or not any(known):
        return False
    if files.file_digest(path) not in known:
        raise Damaged(f"{path}: is damaged (its checksum is not the recorded one); restore it")
    return True


def check_config(config: Config, imported: bool = False) -> None:
    """Check, before anything is written, that a config can resume the run in its folder, if there is one.

    Args:
        config: the new config; a `model.vocab_size` of 0 stands for the run's own.
        imported: whether the run is an imported model without training here, which may train on any text.

    Raises:
        UserError: a field differs that may not change.
        Damaged: the run's config does not match its checksum.
    """
    assert config.run_dir is not None
    saved = Path(config.run_dir) / "config.yaml"
    if not saved.exists():
        return
    changed = configs.differences(configs.load(saved, config.checkpoint.verify), config)
    if config.model.vocab_size == 0:
        changed.pop("model.vocab_size", None)
    if "tokenizer.file" in changed and _same_content(*changed["tokenizer.file"]):
        del changed["tokenizer.file"]
    free = (*CHANGEABLE, "data.", "train.") if imported else CHANGEABLE
    refused = {n: c for n, c in changed.items() if n in UNCHANGEABLE or not n.startswith(free)}
    if refused:
        listed = "; ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in refused.items())
        raise UserError(
            f"run_dir: {config.run_dir} was made with another config: {listed}; restore them or start a new run"
        )


def _same_content(one: str | None, other: str | None) -> bool:
    paths = [Path(file) for file in (one, other) if file is not None]
    return len(paths) == 2 and all(p.is_file() for p in paths) and len({files.file_digest(p) for p in paths}) == 1


def open_run(config: Config, framework: str) -> Checkpoint | None:
    """Check the run folder before anything is written, and return the checkpoint to resume from, if any.

    Raises:
        UserError: the folder has a run, and `train.resume` is "never", or its framework or config differs.
        Damaged: the config, the tokenizer or every checkpoint is damaged.
    """
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    if not (run_dir / "config.yaml").exists():
        return None
    if config.train.resume == "never":
        raise UserError(
            f"run_dir: {run_dir} already has a run; resume it with --train.resume auto, or name another folder"
        )
    latest = newest_checkpoint(run_dir, config.checkpoint.verify)
    check_config(config, imported=latest is not None and latest.step == 0)
    if latest is not None:
        latest.check_framework(framework)
        if config.checkpoint.verify:
            check_tokenizer(run_dir, latest)
    return latest


def lock_run(run_dir: Path) -> Lock:
    """Lock a run folder against other processes until `unlock_run`, or until this process ends.

    Raises:
        UserError: another process is training there.
    """

    def busy(owner: str) -> None:
        raise UserError(f"run_dir: {run_dir} is in use by {owner}; wait for it, or name another folder")

    return locks.lock(run_dir / ".lock", busy)


def unlock_run(lock: Lock) -> None:
    """Release the lock of a run folder."""
    lock.release()
