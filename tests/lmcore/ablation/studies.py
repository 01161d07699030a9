"""Study files and the runs of a study, as training leaves them but for the weights."""

from pathlib import Path
from typing import Any

from lmcore import config as configs
from lmcore.ablation.plan import Trial
from lmcore.run.trackers import JsonlTracker

FILE = """
base:
  model: {dim: 24, n_heads: 3}
  optim: {lr: 1e-3}
seeds: [0, 5]
changes:
  untied head: {model.tie_embeddings: false}
  Wider & deeper: {model: {dim: 48, n_layers: 5}}
"""


def written(tmp_path: Path, text: str = FILE) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def a_run(trial: Trial, rows: list[dict[str, Any]], parameters: int, step: int | None) -> None:
    """A run folder as training leaves it, without the weights."""
    trial.folder.mkdir(parents=True)
    configs.save(trial.config, trial.folder / "config.yaml")
    (trial.folder / "run.json").write_text(f'{{"framework": "jax", "device": "cpu", "parameters": {parameters}}}')
    tracker = JsonlTracker(trial.folder / "metrics.jsonl", None)
    for row in rows:
        tracker.log(row)
    tracker.close()
    if step is not None:
        folder = trial.folder / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text(f'{{"framework": "jax", "step": {step}, "valid_loss": 1.0}}')


def rows(*losses: float, rate: float = 100.0) -> list[dict[str, Any]]:
    facts = {"loss": 2.0, "valid_perplexity": 1.0, "tokens_per_second": rate}
    return [
        {"step": 10 * i, "tokens": 640 * i, "valid_loss": loss, "valid_bits_per_byte": 2 * loss, **facts}
        for i, loss in enumerate(losses, 1)
    ]
