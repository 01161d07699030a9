"""The figures of an evaluation, for a model whose loss is known; what cannot be evaluated is refused in one line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmcore import config as configs
from lmcore.config import Config, DataConfig, ModelConfig, TokenizerConfig, TrainConfig
from lmcore.data.batches import HEADER
from lmcore.data.prepare import prepare
from lmcore.errors import NotFinite, UserError
from lmcore.run.evaluate import main
from lmcore.run.saving import Checkpoints


@pytest.fixture
def run(tmp_path: Path, miniature: type) -> Path:
    """A run on one text, of which the last four characters are held out; its first checkpoint is the better one."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "train.txt").write_text("a tale of a cat " * 5)
    data = DataConfig(files=[str(tmp_path / "train.txt")], dir=str(tmp_path / "data"))
    model, train = ModelConfig(vocab_size=257, max_seq_len=16), TrainConfig(steps=100)
    config = Config(run_dir=str(folder), data=data, model=model, train=train, tokenizer=TokenizerConfig(kind="bytes"))
    configs.save(config, folder / "config.yaml")
    prepared = prepare(config, lambda line: None)
    for name in (HEADER, "tokenizer.json"):
        (folder / name).write_bytes((prepared.folder / name).read_bytes())
    saving, engine = Checkpoints(folder, "jax", keep=2), miniature(config)
    for step, engine.nats in ((10, 2.5), (20, 4.0)):
        saving.save(step, engine.nats, engine.save)
    saving.wait()
    saving.close()
    return folder


@pytest.fixture
def evaluate(miniature: type) -> Callable[..., Any]:
    """Runs the command and returns its engine."""
    engines: list[Any] = []

    def make_engine(config: Config) -> Any:
        engines.append(miniature(config))
        return engines[-1]

    def command(*argv: str) -> Any:
        main(argv, "jaxlm", make_engine, baseline_module="none")
        return engines[-1]

    return command


def figures(out: str) -> dict[str, str]:
    return {line[:13].strip(): line[13:].strip() for line in out.splitlines()}


def test_other_text_is_measured_by_the_best_checkpoint_in_windows_that_it_fills(
    run: Path, evaluate: Callable[..., Any], tmp_path: Path, capsys
):
    (tmp_path / "text.txt").write_text("Once é", encoding="utf-8")
    engine = evaluate(str(run), "--data.files", str(tmp_path / "text.txt"))
    shown = figures(capsys.readouterr().out)
    assert shown["checkpoint"] == f"{run / 'checkpoints' / 'step_00000010'} (step 10)"
    assert shown["tokens"] == "8 (0.875 bytes per token)", "seven bytes and end-of-text"
    assert shown["loss"] == "2.5000 nats per token"
    assert shown["perplexity"] == f"{math.exp(2.5):.2f}"
    assert shown["bits per byte"] == f"{2.5 / math.log(2) * 8 / 7:.4f}"
    assert engine.shapes == {(1, 7)}


def test_without_text_it_is_the_runs_own_unless_that_has_changed(
    run: Path, evaluate: Callable[..., Any], tmp_path: Path, capsys
):
    checkpoint = run / "checkpoints" / "step_00000020"
    engine = evaluate(str(checkpoint), "--precision=bfloat16")
    shown = figures(capsys.readouterr().out.partition("\n")[2])
    assert shown["loss"] == "4.0000 nats per token"
    assert shown["tokens"].startswith("5 "), "four characters and end-of-text"
    assert "train.txt" in shown["text"]
    assert engine.config.train.precision == "bfloat16"
    (tmp_path / "train.txt").write_text("another tale of a cat")
    with pytest.raises(UserError, match=r"^the run's training text has changed since; name a text .* --data\.files"):
        evaluate(str(checkpoint))


def test_weights_that_are_not_finite_are_told(run: Path, evaluate: Callable[..., Any]):
    (run / "checkpoints" / "step_00000020" / "state" / "weight").write_text("nan")
    with pytest.raises(NotFinite, match=r"step_00000020: the loss is nan: weights are not finite"):
        evaluate(str(run / "checkpoints" / "step_00000020"), "--no_verify")


def test_what_cannot_be_evaluated_is_refused(run: Path, evaluate: Callable[..., Any], tmp_path: Path):
    (tmp_path / "none.txt").write_text("")
    for argv, message in (
        (["--baseline=gpt2", "--windows=3"], r"--windows: found 3, expected 0 with --baseline"),
        ([f"--data.files={tmp_path / 'none.txt'}"], r"data: found 0 tokens in .*none\.txt, expected at least 2"),
        (["--batch_size=-1"], r"--batch_size: found -1"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(str(run), *argv)
