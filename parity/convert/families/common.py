"""What most families share: the sizes of a decoder, its rotary positions, and its kinds of layers."""

from collections.abc import Collection
from typing import Any

from lmcore.config import ModelConfig
from parity.convert.families.base import Fields, period

__all__ = [
    "layer_types",
    "read_decoder",
    "read_layers",
    "read_rope",
    "rotary_part",
    "scale",
    "write_decoder",
    "write_rope",
]

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
}
"""Required field of `config.json` -> our field."""
KINDS = {"full_attention": "full", "sliding_attention": "sliding"}
"""Entry of `layer_types` -> ours."""


def read_decoder(
    fields: Fields,
    *,
    tie: bool = False,
    max_seq_len: int = 2048,
    head_dim: int = 0,
    n_kv_heads: int = 0,
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
) -> dict[str, Any]:
    """Return our fields for the sizes; the defaults are those of the family's class in transformers.

    Args:
        fields: of `config.json`.
        tie: whether the embeddings are tied.
        max_seq_len: maximum number of positions.
        head_dim: 0 for D / N.
        n_kv_heads: 0 for N.
        eps: name and default of the norms' eps.
    """
    fields.only("attention_dropout", 0, None)
    values = {ours: fields.require(name, ours) for name, ours in SIZES.items()}
    return values | {
        "n_kv_heads": fields.get("num_key_value_heads", n_kv_heads, "n_kv_heads"),
        "head_dim": fields.get("head_dim", head_dim, "head_dim"),
        "max_seq_len": fields.get("max_position_embeddings", max_seq_len, "max_seq_len"),
        "norm_eps": fields.get(*eps, "norm_eps"),
        "tie_embeddings": fields.get("tie_word_embeddings", tie, "tie_embeddings"),
    }


def write_decoder(model: ModelConfig, eps: str = "rms_norm_eps") -> dict[str, Any]:
    """Return the fields of `config.json` for the sizes; `eps` is the name of the norms' eps."""
    return {name: getattr(model, ours) for name, ours in SIZES.items()} | {
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_seq_len,
        eps: model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": 0.0,
    }


SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_seq_len",
    },
    "yarn": {"factor": "factor", "original_max_position_embeddings": "original_max_seq_len"},
}
"""Kind of scaling -> its required fields, and ours."""
OPTIONAL = {name: name for name in ("beta_fast", "beta_slow", "attention_factor", "truncate")}
"""Fields of yarn that have defaults."""


def read_rope(
    fields: Fields,
    theta: float = 10000.0,
    rotated: float = 1.0,
    *,
    partial: bool = False,
    types: Collection[str] = tuple(SCALINGS),
) -> dict[str, Any]:
    """Return our base and scaling of the rotary frequencies; several fields may state them, and must agree.

    Args:
        fields: of `config.json`.
        theta: default of the base.
        rotated: default of the fraction of each head that is rotated.
        partial: whether the family rotates a part of a head where `partial_rotary_factor` says so.
        types: kinds of scaling that the family has.
    """
    found = []
    rotated = fields.get("partial_rotary_factor", rotated)
    for place in ("rope_parameters", "rope_scaling"):
        settings = fields.get(place)
        if settings is None:
            continue
        if not isinstance(settings, dict):
            fields.problem(place, settings, "fields")
            continue
        if settings.keys() <= KINDS.keys():  # a base and a scaling for each kind of layer
            settings = settings.get("full_attention") or {}
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind not in types:
            fields.problem(f"{place}.rope_type", kind, f"one of {', '.join(types)}")
            continue
        optional = OPTIONAL if kind == "yarn" else {}
        names = SCALINGS[kind] | {name: ours for name, ours in optional.items() if settings.get(name) is not None}
        fields.problems += [f"{place}.{name} is missing" for name in names if name not in settings]
        rotated = settings.get("partial_rotary_factor", rotated)
        known = {*names, *optional, "rope_type", "type", "rope_theta", "partial_rotary_factor"}
        for name in sorted(settings.keys() - known):
            fields.problems.append(f"{place}.{name}: found {settings[name]!r}, unknown with rope_type {kind!r}")
        scaling = {ours: settings[name] for name, ours in names.items() if name in settings}
        base = settings.get("rope_theta", fields.get("rope_theta", ours="rope_theta"))
        found.append((base, scaling | {"type": kind} if scaling else {}))
    stated = fields.get("rope_theta", ours="rope_theta")
    if found and any(one != found[0] for one in found):
        fields.problems.append("rope_parameters and rope_scaling say different things")
    if found and None not in (stated, found[0][0]) and stated != found[0][0]:
        fields.problem("rope_theta", stated, f"{found[0][0]!r}, as in rope_parameters")
    base, scaling = found[0] if found else (stated, {})
    values: dict[str, Any] = {"rope_theta": theta if base is None else base, "rope_scaling": scaling}
    if rotated != 1 and not partial:
        fields.problem("partial_rotary_factor", rotated, "1")
    elif rotated != 1:
        heads = fields.get("head_dim") or (fields.get("hidden_size") or 0) // (fields.get("num_attention_heads") or 1)
        values["rotary_dim"] = int(heads * rotated) if isinstance(rotated, float) else rotated
    return values


def write_rope(model: ModelConfig) -> dict[str, Any]:
    """Return the fields of `config.json` for base and scaling, in the form that all versions of transformers read."""
    scaling, fields = model.rope_scaling, None
    if scaling is not None:
        names = SCALINGS[scaling.type] | (OPTIONAL if scaling.type == "yarn" else {})
        fields = {"rope_type": scaling.type} | {name: getattr(scaling, ours) for name, ours in names.items()}
        if scaling.type == "yarn" and not scaling.attention_factor:
            del fields["attention_factor"]
    return {"rope_theta": model.rope_theta, "rope_scaling": fields}


def rotary_part(model: ModelConfig, name: str) -> dict[str, Any]:
    """Return the field that says which part of a head is rotated, where it is not the whole."""
    return {} if model.rotary_dim == model.head_dim else {name: model.rotary_dim / model.head_dim}


def read_layers(fields: Fields, default: list[str], window: Any) -> dict[str, Any]:
    """Return our kinds of layers.

    Args:
        fields: of `config.json`.
        default: our layer types where `layer_types` is missing.
        window: number of tokens that a sliding layer attends to; None takes every layer for full.
    """
    kinds, count = fields.get("layer_types"), fields.get("num_hidden_layers")
    if kinds is None:
        kinds = default
    elif not isinstance(kinds, list) or any(kind not in KINDS for kind in kinds):
        fields.problem("layer_types", kinds, f"a list of {' and '.join(KINDS)}")
        return {}
    elif len(kinds) != count:
        fields.problem("layer_types", kinds, f"num_hidden_layers = {count} of them")
        return {}
    kinds = [KINDS.get(kind, kind) for kind in kinds]
    if window is None or "sliding" not in kinds:
        return {"layer_types": period(["full" if kind == "sliding" else kind for kind in kinds])}
    fields.names["sliding_window"] = "sliding_window"
    return {"layer_types": period(kinds), "sliding_window": window}


def layer_types(model: ModelConfig) -> list[str]:
    """Return `layer_types` of `config.json`; a layer without RoPE is full."""
    kinds = map(model.layer_type, range(model.n_layers))
    return ["sliding_attention" if kind == "sliding" else "full_attention" for kind in kinds]


def scale(value: float, head_dim: int) -> float:
    """Return `model.attention_scale` for a factor of the attention scores: 0 where it is the usual one."""
    return 0.0 if value == head_dim**-0.5 else value
