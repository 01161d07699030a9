"""Flax models of transformers 4.56.2 beside its torch ones, as pairs for `parity.compare`: small random configurations.

`run_flax_models.py` beside this file builds and compares them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]

VOCABULARY, WIDTH, LENGTH, SIZE = 61, 32, 9, 24
"""Of tokens, of hidden states, of texts, and of images on each side."""
RENAMED = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
"""Last word of a Flax path -> of the torch name, where they differ."""
NUMBERED = re.compile(r"\.layer_(?=\d)")
"""What ResNet has before the number of a layer, where torch has a list."""
AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
"""Axes of a kernel -> their order in torch: (in, out) of a matrix; (…space, in, out) of a convolution."""


def text(rng: np.random.Generator, padding: int = 1, token_types: bool = False) -> Batch:
    """Return token ids, a mask that hides the last three of the second sequence, and targets.

    Args:
        rng: of the ids.
        padding: id of the positions that are hidden.
        token_types: whether all positions are said to be of type 0, instead of leaving that to the classes.
    """
    ids, targets = rng.integers(3, VOCABULARY, (2, 2, LENGTH))
    mask = np.ones((2, LENGTH), np.int64)
    mask[1, -3:] = 0
    batch = {"input_ids": np.where(mask == 1, ids, padding), "attention_mask": mask, "targets": targets}
    return batch | ({"token_type_ids": np.zeros_like(ids)} if token_types else {})


def sequences(rng: np.random.Generator) -> Batch:
    """Return a text to encode and one to decode."""
    batch = text(rng)
    return batch | {"decoder_input_ids": rng.integers(3, VOCABULARY, (2, LENGTH))}


def speech(rng: np.random.Generator) -> Batch:
    """Return a spectrogram of 8 mel bins and twice 10 positions, exact in float32, and a text to decode."""
    ids, targets = rng.integers(3, VOCABULARY, (2, 2, LENGTH))
    return {"input_features": rng.standard_normal((2, 8, 20), np.float32), "decoder_input_ids": ids, "targets": targets}


def images(rng: np.random.Generator) -> Batch:
    """Return two images in torch's layout, which Flax takes too, exact in float32, to which it casts; and classes."""
    return {"pixel_values": rng.standard_normal((2, 3, SIZE, SIZE), np.float32), "targets": rng.integers(5, size=2)}


def captions(rng: np.random.Generator) -> Batch:
    """Return two images and two texts that end in the largest id."""
    batch = text(rng) | images(rng) | {"targets": np.arange(2)}
    batch["input_ids"][:, -4] = VOCABULARY - 1
    return batch


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Where the two classes are not the same model, why, and what makes them the same."""

    rung: int
    first: str
    """Name of the first value that differs."""
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the torch class that make it the model of the Flax class."""
    inputs: Callable[[np.random.Generator], Batch] | None = None
    """Inputs on which both agree."""
    states: Sequence[str] = ()
    """Hidden states that are different places of the model."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A Flax class beside its torch class, with how to build and call both."""

    name: str
    """Of the torch class; the Flax class has "Flax" before it."""
    config: str
    options: Mapping[str, Any]
    inputs: Callable[[np.random.Generator], Batch] = text
    outputs: str = "logits"
    """Output from which the loss is computed."""
    frozen: Sequence[str] = ()
    """Torch parameters that are constants in both classes."""
    decay: float = 0.1
    """Weight decay in training."""
    only_torch: Sequence[str] = ()
    deviation: Deviation | None = None
    torch_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the torch class alone."""
    ignored: Sequence[str] = ()
    """Hidden states that are not compared."""
    fault: Mapping[str, Any] = field(default_factory=dict)
    """Options of the torch class that plant a fault, which must be found."""


BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 24}
LLAMA = BERT | {"num_key_value_heads": 2}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
}
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": 8,
}
PADDING = "torch's embedding of the padding id has no gradient; Flax's has, where padded positions are in the loss"
PAIRS = {
    "llama": Pair(name="LlamaForCausalLM", config="LlamaConfig", options=LLAMA, fault={"rms_norm_eps": 1e-5}),
    "llama rope": Pair(
        name="LlamaForCausalLM",
        config="LlamaConfig",
        options=LLAMA | {"rope_theta": 5e5},
        fault={"rms_norm_eps": 1e-5},
        deviation=Deviation(
            rung=3,
            first="hidden_states 1",
            why="Flax has a rope_theta of 10,000, whatever the config says; so have Mistral and Gemma",
            options={"rope_theta": 1e4},
        ),
    ),
    "mistral": Pair(
        name="MistralForCausalLM",
        config="MistralConfig",
        options=LLAMA | {"sliding_window": 4},
        fault={"rms_norm_eps": 1e-5},
        deviation=Deviation(
            rung=3,
            first="hidden_states 1",
            why="a window of 4 is 5 positions in Flax, the present one and 4 before it; in torch it is 4",
            options={"sliding_window": 5},
        ),
    ),
    "gemma": Pair(
        name="GemmaForCausalLM",
        config="GemmaConfig",
        options=LLAMA | {"head_dim": 8},
        fault={"rope_theta": 9e3},
    ),
    "gpt2": Pair(
        name="GPT2LMHeadModel",
        config="GPT2Config",
        options=GPT2,
        fault={"layer_norm_epsilon": 1e-6},
    ),
    "gpt2 scale": Pair(
        name="GPT2LMHeadModel",
        config="GPT2Config",
        options=GPT2 | {"scale_attn_by_inverse_layer_idx": True},
        fault={"layer_norm_epsilon": 1e-6},
        deviation=Deviation(
            rung=3,
            first="hidden_states 2",
            why="only torch's eager attention reads that option; neither Flax's nor torch's default does",
        ),
        torch_options={"attn_implementation": "eager"},
    ),
    "gpt-neo": Pair(
        name="GPTNeoForCausalLM",
        config="GPTNeoConfig",
        options={
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 24,
            "intermediate_size": 48,
        },
        fault={"window_size": 5},
    ),
    "gpt-j": Pair(
        name="GPTJForCausalLM",
        config="GPTJConfig",
        options={
            "vocab_size": VOCABULARY,
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 24,
            "rotary_dim": 4,
            "n_inner": 48,
        },
        fault={"layer_norm_epsilon": 1e-6},
    ),
    "opt": Pair(
        name="OPTForCausalLM",
        config="OPTConfig",
        options={
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 24,
            "word_embed_proj_dim": WIDTH,
        },
        fault={"activation_function": "gelu"},
        deviation=Deviation(
            rung=5, first="model.decoder.embed_tokens.embedding", why=PADDING, inputs=partial(text, padding=2)
        ),
    ),
    "bert": Pair(name="BertForMaskedLM", config="BertConfig", options=BERT, fault={"layer_norm_eps": 1e-6}),
    "roberta": Pair(
        name="RobertaForMaskedLM",
        config="RobertaConfig",
        options=BERT,
        fault={"hidden_act": "gelu_new"},
        deviation=Deviation(
            rung=5,
            first="roberta.embeddings.word_embeddings.embedding",
            why=PADDING,
            inputs=partial(text, padding=2),
        ),
    ),
    "electra": Pair(
        name="ElectraForMaskedLM",
        config="ElectraConfig",
        options=BERT | {"embedding_size": 20},
        fault={"hidden_act": "gelu_new"},
        deviation=Deviation(
            rung=3,
            first="hidden_states 0",
            why="without token_type_ids, Flax takes all tokens to be of type 1, torch of type 0",
            inputs=partial(text, token_types=True),
        ),
    ),
    "albert": Pair(
        name="AlbertForMaskedLM",
        config="AlbertConfig",
        options=BERT | {"embedding_size": 20},
        fault={"hidden_act": "gelu"},
    ),
    "distilbert": Pair(
        name="DistilBertForMaskedLM",
        config="DistilBertConfig",
        options={
            "vocab_size": VOCABULARY,
            "dim": WIDTH,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 24,
        },
        fault={"activation": "gelu_new"},
    ),
    "t5": Pair(
        name="T5ForConditionalGeneration",
        config="T5Config",
        options={
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12,
        },
        inputs=sequences,
        fault={"relative_attention_max_distance": 8},
    ),
    "bart": Pair(
        name="BartForConditionalGeneration",
        config="BartConfig",
        options=BART | {"max_position_embeddings": 24},
        inputs=sequences,
        fault={"activation_function": "gelu_new"},
    ),
    "whisper": Pair(
        name="WhisperForConditionalGeneration",
        config="WhisperConfig",
        options=BART
        | {
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "max_target_positions": 24,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        inputs=speech,
        frozen=["model.encoder.embed_positions.weight"],
        decay=0.0,  # torch leaves out what has no gradient, optax decays it
        fault={"activation_function": "gelu_new"},
    ),
    "vit": Pair(
        name="ViTForImageClassification",
        config="ViTConfig",
        options=VISION | {"num_labels": 5},
        inputs=images,
        fault={"hidden_act": "gelu_new"},
        deviation=Deviation(
            rung=3,
            first="hidden_states 2",
            why="the last of the hidden states is after the final norm in torch, before it in Flax",
            states=["hidden_states 2"],
        ),
    ),
    "clip": Pair(
        name="CLIPModel",
        config="CLIPConfig",
        options={
            "text_config": BERT | {"eos_token_id": VOCABULARY - 1, "bos_token_id": 0, "pad_token_id": 1},
            "vision_config": VISION,
            "projection_dim": 16,
        },
        inputs=captions,
        outputs="logits_per_image",
        fault={"vision_config": VISION | {"hidden_act": "gelu"}},
    ),
    "resnet": Pair(
        name="ResNetForImageClassification",
        config="ResNetConfig",
        options={
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [2, 2],
            "layer_type": "basic",
            "num_labels": 5,
        },
        inputs=images,
        fault={"hidden_act": "silu"},
    ),
}


def names_of(flat: Mapping[str, np.ndarray], module: Any) -> dict[str, Any]:
    """Return the mapping for `parity.compare`: transformers names both alike, but for the last word and for kernels.

    GPT-2 is no exception: its Flax Conv1D stores (out, in), the transpose of a Dense kernel, and torch's Conv1D (in,
    out), so that the kernels of both are transposed.

    Args:
        flat: Flax parameters by dotted path, with `params.` and `batch_stats.` before it where there are statistics.
        module: the torch module; of weights that it ties, the first name counts.
    """
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    first: dict[int, str] = {}
    for name, tensor in tensors:
        first.setdefault(id(tensor), name)
    known = {name: first[id(tensor)] for name, tensor in tensors}
    names: dict[str, Any] = {}
    for path, value in flat.items():
        *owner, last = NUMBERED.sub(".", path.removeprefix("params.").removeprefix("batch_stats.")).split(".")
        name = ".".join([*owner, RENAMED.get(last, last)])
        name = known.get(name, name)
        names[path] = (name, AXES[value.ndim]) if last == "kernel" else name
    return names


def drawn(flat: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Return parameters in float32, moved at random, so that none is 0 or 1 throughout; variances stay positive.

    Args:
        flat: initial parameters by path.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    noise = {path: rng.standard_normal(value.shape).astype(np.float32) for path, value in flat.items()}
    moved = {path: value.astype(np.float32) + np.float32(0.1) * noise[path] for path, value in flat.items()}
    variances = {path: np.exp(0.3 * noise[path]) for path in flat if path.startswith("batch_stats.") and "var" in path}
    return moved | variances
