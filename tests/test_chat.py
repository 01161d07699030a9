"""Conversations from a file to a chat, in both twins: prepare, train, resume, evaluate and generate."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lmcore.data.chat import CHATML, ChatTemplate, read_template
from lmcore.data.conversations import encode_turns
from lmcore.data.tokenizer import Tokenizer
from lmcore.run.trackers import read_metrics
from parity.convert.conversion import main as convert
from tests.tiny import TINY

OWN = {
    "model.max_seq_len": 64,
    "data.format": "chat",
    "tokenizer.special_tokens": '["<|im_start|>", "<|im_end|>"]',
    "train.steps": 3,
    "train.grad_accum": 2,
    "sample.prompt": "Who?",
    "sample.max_tokens": 4,
}


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    file = tmp_path / "chat.jsonl"
    turns = [
        [{"role": "user", "content": "Say owl."}, {"role": "assistant", "content": "owl " * count}]
        for count in range(1, 30)
    ]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return file


def options(file: Path, run: Path, **changes: object) -> list[str]:
    fields = TINY | OWN | {"data.files": file, "data.dir": file.parent / "data", "run_dir": run} | changes
    return [word for name, value in fields.items() if name != "data.stories" for word in (f"--{name}", str(value))]


def command(package: str, name: str) -> Callable[[list[str]], object]:
    return import_module(f"{package}.{name}").main


@pytest.mark.parametrize("package", ["torchlm", pytest.param("jaxlm", marks=pytest.mark.slow)])
def test_a_run_learns_conversations_and_chats(package: str, conversations: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert not command(package, "train")(options(conversations, run))
    said = capsys.readouterr().out
    assert "train: 28 conversations in " in said
    assert "longer ones are cut there" in said
    assert (run / "tokenizer_config.json").exists()
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    command(package, "evaluate")([str(run), "--data.files", str(conversations), "--data.format", "chat"])
    assert "nats per token" in capsys.readouterr().out
    command(package, "generate")([str(run), "--chat", "--max_tokens", "3", "--prompt", "Say owl.", "Again."])
    assert len(capsys.readouterr().out.split("\n")) >= 3
    assert command(package, "generate")([str(run), "--system", "x"]) == 2
    assert "--system: found 'x' without --chat" in capsys.readouterr().err


def test_the_loss_is_the_same_however_a_batch_is_split(conversations: Path, tmp_path: Path):
    losses = []
    for name, changes in {"one": {"train.grad_accum": 1}, "both": {"train.cpu_devices": 2}}.items():
        run = tmp_path / name
        command("torchlm", "train")(options(conversations, run, **{"train.precision": "float64"}, **changes))
        losses.append([row["loss"] for row in read_metrics(run / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


def test_an_export_speaks_by_the_template_that_the_run_learned(conversations: Path, tmp_path: Path, capsys):
    run, folder = tmp_path / "run", tmp_path / "hf"
    command("torchlm", "train")(options(conversations, run))
    assert not convert([str(run), "--to", "hf", "--out", str(folder)])
    messages = [{"role": "user", "content": "Who?"}]
    tokenizer, end = AutoTokenizer.from_pretrained(folder), "<|im_end|>"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    own = Tokenizer.load(run / "tokenizer.json")
    assert list(ids) == encode_turns(own, ChatTemplate(CHATML), messages)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert own.inner.token_to_id(end) in generation["eos_token_id"]
    assert not convert([str(run), "--to", "jax", "--out", str(tmp_path / "jax")])
    assert read_template(tmp_path / "jax").source == CHATML


def test_conversations_that_are_cut_before_the_assistant_are_refused(conversations: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert command("torchlm", "train")(options(conversations, run, **{"train.seq_len": 8})) == 2
    assert (
        "the assistant says nothing within the first 8 tokens of any training conversation" in capsys.readouterr().err
    )
    assert not run.exists()
