"""A config that exists is valid and resolved; what cannot be is refused in one line; no field is mute or unread."""

import ast
import inspect
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmcore import config as configs
from lmcore.config import (
    GROUPS,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
    from_dict,
    load,
    save,
)
from lmcore.errors import UserError
from lmcore.optim.schedule import learning_rate
from tests.lmcore.config.every_field import all_fields

ROOT = Path(configs.__file__).parents[2]


def test_the_defaults_are_valid_and_resolved():
    config = Config()
    assert (config.model.head_dim, config.model.n_kv_heads, config.model.ffn_dim) == (32, 4, 352)
    assert (config.optim.warmup_steps, config.train.seq_len, config.eval.batch_size) == (35, 256, 8)


def test_the_run_fills_warmup_sequence_and_evaluation_batch_and_keeps_what_is_given():
    train = TrainConfig(steps=59, batch_size=12, grad_accum=3)
    filled = Config(model=ModelConfig(max_seq_len=40), train=train)
    assert (filled.optim.warmup_steps, filled.train.seq_len, filled.eval.batch_size) == (2, 40, 4)
    kept = Config(
        model=ModelConfig(max_seq_len=40),
        train=replace(train, seq_len=39),
        optim=OptimConfig(warmup_steps=0),
        eval=EvalConfig(batch_size=5),
    )
    assert (kept.optim.warmup_steps, kept.train.seq_len, kept.eval.batch_size) == (0, 39, 5)


IMPOSSIBLE = [
    (Config, {"model": {"position": "rotary"}}, "model.position: found 'rotary', expected one of rope, learned, sin"),
    (
        Config,
        {"model": {"norm": "batch"}},
        "model.norm: found 'batch', expected one of rmsnorm, zero_c",
    ),
    (Config, {"model": {"norm_placement": "mid"}}, "model.norm_placement: found 'mid', expected one of pre, post, san"),
    (
        Config,
        {"model": {"mlp": "glu"}},
        "model.mlp: found 'glu', expected one of swiglu, geglu, geglu_t",
    ),
    (Config, {"model": {"init": "zeros"}}, "model.init: found 'zeros', expected one of normal, xavier, kaiming"),
    (Config, {"model": {"bias": 1}}, "model.bias: found 1, expected true or false"),
    (DataConfig, {"valid_files": ["v"]}, "data.valid_files: found ['v'], expected data.files to be set too"),
    (DataConfig, {"valid_fraction": 1.0}, "data.valid_fraction: found 1.0, expected more than 0 and less than 1"),
    (DataConfig, {"valid_fraction": 0.0}, "data.valid_fraction: found 0.0, expected more than 0 and less than 1"),
    (DataConfig, {"stories": 0}, "data.stories: found 0, expected at least 1"),
    (DataConfig, {"max_documents": -1}, "data.max_documents: found -1, expected at least 0"),
    (TokenizerConfig, {"kind": "file"}, "tokenizer.file: found None, expected a path with kind: file"),
    (TokenizerConfig, {"file": "t.json"}, "tokenizer.file: found 't.json', expected a path with kind: file, and null"),
    (TokenizerConfig, {"vocab_size": 256}, "tokenizer.vocab_size: found 256, expected at least 257"),
    (
        TokenizerConfig,
        {"vocab_size": 258, "special_tokens": ["<a>", "<b>"]},
        "tokenizer.vocab_size: found 258, expected at least 259",
    ),
    (TokenizerConfig, {"eot_token": ""}, "tokenizer.eot_token: found '', expected a non-empty string"),
    (TokenizerConfig, {"special_tokens": ["<a>", "<a>"]}, "tokenizer.special_tokens: found ['<a>', '<a>'], expected"),
    (
        TokenizerConfig,
        {"special_tokens": ["<|endoftext|>"]},
        "tokenizer.special_tokens: found ['<|endoftext|>'], expected distinct strings, none the eot_token",
    ),
    (TokenizerConfig, {"train_bytes": 0}, "tokenizer.train_bytes: found 0, expected at least 1"),
    (OptimConfig, {"lr": -1.0}, "optim.lr: found -1.0, expected at least 0"),
    (OptimConfig, {"lr": float("nan")}, "optim.lr: found nan, expected at least 0"),
    (OptimConfig, {"weight_decay": -0.1}, "optim.weight_decay: found -0.1, expected at least 0"),
    (OptimConfig, {"clip": -1.0}, "optim.clip: found -1.0, expected at least 0"),
    (OptimConfig, {"eps": 0.0}, "optim.eps: found 0.0, expected more than 0"),
    (OptimConfig, {"beta1": 1.0}, "optim.beta1: found 1.0, expected at least 0 and less than 1"),
    (OptimConfig, {"beta2": -0.5}, "optim.beta2: found -0.5, expected at least 0 and less than 1"),
    (OptimConfig, {"min_lr_ratio": 1.5}, "optim.min_lr_ratio: found 1.5, expected at least 0 and at most 1"),
    (OptimConfig, {"decay_fraction": -0.1}, "optim.decay_fraction: found -0.1, expected at least 0 and at most 1"),
    (TrainConfig, {"steps": 0}, "train.steps: found 0, expected at least 1"),
    (TrainConfig, {"batch_size": 0}, "train.batch_size: found 0, expected at least 1"),
    (TrainConfig, {"grad_accum": 3}, "train.grad_accum: found 3, expected a divisor of batch_size = 8"),
    (TrainConfig, {"grad_accum": 0}, "train.grad_accum: found 0, expected at least 1"),
    (TrainConfig, {"seed": -1}, "train.seed: found -1, expected from 0 to 2147483647"),
    (TrainConfig, {"seed": 2**31}, "train.seed: found 2147483648, expected from 0 to 2147483647"),
    (SampleConfig, {"seed": 2**64}, "sample.seed: found 18446744073709551616, expected from 0 to"),
    (EvalConfig, {"windows": -1}, "eval.windows: found -1, expected at least 0"),
    (configs.CheckpointConfig, {"keep": 0}, "checkpoint.keep: found 0, expected at least 1"),
    (configs.LogConfig, {"every": 0}, "log.every: found 0, expected at least 1"),
    (SampleConfig, {"top_p": 1.01}, "sample.top_p: found 1.01, expected more than 0 and at most 1"),
    (SampleConfig, {"top_p": 0.0}, "sample.top_p: found 0.0, expected more than 0 and at most 1"),
    (SampleConfig, {"min_p": 1.01}, "sample.min_p: found 1.01, expected at least 0 and at most 1"),
    (SampleConfig, {"temperature": -0.1}, "sample.temperature: found -0.1, expected at least 0"),
    (SampleConfig, {"top_k": -1}, "sample.top_k: found -1, expected at least 0"),
    (SampleConfig, {"max_tokens": 0}, "sample.max_tokens: found 0, expected at least 1"),
    (Config, {"optim": {"warmup_steps": 900}}, "optim.warmup_steps: found 900, expected at least 0, less than"),
    (Config, {"optim": {"warmup_steps": -1}}, "optim.warmup_steps: found -1, expected at least 0, less than"),
    (Config, {"train": {"seq_len": 257}}, "train.seq_len: found 257, expected at most model.max_seq_len = 256"),
    (Config, {"modle": {}}, "modle: no such field"),
    (Config, {"model": {"dmi": 3}}, "model.dmi: no such field; did you mean model.dim?"),
    (Config, {"model": {"rope_scaling": {"factr": 3}}}, "model.rope_scaling.factr: no such field"),
    (Config, {"model": 3}, "model: found 3, expected fields"),
    (Config, {"model": None}, "model: found None, expected fields"),
    (Config, {"model": {"dim": None}}, "model.dim: found None, expected an integer"),
    (Config, {"model": {"dim": "big"}}, "model.dim: found 'big', expected an integer"),
    (Config, {"model": {"dim": True}}, "model.dim: found True, expected an integer"),
    (Config, {"model": {"tie_embeddings": 1}}, "model.tie_embeddings: found 1, expected true or false"),
    (Config, {"model": {"rope_scaling": 8}}, "model.rope_scaling: found 8, expected fields"),
    (Config, {"optim": {"lr": "3e-4"}}, "optim.lr: found '3e-4', expected a number"),
    (Config, {"optim": {"lr": float("inf")}}, "optim.lr: found inf, expected a number"),
    (Config, {"optim": {"warmup_steps": 1.5}}, "optim.warmup_steps: found 1.5, expected an integer or null"),
    (Config, {"train": {"precision": "fp8"}}, "train.precision: found 'fp8', expected one of float32, bfloat16"),
    (Config, {"data": {"files": "a.txt"}}, "data.files: found 'a.txt', expected a list of strings"),
    (Config, {"data": {"files": [1]}}, "data.files: found [1], expected a list of strings"),
]


@pytest.mark.parametrize(("kind", "values", "message"), IMPOSSIBLE, ids=[message for _, _, message in IMPOSSIBLE])
def test_what_cannot_be_names_the_field_the_value_and_what_would_do(kind: type, values: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        from_dict(kind, values) if kind is Config else kind(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DataConfig, {"files": ["t"], "valid_files": ["v"]}),
        (TokenizerConfig, {"kind": "file", "file": "t.json", "vocab_size": 1}),
        (TokenizerConfig, {"vocab_size": 257}),
        (TokenizerConfig, {"kind": "bytes", "vocab_size": 1}),
        (OptimConfig, {"lr": 0, "beta1": 0, "min_lr_ratio": 1, "decay_fraction": 0, "clip": 0}),
        (TrainConfig, {"batch_size": 16, "grad_accum": 16}),
        (TrainConfig, {"seed": 2**31 - 1}),
        (SampleConfig, {"top_p": 1, "min_p": 1, "temperature": 0, "seed": 2**64 - 1}),
        (Config, {"optim": {"warmup_steps": 899}, "train": {"steps": 900, "seq_len": 256}}),
        (Config, {"train": {"steps": 1}}),
    ],
)
def test_values_at_the_border_are_possible(kind: type, values: dict[str, Any]):
    from_dict(kind, values)


def test_the_schedule_of_a_shorter_run_is_that_of_a_fresh_one(tmp_path: Path):
    save(Config(), tmp_path / "config.yaml")
    imported = load(tmp_path / "config.yaml")
    shorter = replace(imported, train=replace(imported.train, steps=20))
    fresh = Config(train=TrainConfig(steps=20))
    assert [learning_rate(shorter, i) for i in range(20)] == [learning_rate(fresh, i) for i in range(20)]


def mute_fields(source: str) -> list[str]:
    """Fields of the classes in `source` with no docstring under them; a field that is a group has the group's."""
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    groups = {node.name for node in classes}
    mute = []
    for owner in classes:
        for node, below in zip(owner.body, [*owner.body[1:], None]):
            if not isinstance(node, ast.AnnAssign) or ast.unparse(node.annotation) in groups:
                continue
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if not documented:
                mute.append(f"{owner.name}.{ast.unparse(node.target)}")
    return mute


def test_every_field_has_a_docstring_under_it():
    assert mute_fields(inspect.getsource(configs)) == []
    assert all(group.__doc__ and not group.__doc__.startswith(group.__name__) for group in GROUPS.values())


def test_a_field_without_a_docstring_is_found():
    source = (
        'class A:\n    x: int = 1\n    """X."""\n    y: int = 2\n    def f(self): pass\nclass B:\n    a: A\n    z: int'
    )
    assert mute_fields(source) == ["A.y", "B.z"]


def attributes_read(source: str) -> set[tuple[str, str]]:
    """(owner, name) of the attributes that `source` reads; a method that it calls, `text.split()` say, is none."""
    tree = ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    reads = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))
    return {(ast.unparse(node.value).rpartition(".")[2], node.attr) for node in reads if id(node) not in called}


def unread_fields(names: Iterable[str], sources: Iterable[str]) -> list[str]:
    """Names that no source reads; one that n groups share, such as `every`, must be read from n different owners."""
    read = Counter(name for _, name in set().union(*map(attributes_read, sources)))
    short = Counter(name.rpartition(".")[2] for name in names)
    return [name for name in short if read[name] < short[name]]


def test_every_field_is_read_somewhere():
    files = [p for package in ("lmcore", "jaxlm", "torchlm") for p in (ROOT / package).rglob("*.py")]
    sources = [p.read_text(encoding="utf-8") for p in files if p.name != "config.py"]
    assert unread_fields([name for name, _ in all_fields()], sources) == []


def test_a_dead_field_would_be_found():
    names = ["data.split", "data.text_field", "log.every", "eval.every", "eval.windows"]
    sources = ["x = config.data.text_field; 'a b'.split(); config.windows = 1", "config.log.every; log.every"]
    assert unread_fields(names, sources) == ["split", "every", "windows"]
    sources.append("config.data.split; self.eval.every; config.eval.windows")
    assert unread_fields(names, sources) == []
