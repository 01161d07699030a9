"""Every setting of a run, as frozen dataclasses whose defaults are the quickstart.

A group checks itself when it is made and fills what can be derived (`head_dim` from `dim`, say), so a config that
exists is valid. What was filled is a `Derived` number: it is derived again whenever its group is replaced, and saved as
not given, so that a default stays one until somebody sets the field. `lmcore.config.cli` reads these classes from YAML
and the command line; `lmcore.config.io` keeps the config with the run.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from lmcore.errors import UserError, shown

__all__ = [
    "GATED",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "Derived",
    "Device",
    "EvalConfig",
    "LogConfig",
    "ModelConfig",
    "OptimConfig",
    "Precision",
    "RopeScaling",
    "SampleConfig",
    "TokenizerConfig",
    "TrainConfig",
]

Precision = Literal["float32", "bfloat16", "float16", "float64"]
Device = Literal["auto", "cpu", "cuda", "mps"]

GATED = ("swiglu", "geglu")
"""Kinds of `model.mlp` with a gate: three matrices, where the others have two."""


def _require(group: str, name: str, found: object, ok: bool, expected: str) -> None:
    if not ok:
        raise UserError(f"{group}.{name}: found {shown(found)}, expected {expected}")


class Derived(int):
    """A number that nobody gave: it follows from other fields, and follows them when they change."""


def _given(value: int) -> int:
    """The value of a field in which 0 stands for what is derived."""
    return 0 if isinstance(value, Derived) else value


def _at_least(group: str, config: object, minimum: float, *names: str) -> None:
    for name in names:
        found = getattr(config, name)
        _require(group, name, found, found >= minimum, f"at least {minimum}")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies for contexts longer than the model was trained on."""

    factor: float = 8.0
    """How many times longer than the original the new context is."""
    low_freq_factor: float = 1.0
    """Wavelengths longer than original_max_seq_len / low_freq_factor are stretched in full."""
    high_freq_factor: float = 4.0
    """Wavelengths shorter than original_max_seq_len / high_freq_factor are left alone."""
    original_max_seq_len: int = 8192
    """Context length, in tokens, that the unscaled frequencies were trained for."""

    def __post_init__(self) -> None:
        group = "model.rope_scaling"
        _at_least(group, self, 1, "factor", "original_max_seq_len")
        _require(group, "low_freq_factor", self.low_freq_factor, self.low_freq_factor > 0, "more than 0")
        ordered = self.high_freq_factor > self.low_freq_factor
        _require(group, "high_freq_factor", self.high_freq_factor, ordered, "more than low_freq_factor")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the decoder."""

    vocab_size: int = 0
    """Rows of the embedding; 0 takes the tokenizer's size."""
    dim: int = 128
    """Model width D."""
    n_layers: int = 4
    """Number of blocks L."""
    n_heads: int = 4
    """Number of query heads N."""
    n_kv_heads: int = 0
    """Number of key/value heads K, a divisor of n_heads; 0 takes n_heads (no grouping)."""
    head_dim: int = 0
    """Width of one head H, even with position: rope; 0 takes dim / n_heads."""
    ffn_dim: int = 0
    """Width of the feed-forward layer F; 0 takes 8/3 of dim, rounded up to a multiple of 32, or four times dim where
    mlp has no gate: as many parameters."""
    max_seq_len: int = 256
    """Longest context, in tokens."""
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    """How positions are told: rope turns queries and keys; learned adds a row of weights to the embedding; sinusoidal
    multiplies that by √dim and adds sines and cosines, as in the original Transformer; none leaves only the causal
    mask."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's frequency scaling; null for none."""
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    """Kind of norm; layernorm has a weight and a bias, whatever model.bias says."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """pre norms what goes into attention and feed-forward; post norms the residual stream after each, and has no final
    norm, as in the original Transformer; sandwich norms what goes in and what comes out."""
    norm_eps: float = 1e-5
    """Added under the root to the mean of squares in RMSNorm, to the variance in LayerNorm."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys before they are turned, its weights shared by all heads, as in Qwen3."""
    mlp: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """Feed-forward layer: gated by SiLU or GELU, or two layers with GELU or ReLU between; GELU is exact, x · Φ(x)."""
    bias: bool = False
    """A bias in every linear layer of the blocks; the output head has none."""
    init: Literal["normal", "xavier", "kaiming"] = "normal"
    """Initial matrices: normal with std 0.02, outputs onto the residual stream scaled by 1/√(2 · n_layers); xavier's
    uniform; kaiming's normal, by inputs. Embeddings are normal with std 0.02 in any case."""
    tie_embeddings: bool = True
    """Use the embedding as the output head too."""
    dropout: float = 0.0
    """Share of the embedding's and every residual branch's outputs, and of attention weights, dropped in training."""
    scan_layers: bool = False
    """Compile one block for all layers, which have the same weights either way. jax loops over the layers, whose
    parameters and optimizer state it holds stacked, and compiles forward pass and update once; torch, with
    train.compile, calls the block for each, and compiles a deep model in the time of a flat."""

    def __post_init__(self) -> None:
        _at_least("model", self, 0, "vocab_size", "n_kv_heads", "head_dim", "ffn_dim")
        _at_least("model", self, 1, "dim", "n_layers", "n_heads")
        _at_least("model", self, 2, "max_seq_len")
        if _given(self.head_dim) == 0:
            even = self.dim % self.n_heads == 0
            _require("model", "dim", self.dim, even, f"a multiple of n_heads = {self.n_heads}, or set model.head_dim")
        derived = {
            "n_kv_heads": self.n_heads,
            "head_dim": self.dim // self.n_heads,
            "ffn_dim": -(-self.dim * 8 // (3 * 32)) * 32 if self.mlp in GATED else 4 * self.dim,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, _given(getattr(self, name)) or Derived(value))
        divides = self.n_heads % self.n_kv_heads == 0
        _require("model", "n_kv_heads", self.n_kv_heads, divides, f"a divisor of n_heads = {self.n_heads}")
        rotary = self.position == "rope"
        even = not rotary or self.head_dim % 2 == 0
        _require("model", "head_dim", self.head_dim, even, "an even number (rotary pairs)")
        unscaled = self.rope_scaling is None
        expected = f"null with position: {self.position}"
        _require("model", "rope_scaling", self.rope_scaling, rotary or unscaled, expected)
        _require("model", "rope_theta", self.rope_theta, self.rope_theta > 0, "more than 0")
        _require("model", "norm_eps", self.norm_eps, self.norm_eps > 0, "more than 0")
        _require("model", "dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from: `files` if given, else the hub `dataset`, else the embedded stories."""

    files: list[str] = field(default_factory=list)
    """Local training text: paths or globs of .txt, .jsonl or .parquet, each also as .gz or .zst."""
    valid_files: list[str] = field(default_factory=list)
    """Local validation text, read as `files` is; none holds out `valid_fraction` of the documents."""
    separator: str = "<|endoftext|>"
    """Text between two documents of a .txt file; empty makes each file one document."""
    dataset: str | None = None
    """Name of a Hugging Face hub data set, or a local data set folder."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    split: str = "train"
    """Split of the hub data set to train on."""
    valid_split: str | None = None
    """Split of the hub data set to validate on; null holds out `valid_fraction` of the documents."""
    text_field: str = "text"
    """Field that holds the text, in a hub data set, .jsonl or .parquet."""
    streaming: bool = False
    """Read the hub data set as a stream instead of downloading it first."""
    stories: int = 12000
    """Number of stories that the embedded generator writes when neither files nor dataset is given."""
    max_documents: int = 0
    """Read no more than this many training documents; 0 reads all."""
    valid_fraction: float = 0.05
    """Share of the documents held out for validation where no validation text is named; of a single document,
    its last part."""
    dir: str = "data"
    """Folder where prepared token files are kept and found again."""

    def __post_init__(self) -> None:
        _at_least("data", self, 1, "stories")
        _at_least("data", self, 0, "max_documents")
        inside = 0 < self.valid_fraction < 1
        _require("data", "valid_fraction", self.valid_fraction, inside, "more than 0 and less than 1")
        alone = not self.valid_files or bool(self.files)
        _require("data", "valid_files", self.valid_files, alone, "data.files beside it")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: Literal["bpe", "chars", "bytes", "file"] = "bpe"
    """Byte-level BPE trained on the training text, its characters, the 256 bytes, or an existing `file`."""
    vocab_size: int = 2048
    """Size that BPE is trained to, special tokens and the 256 bytes included."""
    file: str | None = None
    """Path of a tokenizer.json, for kind: file."""
    eot_token: str = "<|endoftext|>"
    """Special token that ends a document; a tokenizer read from `file` must have it."""
    special_tokens: list[str] = field(default_factory=list)
    """Further special tokens to reserve when training."""
    stop_tokens: list[str] = field(default_factory=list)
    """Tokens that end a generated text beside eot_token; an imported model brings its own."""
    train_bytes: int = 100_000_000
    """BPE learns its merges from about the first this many bytes of the training text."""

    def __post_init__(self) -> None:
        _at_least("tokenizer", self, 1, "train_bytes")
        reserved = 257 + len(self.special_tokens)
        if self.kind == "bpe":
            expected = f"at least {reserved} (256 bytes and the special tokens)"
            _require("tokenizer", "vocab_size", self.vocab_size, self.vocab_size >= reserved, expected)
        named = (self.kind == "file") == (self.file is not None)
        _require("tokenizer", "file", self.file, named, "a path with kind: file, and null with any other kind")
        _require("tokenizer", "eot_token", self.eot_token, bool(self.eot_token), "a non-empty text")
        unique = len({self.eot_token, *self.special_tokens}) == 1 + len(self.special_tokens)
        _require("tokenizer", "special_tokens", self.special_tokens, unique, "distinct texts, none the eot_token")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    name: Literal["adamw", "adafactor", "muon", "lion", "sgd"] = "adamw"
    """adafactor keeps row and column means of squares only, and scales each update by its parameter's size; muon
    orthogonalizes the momentum of the blocks' matrices, and leaves the rest to adamw; lion takes the sign of its
    momentum, at a third to a tenth of adamw's lr; sgd has momentum."""
    lr: float = 3e-3
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """Last learning rate as a share of the peak."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after warmup; wsd is warmup, stable, then a linear decay."""
    warmup_steps: int | None = None
    """Steps of linear warmup, the first of which already has lr / warmup_steps; null takes a twentieth of all,
    whatever train.steps becomes."""
    decay_fraction: float = 0.2
    """Share of all steps that wsd spends on its decay."""
    beta1: float = 0.9
    """Decay of the mean of gradients, for adamw, for what muon leaves to it, and for lion."""
    beta2: float = 0.95
    """Decay of the mean of squared gradients, likewise; lion's of its one mean."""
    eps: float = 1e-8
    """Added to the root of the mean of squares, for adamw and for what muon leaves to it."""
    momentum: float = 0.95
    """Decay of the momentum of muon (Nesterov's) and sgd."""
    weight_decay: float = 0.1
    """Decay of the matrices, norm weights left out: decoupled from the gradient, but for sgd, which adds it there."""
    clip: float = 1.0
    """Largest global norm of the gradients; 0 does not clip."""

    def __post_init__(self) -> None:
        _at_least("optim", self, 0, "lr", "weight_decay", "clip")
        _require("optim", "eps", self.eps, self.eps > 0, "more than 0")
        for name in ("min_lr_ratio", "decay_fraction"):
            found = getattr(self, name)
            _require("optim", name, found, 0 <= found <= 1, "at least 0 and at most 1")
        _require("optim", "momentum", self.momentum, 0 < self.momentum < 1, "more than 0 and less than 1")
        for name in ("beta1", "beta2"):
            found = getattr(self, name)
            _require("optim", name, found, 0 <= found < 1, "at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What one step is and how many there are."""

    steps: int = 700
    """Optimizer updates in the whole run."""
    batch_size: int = 8
    """Sequences per update, over all accumulation steps and devices."""
    grad_accum: int = 1
    """Parts, one after another, that a batch is cut into to save memory; the update is the same."""
    seq_len: int = 0
    """Tokens per sequence; 0 takes model.max_seq_len."""
    precision: Precision = "float32"
    """Type of the matrix products; bfloat16 and float16 keep float32 parameters, norms, softmax and loss. float16 is
    for torch on CUDA, with a gradient scaler."""
    seed: int = 0
    """Seed of initial weights, batch order and dropout."""
    remat: bool = False
    """Recompute each block in the backward pass instead of storing it: less memory, about a third more time."""
    cpu_devices: int = 0
    """On a CPU, the batch is split over this many cores, each with gradients of its own; 0 takes all."""
    device: Device = "auto"
    """What to run on; auto takes an accelerator where there is one (a TPU too, with jax). mps is for torch."""
    compile: bool = False
    """Let torch compile the loss and its gradient: the first step takes longer, the others less. jax always does."""
    deterministic: bool = False
    """Let torch use only operations that give the same bits in every run on one device, at some cost on CUDA."""
    dropout_masks: Literal["native", "threefry"] = "native"
    """Generator of torch's dropout masks: native is torch's own, and faster; threefry draws jax's, so that both train
    alike. jax always draws threefry."""
    resume: Literal["never", "auto"] = "never"
    """`auto` continues the run in run_dir from its latest checkpoint, or starts it."""

    def __post_init__(self) -> None:
        _at_least("train", self, 1, "steps", "batch_size", "grad_accum")
        _at_least("train", self, 0, "seq_len", "cpu_devices")
        _require("train", "seed", self.seed, 0 <= self.seed < 2**31, f"from 0 to {2**31 - 1}")
        divides = self.batch_size % self.grad_accum == 0
        _require("train", "grad_accum", self.grad_accum, divides, f"a divisor of batch_size = {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Validation loss, on the same windows of validation text each time."""

    every: int = 100
    """Steps between evaluations; the last step is always evaluated. 0 evaluates at the end only."""
    windows: int = 64
    """Validation sequences per evaluation during training, evenly spread; 0 takes all."""
    batch_size: int = 0
    """Sequences per evaluation batch; 0 takes train.batch_size / train.grad_accum."""

    def __post_init__(self) -> None:
        _at_least("eval", self, 0, "every", "windows", "batch_size")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved, and what is kept."""

    every: int = 350
    """Steps between checkpoints; the last step is always saved. 0 saves at the end only."""
    keep: int = 2
    """Number of latest checkpoints to keep; the best by validation loss is kept besides."""
    verify: bool = True
    """Compare checkpoints, config and token files with their checksums before they are used; `--no_verify` is short for
    false. The run's own config.yaml says true in any case."""

    def __post_init__(self) -> None:
        _at_least("checkpoint", self, 0, "every")
        _at_least("checkpoint", self, 1, "keep")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where progress is reported, beside the terminal and metrics.jsonl."""

    every: int = 10
    """Steps between reports of the training loss."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run folder."""
    wandb: bool = False
    """Report to Weights & Biases (WANDB_MODE=offline works without a network)."""
    project: str = "twinlm"
    """Weights & Biases project."""

    def __post_init__(self) -> None:
        _at_least("log", self, 1, "every")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How text is generated: temperature, then top-k, top-p and min-p, then one draw per token."""

    every: int = 350
    """Steps between samples printed during training; the last step always prints one. 0 prints at the end only."""
    prompt: str = "Once upon a time"
    """Text that samples begin with during training."""
    max_tokens: int = 256
    """Most tokens to generate."""
    temperature: float = 0.7
    """Divides the logits; 0 always takes the likeliest token (greedy)."""
    top_k: int = 0
    """Keep only this many likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities reach this sum; 1 keeps all."""
    min_p: float = 0.0
    """Keep only tokens at least this share as likely as the likeliest; 0 keeps all."""
    seed: int = 0
    """Seed of the draws: one seed, one text."""

    def __post_init__(self) -> None:
        _at_least("sample", self, 0, "every", "temperature", "top_k")
        _require("sample", "seed", self.seed, 0 <= self.seed < 2**64, f"from 0 to {2**64 - 1}")
        _at_least("sample", self, 1, "max_tokens")
        _require("sample", "top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        _require("sample", "min_p", self.min_p, 0 <= self.min_p <= 1, "at least 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run: a folder and the groups above."""

    run_dir: str | None = None
    """Folder of the run; null makes a new one under runs/, named after the YAML file."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        steps, longest, warmup = self.train.steps, self.model.max_seq_len, self.optim.warmup_steps
        if warmup is None or isinstance(warmup, Derived):
            warmup = Derived(steps // 20)
        _require("optim", "warmup_steps", warmup, 0 <= warmup < steps, f"at least 0, less than train.steps = {steps}")
        seq_len = _given(self.train.seq_len) or Derived(longest)
        _require("train", "seq_len", seq_len, seq_len <= longest, f"at most model.max_seq_len = {longest}")
        eval_batch = _given(self.eval.batch_size) or Derived(self.train.batch_size // self.train.grad_accum)
        object.__setattr__(self, "optim", replace(self.optim, warmup_steps=warmup))
        object.__setattr__(self, "train", replace(self.train, seq_len=seq_len))
        object.__setattr__(self, "eval", replace(self.eval, batch_size=eval_batch))
