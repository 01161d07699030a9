"""The weights that a run starts from, in another run: found, completed into its config, and verified.

A run with adapters (`model.lora`) needs its base again whenever it is resumed or used, since its checkpoints hold the
adapters alone. Each of them names the base's checkpoint, and the checksum of its weights.
"""

import hashlib
import json
import os
from dataclasses import fields, replace
from pathlib import Path

from lmcore import config as configs
from lmcore import files
from lmcore.config import Config, ModelConfig
from lmcore.config.values import Derived
from lmcore.errors import UserError
from lmcore.run.checkpoints import (
    DESCRIPTION,
    Base,
    Checkpoint,
    checkpoint_folders,
    find_checkpoint,
    newest_checkpoint,
)
from lmcore.run.engine import Engine

__all__ = ["base_to_load", "describe_base", "find_base", "restore_model", "with_base"]

OWN = ("lora", "dropout", "scan_layers")
"""Fields of `model` that are the run's own, not the base's."""
WEIGHTS = "state/params/"
"""Folder of the weights in a checkpoint."""


def with_base(config: Config, framework: str) -> Config:
    """Return the config with the architecture and the tokenizer of `train.init_from`, if the run has adapters.

    Args:
        config: the run.
        framework: that trains it.

    Raises:
        UserError: there is no such run, it is one of another framework or with adapters, or a field of `model` is
            neither left out nor as in that run.
    """
    if config.model.lora is None:
        return config
    if config.train.init_from is None:
        raise UserError("train.init_from: found null with model.lora, expected the run that the adapters adapt")
    assert config.run_dir is not None
    latest = newest_checkpoint(Path(config.run_dir), verify=False)
    if latest is None:
        source = Path(config.train.init_from)
        if source.is_dir() and not checkpoint_folders(source) and not (source / DESCRIPTION).exists():
            raise UserError(
                f"train.init_from: found {source}, expected a run with model.lora; convert it first: "
                f"python -m parity.convert {source} --to {framework} --out OUT"
            )
        base = find_checkpoint(source, verify=False)
        base.check_framework(framework)
    else:
        base = find_base(latest, verify=False)
    found = configs.load(base.run_dir / "config.yaml", config.checkpoint.verify)
    if found.model.lora is not None:
        raise UserError(
            f"train.init_from: {base.run_dir} is a run with adapters, expected one without; merge them first with "
            f"python -m parity.convert {base.run_dir} --to {framework} --out OUT"
        )
    for field in fields(ModelConfig):
        ours, theirs = getattr(config.model, field.name), getattr(found.model, field.name)
        if field.name not in OWN and ours not in (field.default, theirs) and not isinstance(ours, Derived):
            raise UserError(
                f"model.{field.name}: found {ours!r}, expected {theirs!r} as in train.init_from, {base.run_dir}; "
                "leave it out"
            )
    model = replace(found.model, **{name: getattr(config.model, name) for name in OWN})
    model.check_lora()
    tokenizer = replace(found.tokenizer, kind="file", file=str(base.run_dir / "tokenizer.json"))
    return replace(config, model=model, tokenizer=tokenizer)


def base_to_load(config: Config, latest: Checkpoint | None) -> Checkpoint | None:
    """Return the checkpoint whose weights an engine must load before it starts or resumes a run; None for no such.

    Args:
        config: from `with_base`.
        latest: checkpoint to resume from; None for a new run.

    Raises:
        UserError: it is gone, or has changed.
    """
    if config.train.init_from is None or config.model.lora is None:
        return None
    verify = config.checkpoint.verify
    return find_checkpoint(Path(config.train.init_from), verify=verify) if latest is None else find_base(latest, verify)


def find_base(checkpoint: Checkpoint, verify: bool = True) -> Checkpoint:
    """Return the checkpoint that has the base's weights, for a checkpoint with adapters.

    It is looked for where it was, then in the same place relative to the run, in case both have moved.

    Args:
        checkpoint: of a run with adapters.
        verify: whether to compare the base's files with their checksums.

    Raises:
        UserError: it is gone, or its weights are not those that the adapters were trained for.
    """
    if checkpoint.base is None:
        raise UserError(f"{checkpoint.folder}: found no base, expected the weights that its adapters adapt")
    places = Path(checkpoint.base.path), checkpoint.run_dir / checkpoint.base.relative
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(
            f"{places[0]}: found nothing, expected the weights that {checkpoint.run_dir} adapts; put them back there"
        )
    base = find_checkpoint(found, verify=verify)
    if _digest(base) != checkpoint.base.weights:
        raise UserError(
            f"{found}: found other weights than those that {checkpoint.run_dir} adapts, expected the same; restore them"
        )
    return base


def describe_base(base: Checkpoint, run_dir: Path) -> Base:
    """Return what the checkpoints of a run say of its base.

    Args:
        base: the base's checkpoint.
        run_dir: folder of the run with adapters.
    """
    relative = os.path.relpath(base.folder.resolve(), run_dir.resolve())
    return Base(str(base.folder.resolve()), relative, _digest(base))


def _digest(base: Checkpoint) -> str:
    """Return one checksum of the weights' files."""
    sums = base.sums or files.checksums(base.folder)
    weights = {name: digest for name, digest in sums.items() if name.startswith(WEIGHTS)}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def restore_model(engine: Engine, config: Config, checkpoint: Checkpoint, verify: bool = True) -> None:
    """Load the weights of a checkpoint into an engine, and those of its base first, to evaluate or generate.

    Args:
        engine: made for the config.
        config: of the checkpoint's run.
        checkpoint: to load.
        verify: whether to compare the base's files with their checksums.

    Raises:
        UserError: the base is gone, or has changed.
    """
    if config.model.lora is not None:
        engine.load_base(find_base(checkpoint, verify).state)
    engine.restore(checkpoint.state, optimizer=False)
