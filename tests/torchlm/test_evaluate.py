"""`python -m torchlm.evaluate` is the common command with this package's name and engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmcore import config as configs
from lmcore.config import Config, ModelConfig, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.run.checkpoints import Checkpoints
from torchlm import evaluate


def write(folder: Path) -> Callable[[], None]:
    """A state that no framework reads."""
    folder.mkdir()
    (folder / "weights").write_text("none")
    return lambda: None


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_run_of_this_framework_is_given_to_its_engine_and_another_is_refused(
    framework: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = Config(model=ModelConfig(vocab_size=257, dim=8, n_layers=1, n_heads=2))
    configs.save(config, tmp_path / "config.yaml")
    tokenizers.train(TokenizerConfig(kind="bytes"), []).save(tmp_path / "tokenizer.json")
    saving = Checkpoints(tmp_path, framework, keep=1)
    saving.save(1, 1.0, write)
    saving.wait()
    saving.close()
    (tmp_path / "text.txt").write_text("a text")
    assert evaluate.main([str(tmp_path), "--device=cpu", "--data.files", str(tmp_path / "text.txt")]) == 2
    error = capsys.readouterr().err
    if framework == "torch":
        assert "step_00000001/state/params: cannot be read" in error
    else:
        assert error.startswith(f"error: {tmp_path} is a jax run, expected torch; convert it first")
