"""Bare weights: safetensors with our names, one file or a folder, which say in their metadata what model they are of.

`safetensors.torch.load_model` loads the file into a `torchlm.model.Decoder`; a folder has the tokenizer too.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmcore.config import Config, ModelConfig, TokenizerConfig, TrainConfig, from_dict, load, to_dict
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.files import check_sums, write_sums
from lmcore.model.memory import check_memory
from parity.convert.companions import Companions
from parity.convert.names import Side
from parity.convert.shards import INDEX, SINGLE, read_metadata, read_tensors, write_shards, write_tensors
from parity.convert.tensors import Tensors, convert_tensors

__all__ = ["SUFFIX", "Bare", "is_bare", "read_bare", "write_bare"]

SUFFIX = ".safetensors"
NONE = Companions()
FIELD = "twinlm"
"""Name, in the metadata of the first file, of the config's fields that describe model and tokenizer."""


@dataclass(frozen=True)
class Bare:
    """The contents of a file or folder of weights."""

    config: Config
    """Model and tokenizer; `train.precision` is float64 where a tensor is, so that nothing is rounded."""
    side: Side
    """Side whose names and layout the weights have."""
    weights: Tensors
    tokenizer: Tokenizer | None
    """None where there is no `tokenizer.json` beside the weights."""
    companions: Companions
    """Those of the Hugging Face folder that a folder of weights was converted from."""


def is_bare(path: Path) -> bool:
    """Return whether a path looks like a file or folder of weights."""
    return (path.suffix == SUFFIX and path.is_file()) or any((path / name).is_file() for name in (SINGLE, INDEX))


def read_bare(path: Path, config: Path | None = None, verify: bool = True) -> Bare:
    """Read weights with torchlm's or jaxlm's names.

    Args:
        path: a file, or a folder with one or several and perhaps `tokenizer.json`.
        config: YAML file of a run's config, for weights that do not say what model they are of.
        verify: whether to compare a folder's files with its SHA256SUMS.

    Raises:
        UserError: they cannot be read, or are not those of a model of ours; the message names each tensor.
    """
    if verify and path.is_dir():
        check_sums(path)
    described = read_metadata(path).get(FIELD)
    if config is None and described is None:
        raise UserError(
            f"{path}: found no field {FIELD!r} in its metadata, which --to safetensors writes to say what model the "
            "weights are of; name a run's config with --model_config RUN/config.yaml"
        )
    model, named = _described(path, described) if config is None else _configured(config)
    check_memory(Config(model=model), training=False)
    problems: list[str] = []
    weights = read_tensors(path, problems)
    if problems:
        raise UserError(f"{path}: cannot be converted: {'; '.join(problems)}")
    side: Side = "jax" if any(name.endswith(".kernel") for name in weights) else "torch"
    try:
        weights = convert_tensors(weights, model, side, side)
    except UserError as error:
        raise UserError(f"{path}: cannot be converted: {error}") from error
    has_float64 = any(each.dtype == np.float64 for each in weights.stored.values())
    train = TrainConfig(precision="float64" if has_float64 else "float32")
    file = path / "tokenizer.json"
    named = replace(named, kind="file", file=str(file))
    tokenizer = Tokenizer.load(file, named.eot_token, named.stop_tokens) if file.is_file() else None
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(f"{file}: found {tokenizer.vocab_size} tokens, expected at most the model's {model.vocab_size}")
    companions = Companions.of_run(path, verify) if path.is_dir() else NONE
    return Bare(Config(model=model, tokenizer=named, train=train), side, weights, tokenizer, companions)


def _described(path: Path, text: str | None) -> tuple[ModelConfig, TokenizerConfig]:
    try:
        fields = json.loads(text or "")
        return from_dict(ModelConfig, fields["model"]), from_dict(TokenizerConfig, fields["tokenizer"])
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: its metadata's field {FIELD!r} cannot be read ({error})") from error


def _configured(path: Path) -> tuple[ModelConfig, TokenizerConfig]:
    config = load(path)
    if not config.model.vocab_size:
        raise UserError(f"{path}: found model.vocab_size 0, expected the size that the weights have")
    return config.model, config.tokenizer


def write_bare(
    path: Path, config: Config, weights: Tensors, tokenizer: Tokenizer | None, companions: Companions = NONE
) -> None:
    """Write weights with torchlm's names.

    Args:
        path: a file whose name ends in `.safetensors`, or an existing folder, which gets several files where the
            weights are large, tokenizer and companions, and checksums.
        config: the model's.
        weights: by torchlm's names.
        tokenizer: written into a folder only.
        companions: likewise, as in an imported run.
    """
    named = {"eot_token": config.tokenizer.eot_token, "stop_tokens": config.tokenizer.stop_tokens}
    described = json.dumps({"model": to_dict(config.model), "tokenizer": named}, separators=(",", ":"))
    metadata = {"format": "pt", FIELD: described}
    if path.suffix == SUFFIX:
        write_tensors(path, weights, metadata)
        return
    write_shards(path, weights, metadata)
    if tokenizer is not None:
        tokenizer.save(path / "tokenizer.json")
    companions.keep(path)
    write_sums(path)
