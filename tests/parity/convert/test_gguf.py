"""GGUF files: `gguf` reads to the bit what we write, transformers and llama.cpp compute our logits from it, and what
the format cannot hold is refused by name."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jaxlm.engine import Engine as JaxEngine
from lmcore.config import Config, ModelConfig, RopeScaling, SampleConfig, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.stories import stories
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError
from lmcore.generate.prompting import complete
from lmcore.run.checkpoints import find_checkpoint
from lmcore.run.folder import load_run
from parity.convert.bare import write_bare
from parity.convert.companions import Companions
from parity.convert.conversion import convert, main
from parity.convert.gguf import Dtype, interleaved, tensor_name, write_gguf, write_model
from parity.convert.names import numpy_to_torch, table
from parity.convert.tensors import Tensors
from torchlm import train as torch_train
from torchlm.engine import Engine as TorchEngine
from torchlm.model import Decoder

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'twinlm[gguf]'")

MODEL = ModelConfig(
    vocab_size=310, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=24, ffn_dim=96, max_seq_len=64, rope_theta=300
)
SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_seq_len=16)
MODELS = {
    "tied": MODEL,
    "untied": replace(MODEL, tie_embeddings=False, n_kv_heads=4, head_dim=16),
    "another eps": replace(MODEL, norm_eps=0.1),
    "qk_norm": replace(MODEL, qk_norm=True, head_dim=128),
}
LLAMA_CPP_ALONE = {
    "llama3": replace(MODEL, rope_scaling=SCALING),
    "bias": replace(MODEL, bias=True),
    "qk_norm, small": replace(MODEL, qk_norm=True),
}
TOKENS = torch.from_numpy(np.random.default_rng(5).integers(0, 300, (1, 17)))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tokenizers.train(TokenizerConfig(vocab_size=300), stories(50, seed=0))


def weights_of(model: ModelConfig, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Weights so large that every part of the model shows in the logits."""
    rng = np.random.default_rng(1)
    return {r.torch: (0.3 * rng.standard_normal(r.shape_in("torch"))).astype(dtype) for r in table(model)}


def ours(model: ModelConfig, weights: dict[str, np.ndarray]) -> torch.Tensor:
    decoder = Decoder(model)
    decoder.load_state_dict({name: numpy_to_torch(array) for name, array in weights.items()})
    with torch.inference_mode():
        return decoder(TOKENS)


def their_model(path: Path) -> Any:
    """What transformers reads from a file."""
    pytest.importorskip("accelerate", reason="accelerate is not installed; transformers reads no GGUF file without")
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def theirs(path: Path) -> torch.Tensor:
    model = their_model(path)
    with torch.inference_mode():
        return model(TOKENS).logits


def written(
    path: Path,
    model: ModelConfig,
    weights: dict[str, np.ndarray],
    tokenizer: Tokenizer | None,
    dtype: Dtype = "f32",
    companions: Companions | None = None,
) -> list[str]:
    return write_gguf(path, "a model", model, Tensors.of(weights), tokenizer, companions or Companions(), dtype)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest logit."""
    return float((one - other).abs().max() / one.abs().max())


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    return {name: f.contents() for name, f in reader.fields.items()}, {t.name: t for t in reader.tensors}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_model(name: str, bpe: Tokenizer, tmp_path: Path, monkeypatch: Any):
    model, path = MODELS[name], tmp_path / "m.gguf"
    weights = weights_of(model)
    assert written(path, model, weights, bpe) == []
    assert apart(ours(model, weights), theirs(path)) < 1e-5
    monkeypatch.setattr("parity.convert.gguf.interleaved", lambda head_dim: lambda array: array)
    written(path, model, weights, bpe)
    assert (apart(ours(model, weights), theirs(path)) > 1e-2) is (name != "qk_norm"), "the order of rows must show"


def test_what_stands_in_the_file_is_the_model(bpe: Tokenizer, tmp_path: Path):
    path, weights = tmp_path / "m.gguf", weights_of(MODEL)
    template = {"chat_template.jinja": b"{{ messages }}"}
    written(path, MODEL, weights, bpe, companions=Companions(template))
    fields, tensors = read(path)
    assert fields["general.architecture"] == "llama"
    assert fields["general.name"] == "a model"
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    expected = {"context_length": 64, "attention.head_count_kv": 2, "rope.freq_base": 300.0, "vocab_size": 310}
    assert {name: fields[f"llama.{name}"] for name in expected} == expected
    assert len(fields["tokenizer.ggml.tokens"]) == 310, "a padded vocabulary keeps its size"
    assert fields["tokenizer.ggml.tokens"][:300] == [bpe.inner.id_to_token(i) for i in range(300)]
    assert set(tensors) == {tensor_name(name) for name in weights}
    for name, array in weights.items():
        found = tensors[tensor_name(name)].data
        halves = interleaved(24)(array) if "q_proj" in name or "k_proj" in name else array
        assert np.array_equal(found, halves), name


def test_a_model_may_have_no_tokenizer(bpe: Tokenizer, tmp_path: Path):
    weights = weights_of(MODEL)
    write_model(tmp_path / "bare.gguf", "m", MODEL, Tensors.of(weights), {"model": "no_vocab"}, None, "q8_0")
    written(tmp_path / "m.gguf", MODEL, weights, bpe, "q8_0")
    (bare, bare_tensors), (whole, tensors) = (read(tmp_path / name) for name in ("bare.gguf", "m.gguf"))
    assert {n: t.data.tobytes() for n, t in bare_tensors.items()} == {n: t.data.tobytes() for n, t in tensors.items()}
    assert [name for name in bare if name.startswith("tokenizer.")] == ["tokenizer.ggml.model"]
    assert bare["tokenizer.ggml.model"] == "no_vocab"
    assert bare["llama.vocab_size"] == whole["llama.vocab_size"] == 310


def test_rows_of_a_head_are_interleaved():
    rows = np.arange(12)[:, None] * np.ones((1, 2))
    assert interleaved(6)(rows)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert interleaved(6)(np.arange(6)).tolist() == [0, 3, 1, 4, 2, 5], "biases too"


@pytest.mark.parametrize(("dtype", "limit"), [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2)])
def test_narrower_types_hold_matrices_alone(dtype: Any, limit: float, bpe: Tokenizer, tmp_path: Path):
    path, weights = tmp_path / "m.gguf", weights_of(MODEL)
    assert written(path, MODEL, weights, bpe, dtype) == []
    fields, tensors = read(path)
    assert fields["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{dtype.upper()}"]
    for name, array in weights.items():
        tensor = tensors[tensor_name(name)]
        assert tensor.tensor_type.name == (dtype.upper() if array.ndim > 1 else "F32"), name
        values = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(array.shape)
        halves = interleaved(24)(array) if "q_proj" in name or "k_proj" in name else array
        largest = np.abs(values - halves).max() / np.abs(array).max()
        assert largest <= (limit if array.ndim > 1 else 0)
    assert 1e-6 < apart(ours(MODEL, weights), theirs(path)) < 0.2


def test_what_a_reader_should_know_is_said(bpe: Tokenizer, tmp_path: Path):
    path = tmp_path / "m.gguf"
    odd = replace(MODEL, ffn_dim=40)
    [note] = written(path, odd, weights_of(odd), bpe, "q8_0")
    assert note == "2 matrices are stored as f16, since their rows are no multiple of 32 values"
    assert read(path)[1]["blk.1.ffn_down.weight"].tensor_type.name == "F16"
    [note] = written(path, MODEL, weights_of(MODEL, np.float64), bpe)
    assert "float64 weights were rounded to float32" in note
    for name, model in LLAMA_CPP_ALONE.items():
        [note] = written(path, model, weights_of(model), bpe)
        assert "transformers ignores" in note or name.startswith("qk_norm")
    assert "rope_freqs.weight" not in read(path)[1]


REFUSED: dict[str, dict[str, Any]] = {
    "model.norm: found 'layernorm', a Llama has only 'rmsnorm'": {"norm": "layernorm"},
    "model.position: found 'learned'": {"position": "learned"},
    "model.norm_placement: found 'sandwich'": {"norm_placement": "sandwich"},
    "model.mlp: found 'gelu'": {"mlp": "gelu"},
    "model.bias: found True with qk_norm": {"bias": True, "qk_norm": True},
    "with qk_norm, which qwen3 has not": {"rope_scaling": SCALING, "qk_norm": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_format_cannot_hold_is_refused_by_name(message: str, bpe: Tokenizer, tmp_path: Path):
    model = replace(MODEL, **REFUSED[message])
    with pytest.raises(UserError) as caught:
        written(tmp_path / "m.gguf", model, weights_of(model), bpe)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_values_too_large_for_float16_are_refused(bpe: Tokenizer, tmp_path: Path):
    weights = weights_of(MODEL)
    weights["layers.0.mlp.up_proj.weight"][3, 4] = 1e5
    with pytest.raises(UserError, match=r"--dtype: found f16, in which blk.0.ffn_up.weight would be infinite"):
        written(tmp_path / "m.gguf", MODEL, weights, bpe, "f16")
    written(tmp_path / "m.gguf", MODEL, weights, bpe, "bf16")


def test_mistakes_are_one_line_and_write_nothing(bpe: Tokenizer, tmp_path: Path, capsys: Any, monkeypatch: Any):
    out, run, bare = (tmp_path / name for name in ("m.gguf", "run", "bare.safetensors"))
    run.mkdir()
    for path in (run, bare):
        write_bare(path, Config(model=MODEL), Tensors.of(weights_of(MODEL)), bpe)
    (tmp_path / "thesis.gguf").write_text("years of work")
    mistakes = {
        "expected the name of a file that ends in .gguf": [str(run), "--to=gguf", "--out", str(tmp_path / "m")],
        "--dtype: found 'f16' with --to hf": [str(run), "--to=hf", "--dtype=f16", "--out", str(out)],
        "dtype: found 'q4', expected": [str(run), "--to=gguf", "--dtype=q4", "--out", str(out)],
        "found no tokenizer.json": [str(bare), "--to=gguf", "--out", str(out)],
        "thesis.gguf exists": [str(run), "--to=gguf", "--out", str(tmp_path / "thesis.gguf")],
        "is no file of that kind": [str(run), "--to=gguf", "--force", "--out", str(tmp_path / "thesis.gguf")],
    }
    for message, argv in mistakes.items():
        assert main(argv) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main([str(run), "--to=gguf", "--out", str(out)]) == 2
    assert "the package gguf is not installed; pip install 'twinlm[gguf]'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "bare.safetensors", "thesis.gguf"}
    assert (tmp_path / "thesis.gguf").read_text() == "years of work"


def greedy(run: Path, prompt: str, count: int, engine_of: type) -> list[int]:
    config, tokenizer = load_run(find_checkpoint(run))
    engine = engine_of(replace(config, train=replace(config.train, device="cpu")))
    engine.restore(find_checkpoint(run).state)
    options = SampleConfig(temperature=0, max_tokens=count)
    [text] = complete(engine.generator(options), tokenizer, [prompt], options, context=config.model.max_seq_len)
    return text.tokens


def test_a_run_is_the_same_model_as_a_file(bpe: Tokenizer, tmp_path: Path):
    """With random weights, large enough that greedy text varies."""
    (tmp_path / "bare").mkdir()
    write_bare(tmp_path / "bare", Config(model=MODEL), Tensors.of(weights_of(MODEL)), bpe)
    run = convert(tmp_path / "bare", "torch", tmp_path / "run")
    path = convert(run, "gguf", tmp_path / "m.gguf")
    prompt = torch.tensor([bpe.encode_prompt("Once upon a time")])
    ids = their_model(path).generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :].tolist()
    expected = greedy(run, "Once upon a time", 40, TorchEngine)
    assert ids[: len(expected)] == expected
    assert len(set(expected)) > 5
    again = convert(convert(run, "jax", tmp_path / "jax"), "gguf", tmp_path / "again.gguf")
    one, other = read(path), read(again)
    assert {n: t.data.tobytes() for n, t in one[1].items()} == {n: t.data.tobytes() for n, t in other[1].items()}
    assert {n for n in one[0] if one[0][n] != other[0][n]} == {"general.name"}


# llama.cpp itself.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt enough for its greedy text to vary."""
    folder = tmp_path_factory.mktemp("runs")
    shape = ["--model.dim=64", "--model.n_layers=3", "--model.n_kv_heads=2", "--model.head_dim=24"]
    length = ["--train.steps=400", "--train.batch_size=16", "--train.seq_len=96", "--model.max_seq_len=96"]
    data = ["--data.stories=1000", "--tokenizer.vocab_size=400", f"--data.dir={folder / 'data'}"]
    options = [*shape, *length, *data, "--optim.lr=0.006", "--train.device=cpu", f"--run_dir={folder / 'run'}"]
    assert torch_train.main(options) == 0
    return folder / "run"


TEXTS = [
    "Once upon a time, there was a fox.",
    "  two  spaces\n\n\tand a tab",
    "naïve café 🐕 日本語",
    "don't 12345 <|endoftext|>",
]


def llama_cpp(path: Path, **options: Any) -> Any:
    """The model in llama.cpp, with a cache of float32."""
    module = pytest.importorskip("llama_cpp", reason="llama_cpp is not installed: pip install llama-cpp-python")
    return module.Llama(str(path), verbose=False, n_threads=1, type_k=0, type_v=0, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, *LLAMA_CPP_ALONE])
def test_llama_cpp_computes_our_logits(name: str, bpe: Tokenizer, tmp_path: Path):
    model = (MODELS | LLAMA_CPP_ALONE)[name]
    weights = weights_of(model)
    written(tmp_path / "m.gguf", model, weights, bpe)
    other = llama_cpp(tmp_path / "m.gguf", n_ctx=64, logits_all=True)
    other.eval(TOKENS[0].tolist())
    logits = torch.from_numpy(np.array(other.scores[: TOKENS.shape[1]]))[None]
    assert apart(ours(model, weights), logits) < 1e-5
    plain = replace(model, rope_scaling=None, norm_eps=0.3)
    assert apart(ours(plain, weights), logits) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "bytes", "sentencepiece"])
def test_llama_cpp_gives_our_ids(kind: str, sentencepiece: str, tmp_path: Path):
    if kind == "sentencepiece":
        (tmp_path / "tokenizer.json").write_text(sentencepiece, encoding="utf-8")
        tokenizer = Tokenizer.load(tmp_path / "tokenizer.json", "</s>")
    else:
        size = {"vocab_size": 400} if kind == "bpe" else {}
        tokenizer = tokenizers.train(TokenizerConfig(kind=kind, **size), stories(50, seed=0))
    model = replace(MODEL, vocab_size=tokenizer.vocab_size + 3)
    written(tmp_path / "m.gguf", model, weights_of(model), tokenizer)
    other = llama_cpp(tmp_path / "m.gguf", vocab_only=True)
    for text in [*TEXTS, "a", " a", "\x00\x00\x00", "h\u00e9llo w\u00f6rld", *stories(5, seed=3)]:
        assert other.tokenize(text.encode(), add_bos=True, special=False) == tokenizer.encode_prompt(text), text
    assert other.token_eos() == tokenizer.eot_id


@pytest.mark.slow
def test_four_implementations_write_the_same_60_tokens(trained: Path, tmp_path: Path):
    path = convert(trained, "gguf", tmp_path / "m.gguf")
    other = llama_cpp(path, n_ctx=96)
    _, tokenizer = load_run(find_checkpoint(trained))
    text = next(iter(stories(1, seed=7)))[:40]
    prompt = other.tokenize(text.encode(), special=False)
    assert prompt == tokenizer.encode_prompt(text)
    ids: list[int] = []
    for token in other.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token == tokenizer.eot_id or len(ids) == 60:
            break
        ids.append(token)
    folder = convert(trained, "hf", tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    written = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[0, len(prompt) :].tolist()
    jax_run = convert(trained, "jax", tmp_path / "jax")
    expected = greedy(trained, text, 60, TorchEngine)
    assert greedy(jax_run, text, 60, JaxEngine) == expected
    assert [token for token in written if token != tokenizer.eot_id] == expected
    assert ids == expected
    assert len(set(expected)) > 20
