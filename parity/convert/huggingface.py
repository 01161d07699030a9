"""Reading and writing folders of Hugging Face: `config.json`, and what `shards` and `companions` hold.

A field that our model cannot express is refused by name, all of them in one error; an unknown field is refused too,
since it may change the model. Only safetensors are read: a pickle can run code.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, ModelConfig, TokenizerConfig, TrainConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError, shown
from lmcore.files import check_sums, write_sums
from lmcore.model.rope import frequencies
from parity.convert.companions import Companions, read_companions, read_fields, read_tokenizer
from parity.convert.families import FAMILIES, Family, family_of
from parity.convert.families.tensors import from_family, to_family
from parity.convert.shards import read_tensors, write_shards
from parity.convert.tensors import Tensors

__all__ = ["Folder", "read_folder", "write_folder"]

REPLACED = ("rope_parameters", "dtype", "transformers_version")
"""Fields of an imported folder that an export says otherwise; it keeps all others that it does not write itself."""

NONE = Companions()


@dataclass(frozen=True)
class Folder:
    """The contents of a Hugging Face folder."""

    config: Config
    """Model and tokenizer; `train.precision` is float64 where a tensor is, so that nothing is rounded."""
    weights: Tensors
    """By the names of a Llama, in the dtypes they are stored in; without the head where it is the embedding."""
    tokenizer: Tokenizer | None
    """None where the folder has no `tokenizer.json`."""
    companions: Companions
    """The tokenizer's files and generation settings."""


def read_folder(folder: Path, verify: bool = True) -> Folder:
    """Read a folder of a model of one of the `families`.

    Args:
        folder: a folder of transformers, or an export of ours, which has SHA256SUMS.
        verify: whether to compare its files with them.

    Raises:
        UserError: it is not one, is damaged, or needs what our model lacks; the message names each reason.
    """
    if verify:
        check_sums(folder)
    problems: list[str] = []
    fields = read_fields(folder / "config.json", problems)
    family = FAMILIES.get(str(fields.get("model_type")))
    if fields and family is None:
        found = shown(fields.get("model_type"))
        problems.append(f"model_type: found {found}, expected one of {', '.join(FAMILIES)}")
    model = family.config(fields, problems) if family else None
    weights = read_tensors(folder, problems)
    text = read_tokenizer(folder, fields, problems)
    tokenizer = text[0] if text else None
    if family and model:
        weights = _parameters(weights, family, model, problems)
        if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
            problems.append(f"vocab_size: found {model.vocab_size}, tokenizer.json needs {tokenizer.vocab_size}")
        if not problems:
            try:
                weights = from_family(_without_tied_head(weights, family, model, problems), family, model)
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError(f"{folder}: cannot be converted: {'; '.join(problems)}")
    assert model is not None
    has_float64 = any(each.dtype == np.float64 for each in weights.stored.values())
    named = text[1] if text else TokenizerConfig(kind="file", file=str(folder / "tokenizer.json"))
    config = Config(model=model, tokenizer=named, train=TrainConfig(precision="float64" if has_float64 else "float32"))
    return Folder(config, weights, tokenizer, read_companions(folder))


def _parameters(weights: Tensors, family: Family, model: ModelConfig, problems: list[str]) -> Tensors:
    """Return the tensors that are parameters, by their full names; rotary frequencies must be those of the config."""
    expected = frequencies(model.rotary_dim, model.rope_theta, model.rope_scaling)
    whole = any(name.startswith(family.prefix) for name in weights)  # some files leave the prefix out
    parameters = {}
    for name, stored in weights.stored.items():
        if not re.fullmatch(family.buffers, name):
            full = name if whole or name in ("lm_head.weight", "embed_out.weight") else family.prefix + name
            parameters[full] = stored
        elif name.endswith(".inv_freq"):
            same = stored.shape == expected.shape
            if not (same and np.allclose(weights[name].astype(np.float64), expected, rtol=1e-2)):
                problems.append(f"{name} holds other frequencies than those of rope_theta {model.rope_theta}")
    return Tensors(parameters)


def _without_tied_head(weights: Tensors, family: Family, model: ModelConfig, problems: list[str]) -> Tensors:
    """Leave out a head that is stored though the embeddings are tied, if it holds the same bits."""
    names = {held: name for name, held in family.modules.items() if isinstance(held, str)}
    head, embedding = (f"{names.get(name, name)}.weight" for name in ("lm_head", "model.embed_tokens"))
    if not (model.tie_embeddings and {head, embedding} <= weights.keys()):
        return weights
    one, other = (weights.stored[name] for name in (head, embedding))
    if (one.shape, one.dtype) != (other.shape, other.dtype) or one.read().tobytes() != other.read().tobytes():
        problems.append(f"{head} differs from {embedding}, though the embeddings are tied")
    return Tensors({name: stored for name, stored in weights.stored.items() if name != head})


def write_folder(
    folder: Path,
    config: Config,
    weights: Mapping[str, np.ndarray],
    tokenizer: Tokenizer | None,
    companions: Companions = NONE,
) -> None:
    """Write a folder that transformers loads, with the checksums of its files.

    Args:
        folder: an existing folder to write into.
        config: the model's.
        weights: by the names of a Llama.
        tokenizer: None leaves out the tokenizer's files.
        companions: files of the folder that the model was imported from, written again unchanged.

    Raises:
        UserError: no family can express the model, or transformers would not load one of this shape.
    """
    model = config.model
    family = family_of(model, str(companions.config().get("model_type")))
    if model.dim % model.n_heads:
        raise UserError(
            f"model.dim: found {model.dim}, expected a multiple of n_heads = {model.n_heads}; "
            "transformers loads no other"
        )
    tensors = to_family(weights, family, model)
    dtypes = {str(each.dtype) for each in tensors.stored.values()}
    write_shards(folder, tensors, {"format": "pt"})
    fields = family.fields(model) | {"torch_dtype": _widest(dtypes)}
    if companions.files:
        if tokenizer is not None:
            companions = companions.with_stops(tokenizer)
        ids = companions.special_ids()
        kept = {name: value for name, value in companions.config().items() if name not in REPLACED}
        _write_json(folder / "config.json", {"initializer_range": 0.02} | kept | fields | ids)
    else:
        ids = _special_ids(tokenizer)
        # Another pad token would be an embedding without a gradient, and a family's own is perhaps in no vocabulary.
        _write_json(folder / "config.json", fields | {"initializer_range": 0.02, "pad_token_id": None} | ids)
        _write_json(folder / "generation_config.json", ids | ({"pad_token_id": tokenizer.eot_id} if tokenizer else {}))
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")
            settings = _tokenizer_fields(tokenizer, model.max_seq_len)
            if companions.chat_template() is not None:  # whose special tokens must become tokens
                settings["split_special_tokens"] = False
            _write_json(folder / "tokenizer_config.json", settings)
    companions.write(folder)
    write_sums(folder)


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the fields of `config.json` that name our bos and eos tokens; null, where there are none."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None}
    begin = tokenizer.prefix_ids[0] if tokenizer.prefix_ids else tokenizer.eot_id
    stops = [tokenizer.eot_id, *sorted(tokenizer.stop_ids - {tokenizer.eot_id})]
    return {"bos_token_id": begin, "eos_token_id": stops if len(stops) > 1 else tokenizer.eot_id}


def _widest(dtypes: set[str]) -> str:
    return next((name for name in ("float64", "float32", "bfloat16", "float16") if name in dtypes), "float32")


def _tokenizer_fields(tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """Return the settings with which AutoTokenizer gives our token ids: text never becomes a special token."""
    eot = _token(tokenizer, tokenizer.eot_id)
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _token(tokenizer, tokenizer.prefix_ids[0]) if tokenizer.prefix_ids else eot,
        "eos_token": eot,
        "pad_token": eot,
        "padding_side": "left",
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    if tokenizer.unk_id is not None:
        fields["unk_token"] = _token(tokenizer, tokenizer.unk_id)
    return fields


def _token(tokenizer: Tokenizer, number: int) -> str:
    token = tokenizer.inner.id_to_token(number)
    assert token is not None
    return token


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
