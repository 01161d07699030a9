"""Proves the comparison with a `transformers` model: bits per byte found token by token, whatever the tokenizer."""

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import jaxlm.evaluate
import torchlm.evaluate
from lmcore.data.readers import Piece
from lmcore.errors import UserError
from lmcore.run import baseline
from lmcore.run.baseline import Request, whole_documents
from parity.convert.conversion import convert
from torchlm import train
from torchlm.baseline import encode, load, measure

PIECES = [
    ("Once upon a time there was a f", False),
    ("ox.", True),
    ("Äpfel, 🙂 and <|endoftext|> or <s> in words", True),
    ("The end", True),
]
DOCUMENTS = whole_documents(Piece(*piece) for piece in PIECES)
SIZE = sum(len(text.encode()) for text, _ in PIECES)


def their_tokenizer(folder: Path, bos: str | None) -> Path:
    """Byte-level BPE with a few merges, as a folder of transformers."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", *([bos] if bos else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=275, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([text for text, _ in PIECES] * 3, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=special[0], bos_token=bos)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned positions, one token that both begins and ends a document, and a short context."""
    folder = their_tokenizer(tmp_path_factory.mktemp("gpt2"), None)
    torch.manual_seed(1)
    shape = {"n_positions": 7, "n_embd": 10, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=275, initializer_range=0.4, **shape)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rotary positions, a token of its own that begins a document, and a long context."""
    folder = their_tokenizer(tmp_path_factory.mktemp("llama"), "<s>")
    torch.manual_seed(2)
    shape = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=275, initializer_range=0.4, bos_token_id=1, eos_token_id=0, **shape)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def by_hand(folder: Path, context: int, bos: bool) -> tuple[float, int]:
    """Nats and targets, one forward pass for each token: what it sees is spelled out, without batches or padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [0]
    for text in ("Once upon a time there was a fox.", *(text for text, _ in PIECES[2:])):
        ids += [1] if bos else []
        ids += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [0]
    nats, count = 0.0, 0
    for i in range(1, len(ids)):
        if bos and ids[i] == 1:
            continue
        begin = (i - 1) // context * context
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin:i]])).logits[0, -1].double()
        nats -= float(torch.log_softmax(logits, dim=0)[ids[i]])
        count += 1
    return nats, count


def ask(folder: Path, context: int) -> Request:
    return Request(model=str(folder), documents=DOCUMENTS, context=context, batch_size=3, device="cpu")


def test_a_model_with_one_special_token_and_a_shorter_context(gpt2: Path):
    found = measure(ask(gpt2, 11))
    nats, count = by_hand(gpt2, 7, bos=False)
    assert (found.context, found.targets, found.unknown) == (7, count, 0)
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.bits_per_byte(SIZE) == pytest.approx(nats / math.log(2) / SIZE, rel=1e-6)
    assert abs(by_hand(gpt2, 6, bos=False)[0] - nats) > 0.1  # windows cut elsewhere are not the same


def test_a_token_for_unknown_text_that_also_ends_documents_counts_none(gpt2: Path, tmp_path: Path):
    copy = shutil.copytree(gpt2, tmp_path / "gpt2")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["unk_token"] = settings["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert transformers.AutoTokenizer.from_pretrained(copy).unk_token_id == 0
    assert measure(ask(copy, 11)).unknown == 0


def test_a_token_that_begins_a_document_is_read_and_not_predicted(llama: Path):
    found = measure(ask(llama, 11))
    nats, count = by_hand(llama, 11, bos=True)
    assert (found.context, found.targets) == (11, count)
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert abs(by_hand(llama, 11, bos=False)[0] - nats) > 0.1


def test_text_that_spells_a_special_token_is_text(llama: Path):
    _, tokenizer = load(str(llama))
    stream = encode(tokenizer, 0, DOCUMENTS)
    assert stream.prefix == (1,)
    assert [int((stream.ids == i).sum()) for i in (0, 1)] == [4, 3]
    assert tokenizer.decode(stream.ids.tolist(), skip_special_tokens=True) == "".join(text for text, _ in PIECES)


def figures(out: str) -> list[list[str]]:
    """The table that a comparison prints: name of the row, the run's and the baseline's figure."""
    return [line.rsplit(maxsplit=2) for line in out.splitlines() if line.startswith(("param", "tok", "nats", "bits"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    options = ["--model.dim=16", "--model.n_layers=1", "--model.n_heads=2", "--model.max_seq_len=24"]
    options += ["--data.stories=30", f"--data.dir={folder / 'data'}", "--tokenizer.vocab_size=300"]
    options += ["--train.steps=10", "--train.batch_size=4", "--train.device=cpu", "--sample.max_tokens=2"]
    assert train.main([*options, f"--run_dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.mark.parametrize("package", ["torchlm", pytest.param("jaxlm", marks=pytest.mark.slow)])
def test_a_run_compares_as_equal_with_itself_in_transformers(
    package: str, run: Path, gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A third implementation, with its own tokenizer and sums, gives the same figures to the last digit shown."""
    own = run if package == "torchlm" else convert(run, "jax", tmp_path / "jax")
    theirs = convert(run, "hf", tmp_path / "hf")
    evaluate = {"torchlm": torchlm.evaluate, "jaxlm": jaxlm.evaluate}[package].main
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(text for text, _ in [(PIECES[0][0] + PIECES[1][0], 0), *PIECES[2:]]))
    assert evaluate([str(own), "--baseline", str(theirs), "--data.files", str(text), "--data.separator=§"]) == 0
    out = capsys.readouterr().out
    assert "24 tokens for both" in out
    table = figures(out)
    assert len(table) == 4
    assert all(ours == others for _, ours, others in table), table
    if package == "torchlm":
        assert evaluate([str(own), "--baseline", str(gpt2), "--data.max_documents=2"]) == 0
        out = capsys.readouterr().out
        assert "2 documents" in out
        assert "windows     7 tokens for both" in out
        assert all(ours != others for _, ours, others in figures(out))


def test_mistakes_are_one_line(run: Path, tmp_path: Path, gpt2: Path, monkeypatch: Any, capsys: Any):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    for words, message in (
        (
            ["--baseline", "no-such/model"],
            "'no-such/model' is not a local folder, and cannot be downloaded from the hub; name a",
        ),
        (["--baseline", str(broken)], "broken' cannot be loaded ("),
        (["--baseline", str(gpt2), "--windows=8"], "--windows: found 8, expected 0 with --baseline"),
    ):
        assert torchlm.evaluate.main([str(run), *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else there(name))
    with pytest.raises(UserError, match=r'found no transformers; run: pip install "twinlm\[baseline\]"'):
        baseline.measure_baseline("torchlm.baseline", "gpt2", [], 8, 1, "cpu")
