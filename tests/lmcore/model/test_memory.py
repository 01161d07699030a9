"""A model that cannot fit is refused before it is made, with what it needs, what there is, and what to lower."""

from dataclasses import replace
from pathlib import Path

import pytest

import lmcore.model.memory
from jaxlm.engine import Engine as JaxEngine
from lmcore.config import Config, ModelConfig, OptimConfig, ParallelConfig, TrainConfig
from lmcore.errors import UserError
from lmcore.model.memory import check_batch, check_memory, parameter_parts, state_bytes
from torchlm.engine import Engine as TorchEngine

MODEL = ModelConfig(vocab_size=61, dim=16, n_heads=4, n_kv_heads=2, n_layers=2, max_seq_len=32)
HUGE = 10**12


@pytest.mark.parametrize("change", [{}, {"position": "learned"}, {"mlp": "gelu"}, {"tie_embeddings": False}])
def test_what_is_counted_is_what_the_model_holds_but_for_vectors(change: dict):
    model = replace(MODEL, **change)
    engine = JaxEngine(Config(model=model))
    engine.init()
    assert sum(parameter_parts(model).values()) == sum(p.size for p in engine.state.params.values() if p.ndim > 1)


@pytest.mark.parametrize(
    ("change", "lower"),
    [
        ({"dim": HUGE}, "model.n_layers, model.dim or model.ffn_dim"),
        ({"n_layers": HUGE}, "model.n_layers, model.dim or model.ffn_dim"),
        ({"ffn_dim": HUGE}, "model.n_layers, model.dim or model.ffn_dim"),
        ({"head_dim": HUGE}, "model.n_layers, model.dim or model.ffn_dim"),
        ({"vocab_size": HUGE}, "model.vocab_size or model.dim"),
        ({"previous_tokens": HUGE}, "model.previous_tokens"),
        ({"max_seq_len": HUGE}, "model.max_seq_len"),
        ({"max_seq_len": HUGE, "position": "learned"}, "model.max_seq_len or model.dim"),
        ({"max_seq_len": HUGE, "position": "sinusoidal"}, "model.max_seq_len"),
        ({"dim": 2**62, "n_layers": 2**62, "ffn_dim": 2**62}, "model.n_layers, model.dim or model.ffn_dim"),
    ],
)
@pytest.mark.parametrize("engine", [JaxEngine, TorchEngine])
def test_a_model_beyond_the_memory_is_refused_before_it_is_made(engine: type, change: dict, lower: str):
    config = Config(model=replace(MODEL, **change), train=TrainConfig(seq_len=32, device="cpu"))
    with pytest.raises(UserError, match=r"GB of memory in this machine; lower ") as caught:
        engine(config)
    assert str(caught.value).endswith(f"lower {lower}")


@pytest.mark.parametrize("engine", [JaxEngine, TorchEngine])
def test_training_takes_the_optimizers_state_too(engine: type, monkeypatch: pytest.MonkeyPatch):
    config = Config(model=MODEL, train=TrainConfig(device="cpu"))
    weights = 4 * sum(parameter_parts(MODEL).values())
    monkeypatch.setattr(lmcore.model.memory, "memory_bytes", lambda: 2 * weights)
    made = engine(config)  # to evaluate or generate, it fits
    with pytest.raises(UserError, match="weights and optimizer state"):
        made.init()
    monkeypatch.setattr(lmcore.model.memory, "memory_bytes", lambda: 4 * weights)
    made.init()


def test_no_more_is_asked_for_than_is_sure(monkeypatch: pytest.MonkeyPatch):
    weights = sum(parameter_parts(MODEL).values())
    rest = MODEL.max_seq_len * MODEL.head_dim * 8
    for name, values in (("adamw", 3), ("lion", 2), ("adafactor", 1)):
        for precision, size in (("bfloat16", 4), ("float64", 8)):
            config = Config(model=MODEL, optim=OptimConfig(name=name), train=TrainConfig(precision=precision))
            enough = values * size * weights + rest
            monkeypatch.setattr(lmcore.model.memory, "memory_bytes", lambda enough=enough: enough)
            check_memory(config, training=True)
            monkeypatch.setattr(lmcore.model.memory, "memory_bytes", lambda enough=enough: enough - 1)
            with pytest.raises(UserError, match="of memory in this machine"):
                check_memory(config, training=True)


def test_a_batch_beyond_the_memory_is_refused_too():
    check_batch(Config())
    config = Config(model=MODEL, train=TrainConfig(batch_size=HUGE, seq_len=32))
    with pytest.raises(UserError, match=r"lower train\.batch_size or train\.seq_len$"):
        check_batch(config)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_checkpoint_takes_at_least_what_is_said_and_little_more(tmp_path: Path, name: str, precision: str):
    train = TrainConfig(precision=precision, device="cpu")
    config = Config(model=replace(MODEL, dim=64), optim=OptimConfig(name=name), train=train)
    engine = TorchEngine(config)
    engine.init()
    engine.save(tmp_path / "state")()
    size = sum(path.stat().st_size for path in (tmp_path / "state").rglob("*.safetensors"))
    assert 0.75 * size < state_bytes(config) <= size


@pytest.mark.parametrize(
    ("parallel", "local", "count", "fits"),
    [
        (ParallelConfig(), 1, 1, 1.0),
        (ParallelConfig(), 4, 8, 4.0),  # each process holds the whole
        (ParallelConfig(fsdp=4), 4, 4, 1.0),
        (ParallelConfig(data=2, fsdp=2), 4, 4, 2.0),
        (ParallelConfig(data=1, fsdp=-1), 4, 8, 0.5),
        (ParallelConfig(data=1, fsdp=4, tensor=2), 4, 8, 0.5),
        (ParallelConfig(data=1, fsdp=2), 1, 2, 0.5),
    ],
)
def test_the_processes_of_a_host_share_its_memory(
    parallel: ParallelConfig, local: int, count: int, fits: float, monkeypatch: pytest.MonkeyPatch
):
    config = Config(model=MODEL, parallel=parallel)
    parts = sum(parameter_parts(MODEL).values()) * 4 + MODEL.max_seq_len * MODEL.head_dim * 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setattr(lmcore.model.memory, "memory_bytes", lambda: int(parts * fits))
    check_memory(config, training=False)
    monkeypatch.setattr(lmcore.model.memory, "memory_bytes", lambda: int(parts * fits) - 1)
    with pytest.raises(UserError, match="model: found one that needs at least"):
        check_memory(config, training=False)
