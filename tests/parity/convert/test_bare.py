"""Bare weights: a file that torch loads by itself, that becomes a run or an export again, and that says what it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_model

from lmcore import config as configs
from lmcore.config import Config, ModelConfig, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.stories import stories
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.run.checkpoints import list_checkpoints
from parity.convert import shards
from parity.convert.bare import FIELD, is_bare, read_bare, write_bare
from parity.convert.conversion import convert, main
from parity.convert.names import convert_names, table
from parity.convert.states import read_state
from parity.convert.tensors import Tensors
from torchlm.model import Decoder

MODEL = ModelConfig(
    vocab_size=310,
    dim=20,
    n_layers=2,
    n_heads=5,
    n_kv_heads=1,
    head_dim=6,
    ffn_dim=7,
    tie_embeddings=False,
    qk_norm=True,
)
NAMED = TokenizerConfig(vocab_size=300, special_tokens=["<|im_end|>"], stop_tokens=["<|im_end|>"])
CONFIG = Config(model=MODEL, tokenizer=NAMED)


def weights(dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {row.torch: rng.standard_normal(row.shape_in("torch")).astype(dtype) for row in table(MODEL)}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tokenizers.train(NAMED, stories(50, seed=0))


def state_of(run: Path) -> dict[str, np.ndarray]:
    config = configs.load(run / "config.yaml")
    return dict(read_state(list_checkpoints(run)[-1], config).to("torch", config).params)


@pytest.mark.parametrize("to", ["jax", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_folder_becomes_a_run_and_a_file_again(to: Any, dtype: type, bpe: Tokenizer, tmp_path: Path):
    folder = tmp_path / "bare"
    folder.mkdir()
    write_bare(folder, CONFIG, Tensors.of(weights(dtype)), bpe)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "tokenizer.json", "SHA256SUMS"}
    run = convert(folder, to, tmp_path / "run")
    config = configs.load(run / "config.yaml")
    assert config.model == MODEL
    assert (config.tokenizer.eot_token, config.tokenizer.stop_tokens) == ("<|endoftext|>", ["<|im_end|>"])
    assert config.train.precision == np.dtype(dtype).name
    assert {n: a.tobytes() for n, a in state_of(run).items()} == {n: a.tobytes() for n, a in weights(dtype).items()}
    again = convert(run, "safetensors", tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    file = convert(run, "safetensors", tmp_path / "file.safetensors")
    assert file.read_bytes() == (folder / "model.safetensors").read_bytes()


def test_torch_loads_the_file_by_itself(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    write_bare(file, CONFIG, Tensors.of(weights()), None)
    decoder = Decoder(MODEL)
    assert load_model(decoder, file) == (set(), [])
    assert np.array_equal(decoder.lm_head.weight.detach().numpy(), weights()["lm_head.weight"])


def test_jaxlms_names_are_read_too_and_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = convert_names(weights(), MODEL, "torch", "jax")
    described = {FIELD: json.dumps({"model": configs.to_dict(MODEL), "tokenizer": {}})}
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)
    shards.write_shards(tmp_path, Tensors.of(names), described)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = read_bare(tmp_path)
    assert found.side == "jax"
    assert {n: a.tobytes() for n, a in found.weights.items()} == {n: a.tobytes() for n, a in names.items()}


def test_weights_that_do_not_say_what_they_are_need_a_config(tmp_path: Path, capsys: Any):
    file, out, config = tmp_path / "a.safetensors", str(tmp_path / "out"), tmp_path / "config.yaml"
    save_file(weights(), file)
    assert main([str(file), "--to=torch", "--out", out]) == 2
    error = capsys.readouterr().err
    assert "found no field 'twinlm' in its metadata" in error
    assert "name a run's config with --model_config RUN/config.yaml" in error
    configs.save(CONFIG, config)
    assert main([str(file), "--to=torch", "--out", out, "--model_config", str(config)]) == 0
    assert configs.load(tmp_path / "out" / "config.yaml").model == MODEL
    assert main([out, "--to=jax", "--out", str(tmp_path / "jax"), "--model_config", str(config)]) == 2
    assert "--model_config: found" in capsys.readouterr().err
    configs.save(replace(CONFIG, model=replace(MODEL, vocab_size=0)), config)
    with pytest.raises(UserError, match=r"found model\.vocab_size 0"):
        read_bare(file, config)
    configs.save(replace(CONFIG, model=replace(MODEL, ffn_dim=8)), config)
    with pytest.raises(UserError, match=r"mlp.up_proj.weight is \[7, 20\], expected \[8, 20\]"):
        read_bare(file, config)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": 3, "tokenizer": {}}', '{"model": {"dims": 3}, "tokenizer": {}}']
)
def test_a_damaged_description_is_one_line(text: str, tmp_path: Path):
    save_file(weights(), tmp_path / "a.safetensors", {FIELD: text})
    with pytest.raises(UserError, match="its metadata's field 'twinlm' cannot be read") as caught:
        read_bare(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_damage_is_found(bpe: Tokenizer, tmp_path: Path):
    write_bare(tmp_path, CONFIG, Tensors.of(weights()), bpe)
    assert is_bare(tmp_path)
    assert not is_bare(tmp_path / "tokenizer.json")
    larger = tokenizers.train(TokenizerConfig(vocab_size=311), stories(50, seed=0))
    larger.save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer.json: is damaged"):
        read_bare(tmp_path)
    with pytest.raises(UserError, match=r"found no token '<\|im_end\|>'|found 311 tokens|found '<\|im_end\|>'"):
        read_bare(tmp_path, verify=False)
    values = load_file(tmp_path / "model.safetensors")
    values["norm.weight"][3] = np.nan
    described = shards.read_metadata(tmp_path)
    save_file(values, tmp_path / "model.safetensors", described)
    with pytest.raises(UserError, match=r"norm.weight: found 1 values that are NaN or infinite"):
        read_bare(tmp_path, verify=False)


def test_force_replaces_weights_alone(bpe: Tokenizer, tmp_path: Path):
    folder = tmp_path / "bare"
    folder.mkdir()
    write_bare(folder, CONFIG, Tensors.of(weights()), bpe)
    file = convert(folder, "safetensors", tmp_path / "a.safetensors")
    whole = file.read_bytes()
    with pytest.raises(UserError, match=r"a.safetensors exists; name another, or replace it with --force"):
        convert(folder, "safetensors", file)
    convert(folder, "safetensors", file, force=True)
    assert file.read_bytes() == whole
    convert(convert(folder, "torch", tmp_path / "run"), "safetensors", folder, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"bare", "a.safetensors", "run"}
    (tmp_path / "link.safetensors").symlink_to(file)
    with pytest.raises(UserError, match="is no file of that kind"):
        convert(folder, "safetensors", tmp_path / "link.safetensors", force=True)
