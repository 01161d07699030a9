"""Llama folders: what we write transformers reads as the same model and the same tokenizer, what transformers writes
we read, and what our model lacks is refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from jaxlm import train as jax_train
from lmcore import config as configs
from lmcore.config import Config, ModelConfig, RopeScaling, SampleConfig, TokenizerConfig, TrainConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.stories import stories
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.generate.prompting import complete
from lmcore.model.rope import frequencies
from lmcore.run.checkpoints import find_checkpoint
from lmcore.run.folder import open_run
from lmcore.run.trackers import read_metrics
from parity.convert import shards
from parity.convert.conversion import convert, main
from parity.convert.families import LLAMA
from parity.convert.huggingface import read_folder, write_folder
from parity.convert.names import numpy_to_torch, table
from torchlm import generate as torch_generate
from torchlm import train as torch_train
from torchlm.engine import Engine
from torchlm.model import Decoder

MODEL = ModelConfig(
    vocab_size=300, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=7, max_seq_len=40, rope_theta=300.0
)
MODELS = {
    "tied": MODEL,
    "untied": replace(MODEL, tie_embeddings=False, n_kv_heads=5),
    "llama3": replace(
        MODEL,
        rope_scaling=RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_seq_len=16),
    ),
    "another eps": replace(MODEL, norm_eps=0.1),
    "biases": replace(MODEL, bias=True),
}
TOKENS = torch.from_numpy(np.random.default_rng(5).integers(0, 300, (3, 17)))
"""Ids to compare logits on. Few positions: transformers computes rotary angles in float32, ours are float64, and the
difference grows with the position (at the 40th, up to 1.2e-5 of the largest logit, 1.6e-6 with our tables)."""


def weights_of(model: ModelConfig, dtype: type = np.float32, scale: float = 0.5) -> dict[str, np.ndarray]:
    """Weights so large that every part of the model shows in the logits."""
    rng = np.random.default_rng(1)
    return {r.hf: (scale * rng.standard_normal(r.shape_in("hf"))).astype(dtype) for r in table(model)}


def ours(model: ModelConfig, weights: dict[str, np.ndarray]) -> torch.Tensor:
    """Our own decoder's logits."""
    decoder = Decoder(model)
    wide = {row.torch: numpy_to_torch(weights[row.hf]).float() for row in table(model)}
    decoder.load_state_dict(wide)
    with torch.inference_mode():
        return decoder(TOKENS)


def theirs(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return model(TOKENS).logits


def written(folder: Path, model: ModelConfig, weights: dict[str, np.ndarray], tokenizer: Any = None) -> Path:
    folder.mkdir()
    write_folder(folder, Config(model=model), weights, tokenizer)
    return folder


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return float((one - other).abs().max() / one.abs().max())


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tokenizers.train(TokenizerConfig(vocab_size=300), stories(50, seed=0))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_our_logits(name: str, tmp_path: Path):
    model, weights = MODELS[name], weights_of(MODELS[name])
    logits = theirs(written(tmp_path / "model", model, weights))
    assert logits.dtype == torch.float32
    assert apart(ours(model, weights), logits) < 1e-5
    for other, factor in (("rope_theta", 1.1), ("norm_eps", 5.0)):
        wrong = replace(model, **{other: getattr(model, other) * factor})
        assert apart(ours(wrong, weights), logits) > 1e-4
    if model.rope_scaling:
        assert apart(ours(replace(model, rope_scaling=None), weights), logits) > 1e-4


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_types_are_kept(dtype: type, tmp_path: Path):
    folder = written(tmp_path / "model", MODEL, weights_of(MODEL, dtype))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert str(loaded.dtype) == f"torch.{np.dtype(dtype)}"
    assert {array.dtype for array in read_folder(folder).weights.values()} == {np.dtype(dtype)}


def test_a_shape_that_transformers_refuses_is_refused(tmp_path: Path):
    model = replace(MODEL, dim=21)
    with pytest.raises(UserError, match=r"model.dim: found 21, expected a multiple of n_heads = 5"):
        written(tmp_path / "model", model, weights_of(model))
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        transformers.LlamaConfig(hidden_size=21, num_attention_heads=5)


@pytest.mark.parametrize("variant", [{"norm": "layernorm"}, {"position": "none"}, {"mlp": "relu"}])
def test_what_no_family_can_hold_is_refused(variant: dict[str, Any], tmp_path: Path):
    [(name, value)] = variant.items()
    with pytest.raises(UserError, match=rf"^model.{name}: found {value!r}, a Llama has only"):
        written(tmp_path / "model", replace(MODEL, **variant), weights_of(MODEL))
    assert list((tmp_path / "model").iterdir()) == []


def test_a_llama_with_biases_is_read(tmp_path: Path):
    folder = their_model(tmp_path / "theirs", torch.float32, attention_bias=True, mlp_bias=True)
    found = read_folder(folder)
    assert found.config.model.bias
    weights = {name: value + 0.1 * name.endswith("bias") for name, value in found.weights.items()}  # theirs begin at 0
    logits = theirs(written(tmp_path / "ours", found.config.model, weights))
    assert apart(ours(found.config.model, weights), logits) < 1e-5
    assert apart(ours(found.config.model, found.weights), logits) > 1e-3


def test_greedy_text_is_the_same(bpe: Tokenizer, tmp_path: Path):
    model_config = replace(MODEL, max_seq_len=64)  # prompt and text fit, so that nothing is forgotten
    config = Config(model=model_config, train=TrainConfig(device="cpu"))
    weights = weights_of(MODEL)
    folder = written(tmp_path / "model", model_config, weights, bpe)
    engine = Engine(config)
    engine.init()
    engine.model.load_state_dict({row.torch: numpy_to_torch(weights[row.hf]) for row in table(MODEL)})
    options = SampleConfig(temperature=0, max_tokens=25)
    prompts = ["Once upon a time", "The dog", "One day, 🐕"]
    texts = complete(engine.generator(options), bpe, prompts, options, context=64)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (model.generation_config.eos_token_id, model.generation_config.bos_token_id) == (bpe.eot_id, bpe.eot_id)
    for text in texts:
        prompt = tokenizer(text.prompt, return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=25, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        found = [token for token in output.tolist() if token != bpe.eot_id]
        assert found == text.tokens
        assert tokenizer.decode(found) == text.text
    assert len({tuple(text.tokens) for text in texts}) == 3
    together = tokenizer(prompts, return_tensors="pt", padding=True)
    batch = model.generate(**together, max_new_tokens=25, do_sample=False)[:, together["input_ids"].shape[1] :]
    assert [[t for t in row if t != bpe.eot_id] for row in batch.tolist()] == [text.tokens for text in texts]


TEXTS = [
    *(
        "Once upon a time",
        "",
        " ",
        "  two  spaces ",
        "line\nline\r\n\n\ttab",
        "naïve café — “quoted”",
        "🐕🦊👩‍👩‍👧",
        "日本語",
    ),
    *("a <|endoftext|> b", "<|endoftext|>", "<unk>", "don't can't . , !", "\x00\x7f", "a ."),
]


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_autotokenizer_gives_our_ids(kind: Any, tmp_path: Path):
    size = {"vocab_size": 400} if kind == "bpe" else {}
    mine = tokenizers.train(TokenizerConfig(kind=kind, **size), stories(50, seed=0))
    model = replace(MODEL, vocab_size=mine.vocab_size)
    folder = written(tmp_path / "model", model, weights_of(model), mine)
    other = transformers.AutoTokenizer.from_pretrained(folder)
    assert [other(text)["input_ids"] for text in TEXTS] == [mine.encode(text) for text in TEXTS]
    for text in TEXTS:
        ids = mine.encode(text)
        assert other.decode(ids, skip_special_tokens=True) == mine.decode(ids)
    assert (other.eos_token_id, other.bos_token_id, other.pad_token_id) == (mine.eot_id,) * 3
    assert other.unk_token_id == mine.unk_id
    assert other.model_max_length == model.max_seq_len
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"split_special_tokens": False}))
    careless = transformers.AutoTokenizer.from_pretrained(folder)
    assert careless("a <|endoftext|> b")["input_ids"] != mine.encode("a <|endoftext|> b")


def test_a_large_model_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, weights = MODELS["untied"], weights_of(MODELS["untied"])
    whole = written(tmp_path / "whole", model, weights)
    assert not list(whole.glob("*index*"))
    monkeypatch.setattr(shards, "SHARD_BYTES", 25_000)
    folder = written(tmp_path / "parts", model, weights)
    assert not (folder / "model.safetensors").exists()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    assert parts == [f"model-0000{n}-of-0000{len(parts)}.safetensors" for n in range(1, len(parts) + 1)]
    assert len(parts) > 2
    sizes = [sum(array.nbytes for array in load_file(folder / part).values()) for part in parts]
    assert max(sizes) <= 25_000
    assert index["metadata"]["total_size"] == sum(sizes) == sum(array.nbytes for array in weights.values())
    assert set(index["weight_map"]) == set(weights)
    assert torch.equal(theirs(folder), theirs(whole))
    assert {n: a.tobytes() for n, a in read_folder(folder).weights.items()} == {
        n: a.tobytes() for n, a in weights.items()
    }


def their_model(folder: Path, dtype: torch.dtype = torch.bfloat16, shard: str = "5GB", **fields: Any) -> Path:
    """A random Llama as transformers itself saves it."""
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 5}
    shape |= {"num_key_value_heads": 1, "intermediate_size": 7, "head_dim": 6, "initializer_range": 0.5}
    config = transformers.LlamaConfig(**shape, max_position_embeddings=40, **fields)
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
LLAMA3 |= {"original_max_position_embeddings": 16, "rope_theta": 700.0}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fields", [{}, {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-2}], ids=["plain", "llama3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_transformers_saves_becomes_a_run_with_its_logits(
    dtype: torch.dtype, fields: dict[str, Any], tied: bool, tmp_path: Path
):
    folder = their_model(tmp_path / "theirs", dtype, "15KB", tie_word_embeddings=tied, **fields)
    assert (folder / "model.safetensors.index.json").exists()
    run = convert(folder, "torch", tmp_path / "run")
    config = configs.load(run / "config.yaml")
    engine = Engine(replace(config, train=replace(config.train, device="cpu")))
    engine.restore(find_checkpoint(run).state)
    with torch.inference_mode():
        logits = engine.model(TOKENS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert apart(logits, model(TOKENS).logits.detach()) < 1e-5
    assert (config.model.rope_scaling is None) is (fields == {})
    state = model.state_dict()
    for row in table(config.model):
        assert torch.equal(engine.state.params[row.torch], state[row.hf]), row.hf
    again = convert(convert(run, "jax", tmp_path / "jax"), "hf", tmp_path / "again")
    assert torch.equal(theirs(again), model(TOKENS).logits.detach())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 0.1
    assert apart(logits, model(TOKENS).logits.detach()) > 1e-5


def test_an_imported_model_writes_and_is_evaluated(bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = their_model(tmp_path / "theirs")
    bpe.save(folder / "tokenizer.json")
    assert main([str(folder), "--to=torch", f"--out={tmp_path / 'run'}"]) == 0
    assert "note:" not in capsys.readouterr().out
    config = configs.load(tmp_path / "run" / "config.yaml")
    assert config.tokenizer.file == str(tmp_path / "run" / "tokenizer.json")
    assert configs.load(tmp_path / "run" / "config.yaml").model.vocab_size == 300
    assert open_run(replace(config, train=replace(config.train, resume="auto")), "torch") is not None
    kept = (tmp_path / "run" / "tokenizer.json").read_bytes()
    Tokenizer.load(tmp_path / "run" / "tokenizer.json").save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == kept, "so that prepared text is found again"
    assert torch_generate.main([str(tmp_path / "run"), "--max_tokens=5", "--prompt", "One day"]) == 0
    assert "One day" in capsys.readouterr().out


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_an_imported_model_is_trained_on_a_text_of_ones_own(framework: Any, bpe: Tokenizer, tmp_path: Path):
    folder = their_model(tmp_path / "theirs")
    bpe.save(folder / "tokenizer.json")
    run = convert(folder, framework, tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 300)
    train = {"jax": jax_train.main, "torch": torch_train.main}[framework]
    options = [f"--run_dir={run}", "--train.resume=auto", f"--data.files={text}", f"--data.dir={tmp_path / 'data'}"]
    options += ["--train.steps=6", "--train.seq_len=20", "--train.batch_size=2", "--optim.lr=0.01", "--log.every=1"]
    assert train([*options, "--optim.warmup_steps=1", "--train.device=cpu", "--sample.max_tokens=5"]) == 0
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1
    assert train([f"--run_dir={run}", "--train.resume=auto", "--train.steps=8"]) == 0
    assert train([f"--run_dir={run}", "--train.resume=auto", "--train.steps=9", "--train.batch_size=3"]) == 2


def test_without_a_tokenizer_the_numbers_still_come_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = their_model(tmp_path / "theirs")
    assert main([str(folder), "--to=torch", f"--out={tmp_path / 'run'}"]) == 0
    assert "has no tokenizer.json" in capsys.readouterr().out
    assert torch_generate.main([str(tmp_path / "run")]) == 2
    assert "tokenizer.json: cannot be read" in capsys.readouterr().err
    back = convert(tmp_path / "run", "hf", tmp_path / "back")
    assert not (back / "tokenizer.json").exists()
    assert torch.equal(theirs(back), transformers.AutoModelForCausalLM.from_pretrained(folder).float()(TOKENS).logits)


@pytest.mark.parametrize(
    ("settings", "fields", "expected"),
    [
        ({"eos_token": "<|im_end|>"}, {}, "<|im_end|>"),
        ({"eos_token": {"content": "<|im_end|>"}}, {"eos_token_id": 0}, "<|im_end|>"),
        (None, {"eos_token_id": [1, 0]}, "<|im_end|>"),
        (None, {"eos_token_id": None}, "<|endoftext|>"),
        (None, {"eos_token_id": -1}, "<|endoftext|>"),
    ],
)
def test_the_token_that_ends_a_text_is_found(settings: Any, fields: dict[str, Any], expected: str, tmp_path: Path):
    config = TokenizerConfig(vocab_size=300, special_tokens=["<|im_end|>"])
    tokenizer = tokenizers.train(config, stories(50, seed=0))
    folder = written(tmp_path / "model", MODEL, weights_of(MODEL), tokenizer)
    state = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "tokenizer_config.json").unlink()
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    edit(folder, fields)
    found = read_folder(folder, verify=False)
    assert found.tokenizer is not None
    assert found.config.tokenizer.eot_token == found.tokenizer.inner.id_to_token(found.tokenizer.eot_id) == expected


# What is refused.


def edit(folder: Path, fields: dict[str, Any]) -> None:
    path = folder / "config.json"
    edited = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in edited.items() if value != "absent"}))


REFUSED: dict[str, dict[str, Any]] = {
    "model_type: found 'mamba', expected one of llama, mistral": {"model_type": "mamba"},
    "model_type: found None, expected one of llama, mistral": {"model_type": "absent"},
    "architectures: found ['LlamaForSequenceClassification']": {"architectures": ["LlamaForSequenceClassification"]},
    "hidden_act: found 'gelu', expected 'silu'": {"hidden_act": "gelu"},
    "model.layers.0.mlp.up_proj.bias [7] is missing": {"mlp_bias": True},
    "attention_bias: found 'yes', expected true or false": {"attention_bias": "yes", "mlp_bias": "yes"},
    "attention_dropout: found 0.1, expected 0": {"attention_dropout": 0.1},
    "sliding_window: found 4096, expected None": {"sliding_window": 4096},
    "layer_types: found ['full_attention', 'sliding_attention']": {
        "layer_types": ["full_attention", "sliding_attention"]
    },
    "layer_types: found 3": {"layer_types": 3},
    "partial_rotary_factor: found 0.5, expected 1": {"partial_rotary_factor": 0.5},
    "partial_rotary_factor: found 0.9, expected 1": {"rope_parameters": {"partial_rotary_factor": 0.9}},
    "pretraining_tp: found 2, expected 1": {"pretraining_tp": 2},
    "quantization_config: found {'bits': 4}, expected None": {"quantization_config": {"bits": 4}},
    "rope_scaling.rope_type: found 'longrope', expected one of default, linear, dynamic, llama3, yarn": {
        "rope_scaling": {"rope_type": "longrope", "factor": 2.0}
    },
    "rope_scaling.mscale: found 1.0, unknown with rope_type 'yarn'": {
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9, "mscale": 1.0}
    },
    "rope_scaling.low_freq_factor is missing": {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
    "rope_scaling.attention_factor: found 2": {"rope_scaling": {"rope_type": "default", "attention_factor": 2}},
    "rope_scaling: found 2, expected fields": {"rope_scaling": 2},
    "rope_parameters and rope_scaling say different things": {
        "rope_parameters": {"rope_type": "default"},
        "rope_scaling": {**LLAMA3},
    },
    "rope_theta: found 300.0, expected 400.0, as in rope_parameters": {"rope_parameters": {"rope_theta": 400.0}},
    "factor: found 0.5, expected at least 1": {"rope_theta": None, "rope_scaling": {**LLAMA3, "factor": 0.5}},
    "qk_norm: found True, whose meaning is unknown here": {"qk_norm": True},
    "auto_map: found {'AutoModel': 'code.Model'}": {"auto_map": {"AutoModel": "code.Model"}},
    "hidden_size is missing": {"hidden_size": "absent"},
    "hidden_size: found '20', expected an integer": {"hidden_size": "20"},
    "num_key_value_heads: found 2, expected a divisor of n_heads = 5": {"num_key_value_heads": 2},
    "head_dim: found 5, expected an even number": {"head_dim": 5},
    "rms_norm_eps: found 0.0, expected more than 0": {"rms_norm_eps": 0.0},
    "model.layers.0.mlp.up_proj.weight is [7, 20], expected [8, 20]": {"intermediate_size": 8},
    "model.layers.2.mlp.up_proj.weight [7, 20] is missing": {"num_hidden_layers": 3},
    "model.layers.1.mlp.up_proj.weight [7, 20] is in no row": {"num_hidden_layers": 1},
    "lm_head.weight [300, 20] is missing": {"tie_word_embeddings": False},
}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = written(tmp_path / "model", MODEL, weights_of(MODEL))
    (folder / "SHA256SUMS").unlink()  # so that an edited file is read, as one of other tools would be
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "generation_config.json", "SHA256SUMS"])
def test_an_export_that_has_changed_is_refused_and_read_unverified(file: str, tmp_path: Path):
    folder = written(tmp_path / "model", MODEL, weights_of(MODEL))
    assert read_folder(folder).config.model == MODEL
    with (folder / file).open("ab") as opened:
        opened.write(b" ")
    with pytest.raises(UserError, match=rf"{file}: (is damaged|has changed).*restore"):
        convert(folder, "torch", tmp_path / "out")
    if file == "config.json":
        convert(folder, "torch", tmp_path / "out", verify=False)


@pytest.mark.parametrize("message", REFUSED)
def test_what_our_model_lacks_is_refused_by_name(message: str, model_folder: Path, tmp_path: Path):
    read_folder(model_folder)
    edit(model_folder, REFUSED[message])
    with pytest.raises(UserError) as caught:
        convert(model_folder, "jax", tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {
            "pretraining_tp": 1,
            "sliding_window": None,
            "partial_rotary_factor": 1.0,
            "layer_types": ["full_attention"] * 2,
        },
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
        {"head_dim": 6, "num_key_value_heads": 1, "use_cache": False, "torch_dtype": "bfloat16"},
        {"rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}, "rope_theta": "absent"},
    ],
)
def test_fields_that_change_nothing_are_no_reason(fields: dict[str, Any], model_folder: Path):
    before = read_folder(model_folder).config.model
    edit(model_folder, fields)
    assert read_folder(model_folder).config.model == before == MODEL


def test_defaults_are_those_of_transformers(model_folder: Path):
    names = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_theta")
    edit(model_folder, dict.fromkeys((*names, "rope_scaling", "head_dim"), "absent"))
    fields = json.loads((model_folder / "config.json").read_text())
    default = transformers.LlamaConfig(**fields)
    problems: list[str] = []
    found = LLAMA.config(fields, problems)
    assert problems == []
    assert found is not None
    assert found.n_kv_heads == default.num_key_value_heads
    assert found.max_seq_len == default.max_position_embeddings
    assert found.norm_eps == default.rms_norm_eps
    assert found.tie_embeddings == default.tie_word_embeddings
    assert found.head_dim == default.head_dim
    assert found.rope_theta == default.rope_parameters["rope_theta"]


def test_all_reasons_are_told_at_once(model_folder: Path, tmp_path: Path):
    edit(model_folder, {"attention_bias": 3, "sliding_window": 9, "hidden_act": "gelu", "hidden_size": "absent"})
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        convert(model_folder, "torch", tmp_path / "out")
    message = str(caught.value)
    for name in ("attention_bias", "sliding_window", "hidden_act", "hidden_size", "pytorch_model.bin is a pickle"):
        assert name in message
    assert "\n" not in message


def saved(folder: Path, *parts: dict[str, np.ndarray], index: dict[str, str] | None = None) -> None:
    """Replace the weights by these parts and this index."""
    (folder / "model.safetensors").unlink()
    for number, part in enumerate(parts):
        save_file(part, folder / f"part{number}.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_damaged_weights_are_told_by_name(model_folder: Path, tmp_path: Path):
    weights = weights_of(MODEL)
    names = list(weights)
    half = len(names) // 2
    first, second = ({n: weights[n] for n in part} for part in (names[:half], names[half:]))
    index = {n: f"part{int(n in second)}.safetensors" for n in names}

    def told(case: str, *parts: dict[str, np.ndarray], index: Any = index) -> str:
        folder = tmp_path / case
        shutil.copytree(model_folder, folder)
        saved(folder, *parts, index=index)
        try:
            read_folder(folder)
        except UserError as error:
            return str(error)
        return "nothing"

    assert told("whole", first, second) == "nothing"
    assert "part1.safetensors is missing" in told("a missing part", first)
    assert f"{names[-1]} is not in part1.safetensors" in told(
        "a missing tensor", first, {n: a for n, a in second.items() if n != names[-1]}
    )
    assert f"{names[0]} is in part0.safetensors and in part1" in told(
        "twice", first, {**second, names[0]: weights[names[0]]}
    )
    assert "extra is in part1.safetensors, the index says None" in told("extra", first, {**second, "extra": np.ones(2)})
    assert "has no weight_map" in told("no index", first, second, index=None)
    whole = dict.fromkeys(names, "part0.safetensors")
    assert f"{names[0]}: found type I8, expected one of F64" in told(
        "int8", weights | {names[0]: weights[names[0]].astype(np.int8)}, index=whole
    )
    embedding = weights["model.embed_tokens.weight"]
    tied = {**whole, "lm_head.weight": "part0.safetensors"}
    assert told("its own head", weights | {"lm_head.weight": embedding.copy()}, index=tied) == "nothing"
    assert "lm_head.weight differs" in told("another head", weights | {"lm_head.weight": embedding + 1}, index=tied)
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tables = {**whole, old: "part0.safetensors"}
    turning = frequencies(6, 300.0).astype(np.float32)
    assert told("rotary", weights | {old: turning}, index=tables) == "nothing"
    assert f"{old} holds other frequencies" in told("wrong rotary", weights | {old: turning * 2}, index=tables)


def test_an_end_of_text_that_is_no_text_is_told(model_folder: Path):
    (model_folder / "tokenizer.json").write_text("{}")
    (model_folder / "tokenizer_config.json").write_text('{"eos_token": 5}')
    with pytest.raises(UserError, match=r"tokenizer_config.json: eos_token is 5, expected a string"):
        read_folder(model_folder)


def test_damaged_files_are_told_by_name(model_folder: Path):
    whole = (model_folder / "model.safetensors").read_bytes()
    (model_folder / "model.safetensors").write_bytes(whole[:-10])
    (model_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read .*tokenizer.json: cannot be read"):
        read_folder(model_folder)
    (model_folder / "model.safetensors").unlink()
    (model_folder / "tokenizer.json").unlink()
    for text in ("{", "[1]"):
        (model_folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config.json.*; model.safetensors is missing"):
            read_folder(model_folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(bpe: Tokenizer, model_folder: Path):
    bpe.save(model_folder / "tokenizer.json")
    read_folder(model_folder)
    larger = tokenizers.train(TokenizerConfig(vocab_size=301), stories(50, seed=0))
    larger.save(model_folder / "tokenizer.json")
    with pytest.raises(UserError, match=r"vocab_size: found 300, tokenizer.json needs 301"):
        read_folder(model_folder)
