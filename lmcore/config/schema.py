"""Every setting of a run, as frozen dataclasses whose defaults are the quickstart.

A group validates its values when it is constructed and fills in what can be derived (`head_dim` from `dim`, say), so
every config object is valid (see `lmcore.config.values`). The model's group is in `lmcore.config.model`.
`lmcore.config.cli` reads these classes from YAML and the command line, and `lmcore.config.io` saves the config with the
run.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from lmcore.config.model import ModelConfig
from lmcore.config.values import Derived, at_least, explicit, require
from lmcore.optim.table import OptimizerName

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "Device",
    "EvalConfig",
    "LogConfig",
    "OptimConfig",
    "ParallelConfig",
    "Precision",
    "SampleConfig",
    "TokenizerConfig",
    "TrainConfig",
]

Precision = Literal["float32", "bfloat16", "float16", "float64"]
Device = Literal["auto", "cpu", "cuda", "mps"]


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
    format: Literal["text", "chat"] = "text"
    """What a record of a hub data set, .jsonl or .parquet holds: text, or a conversation (chat), of which only the
    assistant's tokens count in the loss. Conversations are packed into sequences whole, and masked from one another;
    one longer than train.seq_len is cut there."""
    messages_field: str = "messages"
    """Field or column that holds a conversation, with format: chat: a list of messages, each with role and content."""
    chat_template: str | None = None
    """Jinja template that writes a conversation as text, with format: chat: a file, or the template itself; null takes
    that of the imported model, beside tokenizer.file, else ChatML, whose two special tokens the tokenizer must have."""
    streaming: bool = False
    """Read the hub data set as a stream instead of downloading it first."""
    document_mask: bool = False
    """Let tokens attend only to their own document, and count positions from its beginning: packed documents are
    computed as if each were a sequence by itself. A document is read from the end-of-text token before it on."""
    stories: int = 12000
    """Number of stories to generate when neither files nor dataset is set."""
    max_documents: int = 0
    """Maximum number of training documents to read; 0 reads all."""
    valid_fraction: float = 0.05
    """Fraction of the documents held out for validation where no validation text is set; of a single document, its
    last part."""
    dir: str = "data"
    """Folder where prepared token files are cached."""

    @property
    def is_marked(self) -> bool:
        """Whether batches hold marks beside token ids (see `lmcore.data.marks`)."""
        return self.document_mask or self.format == "chat"

    def __post_init__(self) -> None:
        at_least("data", self, 1, "stories")
        at_least("data", self, 0, "max_documents")
        inside = 0 < self.valid_fraction < 1
        require("data", "valid_fraction", self.valid_fraction, inside, "more than 0 and less than 1")
        alone = not self.valid_files or bool(self.files)
        require("data", "valid_files", self.valid_files, alone, "data.files to be set too")
        sourced = self.format == "text" or bool(self.files) or self.dataset is not None
        require("data", "format", self.format, sourced, "text, or data.files or data.dataset with conversations")


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
        at_least("tokenizer", self, 1, "train_bytes")
        reserved = 257 + len(self.special_tokens)
        if self.kind == "bpe":
            expected = f"at least {reserved} (256 bytes and the special tokens)"
            require("tokenizer", "vocab_size", self.vocab_size, self.vocab_size >= reserved, expected)
        named = (self.kind == "file") == (self.file is not None)
        require("tokenizer", "file", self.file, named, "a path with kind: file, and null with any other kind")
        require("tokenizer", "eot_token", self.eot_token, bool(self.eot_token), "a non-empty string")
        unique = len({self.eot_token, *self.special_tokens}) == 1 + len(self.special_tokens)
        require("tokenizer", "special_tokens", self.special_tokens, unique, "distinct strings, none the eot_token")


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
    nonfinite: Literal["stop", "skip"] = "stop"
    """What happens when the loss or the gradient norm is infinite or NaN: stop ends the run, with its checkpoints
    intact; skip leaves that update out and counts it in `skipped_steps`, and stops after 20 in a row. On CUDA, skip
    makes torch wait for the device at each step. float16 skips such gradients always, while its scale adapts."""

    def __post_init__(self) -> None:
        at_least("optim", self, 0, "lr", "weight_decay", "clip")
        require("optim", "eps", self.eps, self.eps > 0, "more than 0")
        for name in ("min_lr_ratio", "decay_fraction"):
            value = getattr(self, name)
            require("optim", name, value, 0 <= value <= 1, "at least 0 and at most 1")
        require("optim", "momentum", self.momentum, 0 < self.momentum < 1, "more than 0 and less than 1")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require("optim", name, value, 0 <= value < 1, "at least 0 and less than 1")


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
    init_from: str | None = None
    """Weights to start from: a run or checkpoint of either framework, a Hugging Face folder, or bare weights. Its model
    config and tokenizer are taken too; the optimizer is new. null starts from initial weights."""
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
        at_least("train", self, 1, "steps", "batch_size", "grad_accum")
        at_least("train", self, 0, "seq_len", "cpu_devices")
        require("train", "seed", self.seed, 0 <= self.seed < 2**31, f"from 0 to {2**31 - 1}")
        divides = self.batch_size % self.grad_accum == 0
        require("train", "grad_accum", self.grad_accum, divides, f"a divisor of batch_size = {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The mesh: how a run is split over devices, of which the numbers of all axes multiply to the number.

    In torch each process has one device. In jax a process has all devices of its host, or one GPU of several.
    """

    data: int = -1
    """Number of groups that each hold the whole state and compute their part of every batch; −1 takes the devices that
    the other axes leave."""
    fsdp: int = 1
    """Number of devices over which parameters, gradients and optimizer state are sharded, each computing its part of
    the batch: fully sharded data parallelism. A divisor of model.dim; −1 takes the devices that are left."""
    tensor: int = 1
    """Number of devices that share the heads, the feed-forward width and the vocabulary, and compute the same part of
    the batch: tensor parallelism. A divisor of model.n_kv_heads and model.ffn_dim; −1 takes the devices that are
    left."""
    sequence: bool = False
    """Split the residual stream along its positions over the devices of `tensor`, between their matmuls: sequence
    parallelism, with less memory for activations. train.seq_len must be a multiple of `tensor`."""

    def __post_init__(self) -> None:
        axes = {name: getattr(self, name) for name in ("data", "fsdp", "tensor")}
        for name, size in axes.items():
            require("parallel", name, size, size == -1 or size >= 1, "at least 1, or -1 for the devices that are left")
        last = next((name for name, size in reversed(axes.items()) if size == -1), "")
        others = [name for name, size in axes.items() if size == -1 and name != last]
        if last and others:
            require("parallel", last, -1, False, f"a number, since parallel.{others[0]} is -1; only one axis can be")


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
        at_least("eval", self, 0, "every", "windows", "batch_size")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    every: int = 350
    """Steps between checkpoints; the last step is always saved. 0 saves at the end only."""
    keep: int = 2
    """Number of latest checkpoints to keep, in addition to the best by validation loss."""
    grace: float = 0.0
    """Seconds after SIGTERM in which the run finishes its step and saves; if it has not saved by then, it ends at once
    with exit code 143, earlier checkpoints intact. 0 sets no limit. Set it a little below what the scheduler allows."""
    verify: bool = True
    """Compare checkpoints, config and token files with their checksums before use; `--no_verify` sets this to false.
    The config.yaml saved in the run folder always says true."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a run does where a file cannot be written, on a full disk say: stop with an error, or print a note and train
    on; the next checkpoint is then tried again, and a run whose last one fails ends with exit code 1."""

    def __post_init__(self) -> None:
        at_least("checkpoint", self, 0, "every", "grace")
        at_least("checkpoint", self, 1, "keep")


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
        at_least("log", self, 1, "every")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sampling of generated text: temperature, then top-k, top-p and min-p, then one draw per token."""

    every: int = 350
    """Steps between samples printed during training; the last step always prints one. 0 prints at the end only."""
    prompt: str = "Once upon a time"
    """Prompt of the samples generated during training; with data.format: chat, a message of the user."""
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
        at_least("sample", self, 0, "every", "temperature", "top_k")
        require("sample", "seed", self.seed, 0 <= self.seed < 2**64, f"from 0 to {2**64 - 1}")
        at_least("sample", self, 1, "max_tokens")
        require("sample", "top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1")
        require("sample", "min_p", self.min_p, 0 <= self.min_p <= 1, "at least 0 and at most 1")


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
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        if self.train.init_from is None:
            self.model.check_lora()
        steps, max_seq_len, warmup = self.train.steps, self.model.max_seq_len, self.optim.warmup_steps
        if warmup is None or isinstance(warmup, Derived):
            warmup = Derived(steps // 20)
        require("optim", "warmup_steps", warmup, 0 <= warmup < steps, f"at least 0, less than train.steps = {steps}")
        seq_len = explicit(self.train.seq_len) or Derived(max_seq_len)
        require("train", "seq_len", seq_len, seq_len <= max_seq_len, f"at most model.max_seq_len = {max_seq_len}")
        eval_batch = explicit(self.eval.batch_size) or Derived(self.train.batch_size // self.train.grad_accum)
        object.__setattr__(self, "optim", replace(self.optim, warmup_steps=warmup))
        object.__setattr__(self, "train", replace(self.train, seq_len=seq_len))
        object.__setattr__(self, "eval", replace(self.eval, batch_size=eval_batch))
