"""The source of `train.init_from`: converted once, read by our names, and checked against the config."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.config import Config, ModelConfig, TokenizerConfig, TrainConfig, cli, from_dict
from lmcore.data.tokenizer import Tokenizer
from lmcore.data.tokenizer import train as train_tokenizer
from lmcore.errors import UserError
from lmcore.files import Damaged
from lmcore.model import pretrained
from lmcore.model.pretrained import Pretrained, open_pretrained
from parity.convert import shards
from parity.convert.bare import write_bare
from parity.convert.companions import Companions
from parity.convert.names import table
from parity.convert.tensors import Tensors

MODEL = ModelConfig(
    vocab_size=257, dim=8, n_layers=1, n_heads=2, n_kv_heads=1, max_seq_len=16, dropout=0.1, position="learned"
)
NAMED = TokenizerConfig(kind="bytes")


def weights(dtype: type = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {row.torch: rng.standard_normal(row.shape_in("torch")).astype(dtype) for row in table(MODEL)}


def written(folder: Path, tokenizer: Tokenizer | None, arrays: dict[str, np.ndarray] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = Tensors.of(weights() if arrays is None else arrays)
    write_bare(folder, Config(model=MODEL, tokenizer=NAMED), tensors, tokenizer)
    return folder


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    return train_tokenizer(NAMED, [])


@pytest.fixture
def opened(byte_tokenizer: Tokenizer, tmp_path: Path) -> Pretrained:
    """A folder that is converted already: conversion itself is tested once, below."""
    folder = written(tmp_path / "bare", byte_tokenizer)
    model, tokenizer = pretrained._described(folder)
    return Pretrained("bare", folder, model, tokenizer)


def test_a_source_is_converted_once_and_again_when_it_changes(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    source, data, said = written(tmp_path / "source", byte_tokenizer), str(tmp_path / "data"), list[str]()
    first = open_pretrained(str(source), data, said.append)
    assert first.folder == open_pretrained(str(source), data, said.append).folder
    assert said == [f"converting {source} for train.init_from"]
    written(source, byte_tokenizer, weights(seed=1))
    again = open_pretrained(str(source), data, said.append)
    assert again.folder != first.folder
    assert np.array_equal(again.weight("embed_tokens.weight", (257, 8)), weights(seed=1)["embed_tokens.weight"])
    (source / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"^train.init_from: .*model.safetensors: is damaged"):
        open_pretrained(str(source), data, said.append)


def test_weights_have_our_names_and_are_inputs_by_outputs(opened: Pretrained):
    expected = weights()
    for row in table(MODEL):
        found = opened.weight(row.jax, row.shape)
        assert np.array_equal(row.convert(found, "jax", "torch"), expected[row.torch]), row.jax
    square = opened.weight("layers.0.self_attn.q_proj.kernel", (8, 8))
    assert not np.array_equal(square, expected["layers.0.self_attn.q_proj.weight"]), "a square one is transposed too"


@pytest.mark.parametrize(
    ("stored", "read"), [("bfloat16", np.float32), (np.float16, np.float32), (np.float64, np.float64)]
)
def test_narrow_weights_are_widened(stored: Any, read: type, byte_tokenizer: Tokenizer, tmp_path: Path):
    import ml_dtypes

    arrays = weights(ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
    folder = written(tmp_path / "narrow", byte_tokenizer, arrays)
    found = Pretrained("", folder, MODEL, None).weight("embed_tokens.weight", (257, 8))
    assert found.dtype == read
    assert np.array_equal(found, arrays["embed_tokens.weight"].astype(read))


def test_weights_in_several_files_are_found(byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    folder = written(tmp_path / "shards", byte_tokenizer)
    assert not (folder / "model.safetensors").exists()
    model, tokenizer = pretrained._described(folder)
    several = Pretrained("", folder, model, tokenizer)
    for row in table(MODEL):
        assert several.weight(row.jax, row.shape).shape == row.shape


def test_what_the_source_decides_are_the_defaults_of_the_command_line(
    opened: Pretrained, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pretrained, "open_pretrained", lambda *args, **kwargs: opened)
    config = cli.parse(["--train.init_from=bare", "--model.dropout=0.2"], prog="train", description="")
    assert config.model == replace(MODEL, dropout=0.2)
    assert config.tokenizer.file == str(opened.folder / "tokenizer.json")
    opened.check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"n_layers": 2}}, r"^model.n_layers: found 2, expected 1, as train.init_from, bare, has it; leave"),
        ({"model": {"norm_eps": 1e-6}}, r"^model.norm_eps: found 1e-06, expected 1e-05"),
        ({"model": {"max_seq_len": 32}}, r"^model.max_seq_len: found 32, expected 16"),
        ({"model": {"vocab_size": 300}}, r"^model.vocab_size: found 300, expected 257"),
        ({"tokenizer": {"kind": "bpe", "file": None}}, r"^tokenizer.kind: found 'bpe', expected 'file'"),
        ({"tokenizer": {"eot_token": "</s>"}}, r"^tokenizer.eot_token: found '</s>', expected '<\|endoftext\|>'"),
        ({"tokenizer": {"file": "other.json"}}, r"^tokenizer.file: found '.*other.json', expected the tokenizer of"),
    ],
)
def test_a_field_that_contradicts_the_source_is_one_line(
    changes: dict[str, dict[str, Any]], message: str, opened: Pretrained, tmp_path: Path
):
    groups = {name: {} for name in ("model", "tokenizer")} | changes
    other = train_tokenizer(TokenizerConfig(kind="bytes", special_tokens=["<|x|>"]), [])
    other.save(tmp_path / "other.json")
    if groups["tokenizer"].get("file") == "other.json":
        groups["tokenizer"]["file"] = str(tmp_path / "other.json")
    values: dict[str, dict[str, Any]] = {"model": {}, "tokenizer": {}}
    for name, value in opened.fields().items():
        group, _, field = name.partition(".")
        values[group][field] = groups[group].get(field, value)
    opened.check(Config(model=opened.model, tokenizer=opened.tokenizer or NAMED))
    with pytest.raises(UserError, match=message):
        opened.check(from_dict(Config, values))


def test_a_longer_context_and_scanned_layers_fit_where_no_position_is_learned(opened: Pretrained):
    rope = replace(opened, model=replace(MODEL, position="rope"))
    model = replace(rope.model, max_seq_len=64, scan_layers=True, dropout=0.0)
    rope.check(Config(model=model, tokenizer=opened.tokenizer or NAMED))


def test_weights_without_a_tokenizer_need_one(opened: Pretrained):
    without = replace(opened, tokenizer=None)
    with pytest.raises(UserError, match=r"^train.init_from: bare has no tokenizer.json; name the tokenizer"):
        without.check(Config(model=MODEL, tokenizer=NAMED))
    assert opened.tokenizer is not None
    without.check(Config(model=MODEL, tokenizer=opened.tokenizer))


def test_damage_is_found_before_the_run_starts(opened: Pretrained):
    config = Config(model=MODEL, tokenizer=opened.tokenizer or NAMED)
    file = opened.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(Damaged, match=r"model.safetensors: is damaged"):
        opened.check(config)
    opened.check(replace(config, checkpoint=replace(config.checkpoint, verify=False)))


@pytest.mark.parametrize("make", [None, "folder", "file"])
def test_what_is_no_source_is_one_line(make: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    source = tmp_path / "source"
    if make == "folder":
        source.mkdir()
    elif make == "file":
        source.write_text("no weights")
    expected = {
        None: "^train.init_from: found nothing at '.*source', expected a run, a checkpoint, a Hugging Face folder or",
        "folder": r"^train.init_from: .*source: found no config.yaml \(a run\), checkpoint.json",
        "file": "^train.init_from: .*source: found a file, expected a run folder",
    }
    with pytest.raises(UserError, match=expected[make]):
        open_pretrained(str(source), str(tmp_path / "data"))
    assert TrainConfig().init_from is None


def test_the_files_that_came_with_a_model_go_into_the_run(byte_tokenizer: Tokenizer, tmp_path: Path):
    folder = tmp_path / "bare"
    folder.mkdir()
    kept = Companions({"tokenizer_config.json": b"{}"})
    write_bare(folder, Config(model=MODEL, tokenizer=NAMED), Tensors.of(weights()), byte_tokenizer, kept)
    run = tmp_path / "run"
    run.mkdir()
    Pretrained("", folder, MODEL, None).copy_companions(run)
    assert Companions.of_run(run).files == kept.files
    assert "huggingface/tokenizer_config.json" in Pretrained("", folder, MODEL, None).sums()
