"""Every setting of a run, as frozen dataclasses whose defaults are the quickstart.

A group validates its values when it is constructed and fills in what can be derived (`head_dim` from `dim`, say), so
every config object is valid. A value filled in this way is a `Derived` number: it is derived again whenever its group
is replaced, and is saved as unset, so that a default stays a default until somebody sets the field. `lmcore.config.cli`
reads these classes from YAML and the command line; `lmcore.config.io` saves the config with the run.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from lmcore.errors import UserError, shown
from lmcore.optim.table import OptimizerName

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
"""Gated kinds of `model.mlp`, which have three matrices; the others have two."""


def _require(group: str, name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise UserError(f"{group}.{name}: found {shown(value)}, expected {expected}")


class Derived(int):
    """An integer that nobody set: it is computed from other fields, and again whenever they change."""


def _explicit(value: int) -> int:
    """Return the value that somebody set, or 0, which stands for a derived value."""
    return 0 if isinstance(value, Derived) else value


def _at_least(group: str, config: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(group, name, value, value >= minimum, f"at least {minimum}")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's scaling of the RoPE frequencies, for contexts longer than the model was trained on."""

    factor: float = 8.0
    """Ratio of the new context length to the original one."""
    low_freq_factor: float = 1.0
    """Wavelengths longer than original_max_seq_len / low_freq_factor are scaled by the full factor."""
    high_freq_factor: float = 4.0
    """Wavelengths shorter than original_max_seq_len / high_freq_factor are not scaled."""
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
    """The decoder's architecture and sizes."""

    vocab_size: int = 0
    """Vocabulary size V; 0 takes the tokenizer's size."""
    dim: int = 128
    """Model width D."""
    n_layers: int = 4
    """Number of blocks L."""
    n_heads: int = 4
    """Number of query heads N."""
    n_kv_heads: int = 0
    """Number of key/value heads K, a divisor of n_heads; 0 takes n_heads (multi-head attention)."""
    head_dim: int = 0
    """Head width H, an even number with position: rope; 0 takes dim / n_heads."""
    ffn_dim: int = 0
    """Feed-forward width F; 0 takes 8/3 of dim, rounded up to a multiple of 32, or, without a gate, four times dim,
    which gives the same number of parameters."""
    max_seq_len: int = 256
    """Maximum context length in tokens."""
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    """Position encoding: rope rotates queries and keys; learned adds a trained position embedding to the token
    embedding; sinusoidal multiplies the token embedding by √dim and adds sines and cosines, as in the original
    Transformer; none leaves only the causal mask."""
    rope_theta: float = 10000.0
    """Base θ of the RoPE frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's frequency scaling; null for none."""
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    """Normalization layer; layernorm always has a weight and a bias, whatever model.bias says."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """pre normalizes the inputs of attention and feed-forward; post normalizes the residual stream after each, and has
    no final norm, as in the original Transformer; sandwich normalizes both inputs and outputs."""
    norm_eps: float = 1e-5
    """Added, inside the square root, to the mean square in RMSNorm and to the variance in LayerNorm."""
    qk_norm: bool = False
    """Apply RMSNorm to each head's queries and keys before rotation, with weights shared by all heads, as in Qwen3."""
    mlp: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """Feed-forward layer: gated with SiLU or GELU, or two linear layers with GELU or ReLU; GELU is exact, x · Φ(x)."""
    bias: bool = False
    """Give every linear layer of the blocks a bias; the output head has none."""
    init: Literal["normal", "xavier", "kaiming"] = "normal"
    """Initialization of the matrices: normal with std 0.02, projections onto the residual stream scaled by
    1/√(2 · n_layers); xavier uniform; kaiming normal, by fan-in. Embeddings are always normal with std 0.02."""
    tie_embeddings: bool = True
    """Share the embedding's weights with the output head."""
    dropout: float = 0.0
    """Dropout probability in training, for the outputs of the embedding and of every residual branch, and for
    attention weights."""
    scan_layers: bool = False
    """Compile one block for all layers; each layer keeps its own weights. jax stacks the layers' parameters and
    optimizer state, scans over them, and compiles forward pass and update once. torch, with train.compile, calls one
    compiled block for each layer, so that compilation time does not grow with depth."""

    def __post_init__(self) -> None:
        _at_least("model", self, 0, "vocab_size", "n_kv_heads", "head_dim", "ffn_dim")
        _at_least("model", self, 1, "dim", "n_layers", "n_heads")
        _at_least("model", self, 2, "max_seq_len")
        if _explicit(self.head_dim) == 0:
            even = self.dim % self.n_heads == 0
            _require("model", "dim", self.dim, even, f"a multiple of n_heads = {self.n_heads}, or set model.head_dim")
        derived = {
            "n_kv_heads": self.n_heads,
            "head_dim": self.dim // self.n_heads,
            "ffn_dim": -(-self.dim * 8 // (3 * 32)) * 32 if self.mlp in GATED else 4 * self.dim,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, _explicit(getattr(self, name)) or Derived(value))
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
    """Source of the text: `files` if set, else the hub `dataset`, else the embedded stories."""

    files: list[str] = field(default_factory=list)
    """Local training text: paths or globs of .txt, .jsonl or .parquet, each also as .gz or .zst."""
    valid_files: list[str] = field(default_factory=list)
    """Local validation text, in the formats of `files`; if empty, `valid_fraction` of the documents is held out."""
    separator: str = "<|endoftext|>"
    """String between two documents of a .txt file; if empty, each file is one document."""
    dataset: str | None = None
    """Name of a data set on the Hugging Face Hub, or a local data set folder."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    split: str = "train"
    """Split of the hub data set to train on."""
    valid_split: str | None = None
    """Split of the hub data set to validate on; null holds out `valid_fraction` of the documents."""
    text_field: str = "text"
    """Field or column that holds the text, in a hub data set, .jsonl or .parquet."""
    streaming: bool = False
    """Read the hub data set as a stream instead of downloading it first."""
    stories: int = 12000
    """Number of stories to generate when neither files nor dataset is set."""
    max_documents: int = 0
    """Maximum number of training documents to read; 0 reads all."""
    valid_fraction: float = 0.05
    """Fraction of the documents held out for validation where no validation text is set; of a single document, its
    last part."""
    dir: str = "data"
    """Folder where prepared token files are cached."""

    def __post_init__(self) -> None:
        _at_least("data", self, 1, "stories")
        _at_least("data", self, 0, "max_documents")
        inside = 0 < self.valid_fraction < 1
        _require("data", "valid_fraction", self.valid_fraction, inside, "more than 0 and less than 1")
        alone = not self.valid_files or bool(self.files)
        _require("data", "valid_files", self.valid_files, alone, "data.files to be set too")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text is converted to token ids."""

    kind: Literal["bpe", "chars", "bytes", "file"] = "bpe"
    """Tokens: byte-level BPE learned from the training text, the characters of that text, the 256 bytes, or an
    existing tokenizer `file`."""
    vocab_size: int = 2048
    """Vocabulary size that BPE is trained to, special tokens and the 256 bytes included."""
    file: str | None = None
    """Path of a tokenizer.json, for kind: file."""
    eot_token: str = "<|endoftext|>"
    """Special token that ends a document; a tokenizer read from `file` must have it."""
    special_tokens: list[str] = field(default_factory=list)
    """Additional special tokens to reserve when the tokenizer is trained."""
    stop_tokens: list[str] = field(default_factory=list)
    """Tokens that end generation, in addition to eot_token; an imported model brings its own."""
    train_bytes: int = 100_000_000
    """Number of bytes, approximate, from the beginning of the training text that BPE learns its merges from."""

    def __post_init__(self) -> None:
        _at_least("tokenizer", self, 1, "train_bytes")
        reserved = 257 + len(self.special_tokens)
        if self.kind == "bpe":
            expected = f"at least {reserved} (256 bytes and the special tokens)"
            _require("tokenizer", "vocab_size", self.vocab_size, self.vocab_size >= reserved, expected)
        named = (self.kind == "file") == (self.file is not None)
        _require("tokenizer", "file", self.file, named, "a path with kind: file, and null with any other kind")
        _require("tokenizer", "eot_token", self.eot_token, bool(self.eot_token), "a non-empty string")
        unique = len({self.eot_token, *self.special_tokens}) == 1 + len(self.special_tokens)
        _require("tokenizer", "special_tokens", self.special_tokens, unique, "distinct strings, none the eot_token")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    name: OptimizerName = "adamw"
    """adafactor stores only row and column means of squared gradients, and scales each update by its parameter's
    magnitude; muon orthogonalizes the momentum of the blocks' matrices and optimizes the rest with adamw; lion updates
    by the sign of its momentum, at a third to a tenth of adamw's lr; sgd has momentum."""
    lr: float = 3e-3
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """Ratio of the final learning rate to the peak."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Learning-rate schedule after warmup; wsd is warmup, stable, then a linear decay."""
    warmup_steps: int | None = None
    """Steps of linear warmup, starting at lr / warmup_steps; null takes a twentieth of train.steps, and follows it when
    it changes."""
    decay_fraction: float = 0.2
    """Fraction of all steps that wsd spends on its decay."""
    beta1: float = 0.9
    """Decay rate of the first moment, for adamw (also inside muon), and of lion's interpolation."""
    beta2: float = 0.95
    """Decay rate of the second moment, for adamw (also inside muon), and of lion's momentum."""
    eps: float = 1e-8
    """Added to the square root of the second moment, for adamw (also inside muon)."""
    momentum: float = 0.95
    """Momentum coefficient of muon (Nesterov) and sgd."""
    weight_decay: float = 0.1
    """Weight decay of the matrices; vectors are not decayed. Decoupled, except that sgd adds it to the gradient."""
    clip: float = 1.0
    """Maximum global gradient norm; 0 disables clipping."""

    def __post_init__(self) -> None:
        _at_least("optim", self, 0, "lr", "weight_decay", "clip")
        _require("optim", "eps", self.eps, self.eps > 0, "more than 0")
        for name in ("min_lr_ratio", "decay_fraction"):
            value = getattr(self, name)
            _require("optim", name, value, 0 <= value <= 1, "at least 0 and at most 1")
        _require("optim", "momentum", self.momentum, 0 < self.momentum < 1, "more than 0 and less than 1")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require("optim", name, value, 0 <= value < 1, "at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training step: number, size, precision and device."""

    steps: int = 700
    """Number of optimizer updates in the whole run."""
    batch_size: int = 8
    """Sequences per update, over all accumulation steps and devices."""
    grad_accum: int = 1
    """Number of micro-batches that a batch is split into to save memory; the update is the same."""
    seq_len: int = 0
    """Tokens per sequence; 0 takes model.max_seq_len."""
    precision: Precision = "float32"
    """Dtype of the matmuls; bfloat16 and float16 keep parameters, norms, softmax and loss in float32. float16 is for
    torch on CUDA, with a gradient scaler."""
    seed: int = 0
    """Random seed of weight initialization, batch order and dropout."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more time."""
    cpu_devices: int = 0
    """Number of CPU cores that the batch is split over, each computing its own gradients; 0 takes all."""
    device: Device = "auto"
    """Device to run on; auto takes an accelerator if there is one (with jax, also a TPU). mps is for torch."""
    compile: bool = False
    """Let torch compile the loss and its gradient: a slower first step, faster later ones. jax always compiles."""
    deterministic: bool = False
    """Let torch use only deterministic algorithms: bitwise equal runs on one device, somewhat slower on CUDA."""
    dropout_masks: Literal["native", "threefry"] = "native"
    """Random number generator of torch's dropout masks: native is torch's own, and faster; threefry draws the masks
    that jax draws. jax always uses threefry."""
    resume: Literal["never", "auto"] = "never"
    """`auto` resumes the run in run_dir from its latest checkpoint, or starts it if there is none."""

    def __post_init__(self) -> None:
        _at_least("train", self, 1, "steps", "batch_size", "grad_accum")
        _at_least("train", self, 0, "seq_len", "cpu_devices")
        _require("train", "seed", self.seed, 0 <= self.seed < 2**31, f"from 0 to {2**31 - 1}")
        divides = self.batch_size % self.grad_accum == 0
        _require("train", "grad_accum", self.grad_accum, divides, f"a divisor of batch_size = {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation of the validation loss, always on the same windows of validation text."""

    every: int = 100
    """Steps between evaluations; the last step is always evaluated. 0 evaluates at the end only."""
    windows: int = 64
    """Validation sequences per evaluation during training, evenly spaced over the text; 0 takes all."""
    batch_size: int = 0
    """Sequences per evaluation batch; 0 takes train.batch_size / train.grad_accum."""

    def __post_init__(self) -> None:
        _at_least("eval", self, 0, "every", "windows", "batch_size")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    every: int = 350
    """Steps between checkpoints; the last step is always saved. 0 saves at the end only."""
    keep: int = 2
    """Number of latest checkpoints to keep, in addition to the best by validation loss."""
    verify: bool = True
    """Compare checkpoints, config and token files with their checksums before use; `--no_verify` sets this to false.
    The config.yaml saved in the run folder always says true."""

    def __post_init__(self) -> None:
        _at_least("checkpoint", self, 0, "every")
        _at_least("checkpoint", self, 1, "keep")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where progress is reported, in addition to the terminal and metrics.jsonl."""

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
    """Sampling of generated text: temperature, then top-k, top-p and min-p, then one draw per token."""

    every: int = 350
    """Steps between samples printed during training; the last step always prints one. 0 prints at the end only."""
    prompt: str = "Once upon a time"
    """Prompt of the samples generated during training."""
    max_tokens: int = 256
    """Maximum number of tokens to generate."""
    temperature: float = 0.7
    """Divides the logits; 0 always takes the most likely token (greedy decoding)."""
    top_k: int = 0
    """Keep only this many most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probabilities sum to at least this; 1 keeps all."""
    min_p: float = 0.0
    """Keep only tokens whose probability is at least this fraction of the highest one; 0 keeps all."""
    seed: int = 0
    """Random seed of sampling: the same seed gives the same text."""

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
    """Folder of the run; null creates a new one under runs/, named after the YAML file."""
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
        steps, max_seq_len, warmup = self.train.steps, self.model.max_seq_len, self.optim.warmup_steps
        if warmup is None or isinstance(warmup, Derived):
            warmup = Derived(steps // 20)
        _require("optim", "warmup_steps", warmup, 0 <= warmup < steps, f"at least 0, less than train.steps = {steps}")
        seq_len = _explicit(self.train.seq_len) or Derived(max_seq_len)
        _require("train", "seq_len", seq_len, seq_len <= max_seq_len, f"at most model.max_seq_len = {max_seq_len}")
        eval_batch = _explicit(self.eval.batch_size) or Derived(self.train.batch_size // self.train.grad_accum)
        object.__setattr__(self, "optim", replace(self.optim, warmup_steps=warmup))
        object.__setattr__(self, "train", replace(self.train, seq_len=seq_len))
        object.__setattr__(self, "eval", replace(self.eval, batch_size=eval_batch))
