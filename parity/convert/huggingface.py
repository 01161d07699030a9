"""Reading and writing Llama folders of Hugging Face: `config.json`, and what `shards` and `companions` hold.

A field that our model cannot express is refused by name, all of them in one error; an unknown field is refused too,
since it may change the model. Only safetensors are read: a pickle can run code.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, ModelConfig, RopeScaling, TokenizerConfig, TrainConfig, from_dict
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError, shown
from lmcore.files import check_sums, write_sums
from lmcore.model.memory import check_memory
from lmcore.model.rope import frequencies
from parity.convert.companions import Companions, read_companions, read_fields, read_tokenizer
from parity.convert.names import require_llama
from parity.convert.shards import read_tensors, write_shards
from parity.convert.tensors import Tensors, convert_tensors

__all__ = ["Folder", "config_fields", "read_folder", "write_folder"]

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
}
"""Required field of `config.json` -> our field."""

DEFAULTED: dict[str, tuple[str, Any]] = {
    "num_key_value_heads": ("n_kv_heads", 0),
    "head_dim": ("head_dim", 0),
    "max_position_embeddings": ("max_seq_len", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", False),
}
"""Optional field -> our field, and its default where missing or null, as in transformers' LlamaConfig."""

ONLY: dict[str, tuple[Any, ...]] = {
    "architectures": (["LlamaForCausalLM"], None),
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (1, None),
    "pretraining_tp": (1, None),
    "quantization_config": (None,),
}
"""Field that may change the model -> the values that our model supports."""

HARMLESS = {
    *("model_type", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias"),  # read separately
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
    *("initializer_range", "use_cache", "is_llama_config", "transformers.js_config", "tokenizer_class"),
    *("sep_token_id", "cls_token_id", "decoder_start_token_id", "prefix", "problem_type", "task_specific_params"),
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash"),
    *("_from_model_config", "_flash_attn_2_enabled", "torchscript", "use_bfloat16"),
    *("output_attentions", "output_hidden_states", "finetuning_task", "license", "model_name"),
    *("base_model_name_or_path", "keys_to_ignore_at_inference"),
    *("id2label", "label2id", "chunk_size_feed_forward", "return_dict", "unsloth_version", "unsloth_fixed"),
    *("max_length", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_sequence_length"),
    *("min_length", "max_new_tokens", "num_beams", "num_return_sequences", "length_penalty", "typical_p"),
    *("diversity_penalty", "early_stopping", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"),
}
"""Fields that do not change the mathematics."""

REPLACED = ("rope_parameters", "dtype", "transformers_version")
"""Fields of an imported folder that an export says otherwise; it keeps all others that it does not write itself."""

NONE = Companions()


@dataclass(frozen=True)
class Folder:
    """The contents of a Hugging Face Llama folder."""

    config: Config
    """Model and tokenizer; `train.precision` is float64 where a tensor is, so that nothing is rounded."""
    weights: Tensors
    """By Hugging Face's names, in the dtypes they are stored in; without the head where it is the embedding."""
    tokenizer: Tokenizer | None
    """None where the folder has no `tokenizer.json`."""
    companions: Companions
    """The tokenizer's files and generation settings."""


def read_folder(folder: Path, verify: bool = True) -> Folder:
    """Read a Llama folder.

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
    model = _model_config(fields, problems) if fields else None
    weights = read_tensors(folder, problems)
    text = read_tokenizer(folder, fields, problems)
    tokenizer = text[0] if text else None
    if model is not None:
        weights = _without_rope_tables(weights, model, problems)
        if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
            problems.append(f"vocab_size: found {model.vocab_size}, tokenizer.json needs {tokenizer.vocab_size}")
        if not problems:
            try:
                _check_head(weights, model, problems)
                weights = convert_tensors(weights, model, "hf", "hf")
            except UserError as error:
                problems.append(str(error))
    if problems:
        raise UserError(f"{folder}: cannot be converted: {'; '.join(problems)}")
    assert model is not None
    has_float64 = any(each.dtype == np.float64 for each in weights.stored.values())
    named = text[1] if text else TokenizerConfig(kind="file", file=str(folder / "tokenizer.json"))
    config = Config(model=model, tokenizer=named, train=TrainConfig(precision="float64" if has_float64 else "float32"))
    return Folder(config, weights, tokenizer, read_companions(folder))


def _model_config(fields: Mapping[str, Any], problems: list[str]) -> ModelConfig | None:
    """Return our model's config, or None where a field is not understood."""
    before = len(problems)
    if fields.get("model_type") != "llama":
        problems.append(f"model_type: found {fields.get('model_type')!r}, expected 'llama'")
    for name, accepted in ONLY.items():
        if name in fields and fields[name] not in accepted:
            problems.append(f"{name}: found {shown(fields[name])}, expected {accepted[0]!r}")
    layers = fields.get("layer_types") or ["full_attention"]
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        problems.append(f"layer_types: found {shown(fields['layer_types'])}, expected 'full_attention' in each layer")
    known = {*SIZES, *DEFAULTED, *ONLY, *HARMLESS, "layer_types"}
    for name, value in fields.items():
        if name not in known and value not in (None, False, [], {}, ""):
            problems.append(f"{name}: found {shown(value)}, whose meaning is unknown here; delete it if it has none")
    problems += [f"{name} is missing" for name in SIZES if fields.get(name) is None]
    values = {ours: fields[name] for name, ours in SIZES.items() if fields.get(name) is not None}
    for name, (ours, default) in DEFAULTED.items():
        values[ours] = default if fields.get(name) is None else fields[name]
    values["rope_theta"], scaling = _rope(fields, problems)
    values["bias"] = fields.get("attention_bias") or False
    if (fields.get("mlp_bias") or False) != values["bias"]:
        found = f"found {shown(fields.get('mlp_bias'))} beside attention_bias {shown(fields.get('attention_bias'))}"
        problems.append(f"mlp_bias: {found}, expected the same: our layers have biases or not")
    if len(problems) > before:
        return None
    try:
        model = from_dict(ModelConfig, values)
        check_memory(Config(model=model), training=False)
        return ModelConfig(**{**values, "rope_scaling": from_dict(RopeScaling, scaling)}) if scaling else model
    except UserError as error:
        names = {ours: name for name, ours in SIZES.items()} | {o: name for name, (o, _) in DEFAULTED.items()}
        ours = str(error).partition(":")[0].rpartition(".")[2]
        problems.append(f"{names.get(ours, ours)}: {str(error).partition(': ')[2]}")
        return None


LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}


def _rope(fields: Mapping[str, Any], problems: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the base of the rotary frequencies and Llama 3's scaling; two fields may state them, and must agree."""
    found = []
    for place in ("rope_parameters", "rope_scaling"):
        settings = fields.get(place)
        if settings is None:
            continue
        if not isinstance(settings, dict):
            problems.append(f"{place}: found {shown(settings)}, expected fields")
            continue
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind not in ("default", "llama3"):
            problems.append(f"{place}.rope_type: found {kind!r}, expected 'default' or 'llama3'")
            continue
        own = LLAMA3 if kind == "llama3" else {}
        problems += [f"{place}.{name} is missing" for name in own if name not in settings]
        for name in sorted(set(settings) - {*own, "rope_type", "type", "rope_theta"}):
            if not (name == "partial_rotary_factor" and settings[name] == 1):
                problems.append(f"{place}.{name}: found {shown(settings[name])}, unknown with rope_type {kind!r}")
        theta = settings.get("rope_theta", fields.get("rope_theta"))
        found.append((theta, {ours: settings[name] for name, ours in own.items() if name in settings}))
    theta = fields.get("rope_theta")
    if found and any(one != found[0] for one in found):
        problems.append("rope_parameters and rope_scaling say different things")
    if found and None not in (theta, found[0][0]) and theta != found[0][0]:
        problems.append(f"rope_theta: found {theta!r} beside {found[0][0]!r} in rope_parameters")
    scaling = found[0][1] if found else {}
    theta = found[0][0] if found else theta
    return (10000.0 if theta is None else theta), scaling


def _without_rope_tables(weights: Tensors, model: ModelConfig, problems: list[str]) -> Tensors:
    """Drop the rotary frequencies that old versions of transformers stored, if they are those of the config."""
    expected = frequencies(model.head_dim, model.rope_theta, model.rope_scaling)
    parameters = {}
    for name, stored in weights.stored.items():
        if not name.endswith(".rotary_emb.inv_freq"):
            parameters[name] = stored
        elif stored.shape != expected.shape or not np.allclose(weights[name].astype(np.float64), expected, rtol=1e-2):
            problems.append(f"{name} holds other frequencies than those of rope_theta {model.rope_theta}")
    return Tensors(parameters)


def _check_head(weights: Tensors, model: ModelConfig, problems: list[str]) -> None:
    """Check that a head that is stored though the embeddings are tied holds the same bits."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if model.tie_embeddings and {head, embedding} <= weights.keys():
        one, other = (weights.stored[name] for name in (head, embedding))
        if (one.shape, one.dtype) != (other.shape, other.dtype) or one.read().tobytes() != other.read().tobytes():
            problems.append(f"{head} differs from {embedding}, though the embeddings are tied")


def write_folder(
    folder: Path,
    config: Config,
    weights: Mapping[str, np.ndarray],
    tokenizer: Tokenizer | None,
    companions: Companions = NONE,
) -> None:
    """Write a Llama folder that transformers loads, with the checksums of its files.

    Args:
        folder: an existing folder to write into.
        config: the model's.
        weights: by Hugging Face's names.
        tokenizer: None leaves out the tokenizer's files.
        companions: files of the folder that the model was imported from, written again unchanged.

    Raises:
        UserError: it is no Llama, or transformers would not load one of this shape.
    """
    model = config.model
    require_llama(model)
    if model.dim % model.n_heads:
        raise UserError(
            f"model.dim: found {model.dim}, expected a multiple of n_heads = {model.n_heads}; "
            "transformers loads no other Llama"
        )
    tensors = Tensors.of(weights)
    dtypes = {str(each.dtype) for each in tensors.stored.values()}
    write_shards(folder, tensors, {"format": "pt"})
    fields = config_fields(model) | {"torch_dtype": _widest(dtypes)}
    if companions.files:
        if tokenizer is not None:
            companions = companions.with_stops(tokenizer)
        ids = companions.special_ids()
        kept = {name: value for name, value in companions.config().items() if name not in REPLACED}
        _write_json(folder / "config.json", {"initializer_range": 0.02} | kept | fields | ids)
        companions.write(folder)
    else:
        ids = _special_ids(tokenizer)
        _write_json(folder / "config.json", fields | {"initializer_range": 0.02} | ids)
        _write_json(folder / "generation_config.json", ids | ({"pad_token_id": tokenizer.eot_id} if tokenizer else {}))
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")
            _write_json(folder / "tokenizer_config.json", _tokenizer_fields(tokenizer, model.max_seq_len))
    write_sums(folder)


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the fields of `config.json` that name our bos and eos tokens."""
    if tokenizer is None:
        return {}
    begin = tokenizer.prefix_ids[0] if tokenizer.prefix_ids else tokenizer.eot_id
    stops = [tokenizer.eot_id, *sorted(tokenizer.stop_ids - {tokenizer.eot_id})]
    return {"bos_token_id": begin, "eos_token_id": stops if len(stops) > 1 else tokenizer.eot_id}


def _widest(dtypes: set[str]) -> str:
    return next((name for name in ("float64", "float32", "bfloat16", "float16") if name in dtypes), "float32")


def config_fields(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of `config.json` that describe a model's shape."""
    fields: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    for name, ours in [*SIZES.items(), *((name, ours) for name, (ours, _) in DEFAULTED.items())]:
        fields[name] = getattr(model, ours)
    scaling = model.rope_scaling
    llama3 = scaling and {"rope_type": "llama3"} | {name: getattr(scaling, ours) for name, ours in LLAMA3.items()}
    fields |= {"hidden_act": "silu", "attention_bias": model.bias, "mlp_bias": model.bias, "attention_dropout": 0.0}
    return fields | {"rope_theta": model.rope_theta, "rope_scaling": llama3}


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
