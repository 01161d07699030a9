"""Every kind of source opens as one: its weights by any side's names, one at a time or all together."""

from pathlib import Path

import numpy as np
import pytest

from lmcore import config as configs
from lmcore.config import Config, ModelConfig
from lmcore.errors import UserError
from parity.convert.bare import write_bare
from parity.convert.conversion import convert
from parity.convert.names import Side, convert_names, table
from parity.convert.sources import is_model, is_run, open_source
from parity.convert.tensors import Tensors

MODEL = ModelConfig(vocab_size=30, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=7)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {r.torch: rng.standard_normal(r.shape_in("torch")).astype(np.float32) for r in table(MODEL)}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """The same weights as bare weights, as runs, as a checkpoint and as a Hugging Face folder."""
    file = tmp_path / "bare.safetensors"
    write_bare(file, Config(model=MODEL), Tensors.of(weights()), None)
    made = {name: convert(file, name, tmp_path / name) for name in ("jax", "torch", "hf")}  # type: ignore[arg-type]
    [checkpoint] = (made["jax"] / "checkpoints").iterdir()
    return made | {"bare": file, "checkpoint": checkpoint}


@pytest.mark.parametrize("side", ["jax", "torch", "hf"])
def test_all_kinds_open_as_the_same_weights(side: Side, sources: dict[str, Path]):
    expected = {n: a.tobytes() for n, a in convert_names(weights(), MODEL, "torch", side).items()}
    for name, path in sources.items():
        source = open_source(path)
        assert source.config.model == MODEL, name
        assert {n: a.tobytes() for n, a in source.tensors(side).items()} == expected, name
        whole = source.state().to(side, source.config)
        assert {n: a.tobytes() for n, a in whole.params.items()} == expected, name
        assert whole.moments is not None
        assert {n: s.dtype for n, s in source.tensors(side).stored.items()} == dict.fromkeys(expected, np.float32)


def test_kinds_are_told_apart(sources: dict[str, Path], tmp_path: Path):
    assert [name for name, path in sources.items() if is_run(path)] == ["jax", "torch"]
    assert [name for name, path in sources.items() if is_model(path)] == ["hf"]
    assert [name for name, path in sources.items() if open_source(path).checkpoint] == ["jax", "torch", "checkpoint"]
    with pytest.raises(UserError, match="expected a run folder, a checkpoint, a Hugging Face Llama folder or weights"):
        open_source(tmp_path / "nowhere.safetensors")


def test_a_checkpoint_of_another_model_is_refused_by_name(sources: dict[str, Path]):
    for name in ("jax", "torch"):
        config = configs.load(sources[name] / "config.yaml")
        wider = ModelConfig(**{**configs.to_dict(MODEL), "ffn_dim": 8})
        configs.save(Config(model=wider, train=config.train), sources[name] / "config.yaml")
        with pytest.raises(UserError, match=r"up_proj.\w+ is \[\d+, \d+\], expected"):
            open_source(sources[name]).tensors("hf")


def test_a_damaged_checkpoint_is_named(sources: dict[str, Path]):
    for name in ("jax", "torch"):
        opened = open_source(sources[name]).tensors("hf")
        for path in (sources[name] / "checkpoints").rglob("*"):
            if path.is_file() and "params" in path.parts:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match="cannot be read"):
            dict(opened)
        with pytest.raises(UserError, match="cannot be read"):
            open_source(sources[name], verify=False).tensors("hf")
