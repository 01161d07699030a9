"""What describes a family of models of Hugging Face: its `config.json`, and the tensors of its files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lmcore.config import Config, ModelConfig, RopeScaling, from_dict
from lmcore.config.values import Derived
from lmcore.errors import UserError, shown
from lmcore.model.memory import check_memory
from parity.convert.families.layout import STACKED, Layout

__all__ = ["Family", "Fields", "Held", "period"]

HARMLESS = {
    *("architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "dtype"),
    *("torch_dtype", "transformers_version", "_name_or_path", "tokenizer_class", "model_max_length"),
    *("initializer_range", "use_cache", "is_llama_config", "transformers.js_config"),
    *("sep_token_id", "cls_token_id", "decoder_start_token_id", "prefix", "problem_type", "task_specific_params"),
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash"),
    *("_from_model_config", "_flash_attn_2_enabled", "torchscript", "use_bfloat16", "cache_implementation"),
    *("output_attentions", "output_hidden_states", "finetuning_task", "license", "model_name"),
    *("base_model_name_or_path", "keys_to_ignore_at_inference"),
    *("id2label", "label2id", "chunk_size_feed_forward", "return_dict", "unsloth_version", "unsloth_fixed"),
    *("max_length", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_sequence_length"),
    *("min_length", "max_new_tokens", "num_beams", "num_return_sequences", "length_penalty", "typical_p"),
    *("diversity_penalty", "early_stopping", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"),
}
"""Fields of any family that do not change the mathematics."""
UNSTATED = {"dropout", "init", "scan_layers"}
"""Our fields that a `config.json` says nothing of: they matter to training alone."""


class Fields:
    """The fields of a `config.json` while they are read: it remembers which were, and what is wrong with them."""

    def __init__(self, values: Mapping[str, Any]):
        """Take the fields."""
        self.values = values
        self.problems: list[str] = []
        self.known = set(HARMLESS)
        self.names: dict[str, str] = {}

    def get(self, name: str, default: Any = None, ours: str = "") -> Any:
        """Return a field, or its default where it is missing or null; `ours` is our field that gets its value."""
        return default if self.raw(name, ours=ours) is None else self.values[name]

    def raw(self, name: str, default: Any = None, ours: str = "") -> Any:
        """Return a field, null as None, or its default where it is missing."""
        self.known.add(name)
        if ours:
            self.names[ours] = name
        return self.values.get(name, default)

    def require(self, name: str, ours: str) -> Any:
        """Return a field that must be there."""
        value = self.get(name, ours=ours)
        if value is None:
            self.problems.append(f"{name} is missing")
        return value

    def only(self, name: str, *supported: Any) -> None:
        """Check a field that may change the model; a missing one is supported."""
        if (value := self.raw(name, supported[0])) not in supported:
            self.problem(name, value, repr(supported[0]))

    def problem(self, name: str, value: Any, expected: str) -> None:
        """Note a field with a value that is not supported."""
        self.problems.append(f"{name}: found {shown(value)}, expected {expected}")

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a field that is true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.problem(name, value, "true or false")
        return value is True

    def ignore(self, *names: str) -> None:
        """Take fields for harmless."""
        self.known.update(names)

    def check_unknown(self) -> None:
        """Note each field that was not read and may change the model."""
        for name, value in self.values.items():
            if name not in self.known and value not in (None, False, [], {}, ""):
                found = f"{name}: found {shown(value)}"
                self.problems.append(f"{found}, whose meaning is unknown here; delete it if it has none")


@dataclass(frozen=True)
class Held:
    """A module of a family's file that holds several modules of a Llama, or one in another layout."""

    modules: Sequence[str]
    """Their names, with `*` for the layer's number."""
    layout: Layout = STACKED


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models, such as Llama."""

    model_type: str
    """As in `config.json`."""
    architecture: str
    """Class of transformers with the output head."""
    title: str
    """In messages, with its article."""
    read: Callable[[Fields], dict[str, Any]]
    """Returns the fields of our model's config, and notes the problems."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """Returns the fields of `config.json`; they need not describe the model whole (see `differences`)."""
    modules: Mapping[str, str | Held] = field(default_factory=dict)
    """Module of the family's file -> the Llama's; `*` is the layer's number. All others have the Llama's names."""
    prefix: str = "model."
    """Begins the name of every tensor but the head's; some files leave it out."""
    buffers: str = r".*\.rotary_emb\.inv_freq"
    """Pattern of the names of tensors that are no parameters."""

    def config(self, values: Mapping[str, Any], problems: list[str]) -> ModelConfig | None:
        """Return our model's config; None, and its reasons in `problems`, where our model cannot be the same."""
        fields = Fields(values)
        fields.only("architectures", [self.architecture], None)
        fields.only("quantization_config", None)
        ours = self.read(fields)
        fields.check_unknown()
        if fields.problems:
            problems += fields.problems
            return None
        try:
            scaling = ours.pop("rope_scaling", None)
            model = from_dict(ModelConfig, ours)
            check_memory(Config(model=model), training=False)
            return ModelConfig(**{**ours, "rope_scaling": from_dict(RopeScaling, scaling)}) if scaling else model
        except UserError as error:
            name = str(error).partition(":")[0].rpartition(".")[2]
            problems.append(f"{fields.names.get(name, name)}: {str(error).partition(': ')[2]}")
            return None

    def fields(self, model: ModelConfig) -> dict[str, Any]:
        """Return the fields of `config.json`."""
        written = self.write(model)
        given = {name: int(value) if isinstance(value, Derived) else value for name, value in written.items()}
        return {"architectures": [self.architecture], "model_type": self.model_type} | given

    def differences(self, model: ModelConfig) -> list[str]:
        """Return what this family cannot express of a model: what differs when its fields are written and read."""
        problems: list[str] = []
        back = self.config(self.fields(model), problems)
        if back is None:
            return [f"{problem} ({self.title})" for problem in problems]
        found = {each.name: (getattr(model, each.name), getattr(back, each.name)) for each in fields(ModelConfig)}
        return [
            f"model.{name}: found {shown(mine)}, {self.title} has only {shown(its)}"
            for name, (mine, its) in found.items()
            if mine != its and name not in UNSTATED
        ]


def period(kinds: Sequence[str]) -> list[str]:
    """Return the shortest list that repeats to these layer types."""
    repeats = (n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
    return list(kinds[: next(repeats, 0)])
