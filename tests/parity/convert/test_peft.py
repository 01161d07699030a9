"""Adapters go to peft and come from it with the same logits, merged or not, and what ours lack is refused by name."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from lmcore import config as configs
from lmcore.config import Config, LoraConfig, ModelConfig, TrainConfig
from lmcore.errors import UserError
from lmcore.run.base import describe_base, restore_model
from lmcore.run.checkpoints import Checkpoint, find_checkpoint
from lmcore.run.saving import Checkpoints
from parity.backends import framework_settings
from parity.convert import convert
from parity.convert.names import convert_names, table
from parity.convert.peft import is_peft, read_peft
from tests.tiny import TINY
from torchlm.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft 0.21 asks for it
LORA = LoraConfig(rank=3, alpha=5.0, targets=["q_proj", "v_proj", "down_proj"])
MODEL = ModelConfig(vocab_size=23, dim=12, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=20, max_seq_len=16)
TRAIN = TrainConfig(device="cpu", cpu_devices=1)
IDS = torch.from_numpy(np.random.default_rng(0).integers(23, size=(2, 9)))


@pytest.fixture(scope="module", autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def saved(run_dir: Path, engine: Engine, base: Checkpoint | None = None) -> Checkpoint:
    run_dir.mkdir()
    configs.save(engine.config, run_dir / "config.yaml")
    saver = Checkpoints(run_dir, "torch", keep=1, base=base and describe_base(base, run_dir))
    saver.save(1, 2.0, engine.save)
    saver.wait()
    saver.close()
    return find_checkpoint(run_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of torchlm, one with adapters of it, which are not zero, and the first as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("adapters")
    plain = Engine(Config(model=MODEL, train=TRAIN))
    plain.init()
    rng = np.random.default_rng(0)
    for p in plain.state.params.values():
        p.add_(torch.from_numpy(rng.normal(size=p.shape) / 4))
    base = saved(folder / "base", plain)
    adapted = Engine(Config(model=replace(MODEL, lora=LORA), train=replace(TRAIN, init_from=str(folder / "base"))))
    adapted.load_base(base.state)
    adapted.init()
    for p in adapted.state.params.values():
        p.copy_(torch.from_numpy(rng.normal(size=p.shape) / 3))
    saved(folder / "run", adapted, base)
    convert(folder / "base", "hf", folder / "base-hf")
    convert(folder / "run", "peft", folder / "peft", base=folder / "base-hf")
    return folder


@torch.no_grad()
def logits(run: Path) -> torch.Tensor:
    checkpoint = find_checkpoint(run)
    config = replace(configs.load(run / "config.yaml"), train=TRAIN)
    engine = Engine(config)
    restore_model(engine, config, checkpoint)
    return engine.state.model(IDS)


@torch.no_grad()
def in_transformers(path: Path, adapters: Path | None = None) -> torch.Tensor:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path)
    if adapters is not None:
        model = peft.PeftModel.from_pretrained(model, str(adapters))
    return model.eval()(IDS).logits


def assert_close(one: torch.Tensor, other: torch.Tensor):
    torch.testing.assert_close(one, other, rtol=0, atol=float(1e-5 * one.abs().max()))


def test_peft_and_transformers_give_the_logits_of_the_run(folder: Path):
    expected = logits(folder / "run")
    assert_close(in_transformers(folder / "base-hf", folder / "peft"), expected)
    convert(folder / "run", "hf", folder / "merged-hf")
    assert_close(in_transformers(folder / "merged-hf"), expected)
    assert (in_transformers(folder / "base-hf") - expected).abs().max() > 0.1
    stored = load_file(folder / "peft" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_{}.weight"
    assert (stored[name.format("A")].shape, stored[name.format("B")].shape) == ((3, 12), (6, 3))
    assert len(stored) == 2 * 2 * 3


@pytest.mark.parametrize("source", ["run", "peft"])
def test_a_merged_run_has_no_adapters_and_the_same_logits(folder: Path, source: str):
    out = folder / f"merged-{source}"
    convert(folder / source, "torch", out)
    config = configs.load(out / "config.yaml")
    assert (config.model.lora, config.train.init_from, find_checkpoint(out).step) == (None, None, 0)
    assert_close(logits(out), logits(folder / "run"))


def test_adapters_come_back_from_peft_bit_for_bit(folder: Path):
    convert(folder / "peft", "peft", folder / "again")
    one, other = (load_file(folder / name / "adapter_model.safetensors") for name in ("peft", "again"))
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}
    assert read_peft(folder / "again").lora == LORA
    assert read_peft(folder / "again").base == str(folder / "base-hf")
    assert is_peft(folder / "again")
    assert not is_peft(folder / "base-hf")


def test_adapters_that_peft_has_made_are_merged_alike(folder: Path, tmp_path: Path):
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(folder / "base-hf")
    made = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["k_proj", "gate_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, made)
    model.save_pretrained(str(tmp_path / "made"))
    convert(tmp_path / "made", "hf", tmp_path / "merged")
    with torch.no_grad():
        assert_close(in_transformers(tmp_path / "merged"), model.eval()(IDS).logits)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora: found True, which our adapters do not have"),
        ({"use_rslora": True}, "use_rslora: found True, which our adapters do not have"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern: found {'q_proj': 4}, which our adapters do not have"),
        ({"bias": "all"}, "bias: found 'all', expected 'none'"),
        ({"peft_type": "IA3"}, "peft_type: found 'IA3', expected 'LORA'"),
        ({"r": "8"}, "r: found '8', expected an integer"),
        ({"r": 4}, "lora_A.weight is [3, 12], expected [4, 12]"),
        (
            {"base_model_name_or_path": "some/hub-name"},
            "--base: found 'some/hub-name', expected the folder of the model",
        ),
    ],
)
def test_what_our_adapters_lack_is_named(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    shutil.copytree(folder / "peft", tmp_path / "peft")
    (tmp_path / "peft" / "SHA256SUMS").unlink()
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert message in refusal(lambda: convert(tmp_path / "peft", "hf", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_makes_no_sense_is_refused(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert "base has no adapters; convert it to hf" in refusal(lambda: convert(folder / "base", "peft", out))
    assert "is no folder of adapters" in refusal(lambda: convert(folder / "run", "hf", out, base=folder / "base"))
    (tmp_path / "pickled").mkdir()
    shutil.copy(folder / "peft" / "adapter_config.json", tmp_path / "pickled")
    assert "adapter_model.safetensors is missing" in refusal(lambda: convert(tmp_path / "pickled", "hf", out))


def test_the_table_of_names_has_adapters_there_and_back():
    model = replace(MODEL, lora=LORA)
    rng = np.random.default_rng(0)
    for trained in (False, True):
        arrays = {row.jax: rng.normal(size=row.shape) for row in table(model, trained)}
        assert len(arrays) == (12 if trained else 12 + len(table(MODEL)))
        for side in ("torch", "hf"):
            there = convert_names(arrays, model, "jax", side, trained)
            back = convert_names(there, model, side, "jax", trained)
            assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in arrays.items()}


@pytest.mark.slow
def test_adapters_trained_in_jaxlm_are_merged_in_torchlm_and_served_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from jaxlm.train import main

    monkeypatch.chdir(tmp_path)
    options = TINY | {"data.dir": "data", "train.steps": 3, "sample.max_tokens": 1}
    started = {name: value for name, value in options.items() if not name.startswith(("model.", "tokenizer."))}
    started |= {"train.init_from": "base", "model.lora.rank": 2, "optim.lr": 0.3}
    for run_dir, chosen in (("base", options), ("run", started)):
        assert main([f"--{name}={value}" for name, value in (chosen | {"run_dir": run_dir}).items()]) == 0
    assert main(["--run_dir=run", "--train.resume=auto", "--train.steps=4"]) == 0
    for to, out in (("torch", "merged"), ("peft", "peft"), ("hf", "hf")):
        convert("run", to, out)
    convert("base", "hf", "base-hf")
    convert("merged", "hf", "merged-hf")
    served = in_transformers(tmp_path / "merged-hf")
    assert_close(served, logits(tmp_path / "merged"))
    assert_close(served, in_transformers(tmp_path / "hf"))
    assert_close(served, in_transformers(tmp_path / "base-hf", tmp_path / "peft"))
    assert (served - in_transformers(tmp_path / "base-hf")).abs().max() > 1e-3
