"""A run starts from the weights of another, whose shape and tokenizer it takes, and which it finds again unchanged."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lmcore import config as configs
from lmcore.config import Config, LoraConfig, ModelConfig, TokenizerConfig, TrainConfig
from lmcore.errors import UserError
from lmcore.run.base import base_to_load, describe_base, find_base, restore_model, with_base
from lmcore.run.checkpoints import Checkpoint, find_checkpoint, read_checkpoint
from lmcore.run.saving import Checkpoints
from lmcore.verify import Result, verify

MODEL = ModelConfig(vocab_size=257, dim=16, n_heads=2, max_seq_len=8)


def writing(weights: str) -> Callable[[Path], Callable[[], None]]:
    def write(folder: Path) -> Callable[[], None]:
        (folder / "params").mkdir(parents=True)
        (folder / "params" / "weights").write_text(weights)
        return lambda: None

    return write


def saved(run_dir: Path, config: Config, weights: str, base: Checkpoint | None = None) -> Checkpoint:
    run_dir.mkdir(exist_ok=True)
    configs.save(config, run_dir / "config.yaml")
    saver = Checkpoints(run_dir, "jax", keep=1, base=base and describe_base(base, run_dir))
    saver.save(3, None, writing(weights))
    saver.wait()
    saver.close()
    return read_checkpoint(run_dir / "checkpoints" / "step_00000003")


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    named = TokenizerConfig(kind="bytes", stop_tokens=["x"])
    return saved(tmp_path / "base", Config(model=MODEL, tokenizer=named), "good")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    train = TrainConfig(init_from=str(tmp_path / "base"))
    return Config(run_dir=str(tmp_path / "run"), model=ModelConfig(lora=LoraConfig(rank=2)), train=train)


def test_a_run_takes_the_architecture_and_the_tokenizer_and_keeps_what_is_its_own(base: Checkpoint, config: Config):
    own = replace(config, model=replace(config.model, dropout=0.1, dim=16))  # the same as there may be said again
    complete = with_base(own, "jax")
    assert complete.model == replace(MODEL, lora=own.model.lora, dropout=0.1)
    assert complete.tokenizer.file == str(base.run_dir / "tokenizer.json")
    assert (complete.tokenizer.kind, complete.tokenizer.stop_tokens) == ("file", ["x"])
    loaded = base_to_load(complete, None)
    assert loaded == base
    plain = replace(config, train=TrainConfig(), model=ModelConfig())
    assert with_base(plain, "jax") is plain
    assert base_to_load(plain, None) is None


def test_what_does_not_fit_is_one_line(base: Checkpoint, config: Config):
    def refused(config: Config, framework: str = "jax") -> str:
        with pytest.raises(UserError) as caught:
            with_base(config, framework)
        assert caught.value.exit_code == 2
        return str(caught.value)

    wider = replace(config, model=replace(config.model, dim=64))
    assert refused(wider).startswith("model.dim: found 64, expected 16 as in train.init_from, ")
    assert "is a jax run, expected torch" in refused(config, "torch")
    assert refused(replace(config, train=TrainConfig(init_from="none"))).startswith("none: no such folder")
    (folder := base.run_dir.parent / "huggingface").mkdir()
    imported = replace(config, train=TrainConfig(init_from=str(folder)))
    assert refused(imported).endswith(f"convert it first: python -m parity.convert {folder} --to jax --out OUT")
    ranked = replace(config, model=ModelConfig(lora=LoraConfig(rank=17)))
    assert refused(ranked).startswith("model.lora.rank: found 17, expected at most 16")
    alone = replace(config, train=TrainConfig())
    assert refused(alone).startswith("train.init_from: found null with model.lora, expected the run")
    adapted = with_base(config, "jax")
    saved(base.run_dir.parent / "run", adapted, "adapters", base)
    second = replace(config, run_dir=str(base.run_dir.parent / "second"), train=TrainConfig(init_from=config.run_dir))
    assert "is a run with adapters, expected one without; merge them first" in refused(second)


def test_the_base_is_found_where_it_was_or_moved_with_the_run_and_must_not_change(
    base: Checkpoint, config: Config, tmp_path: Path
):
    run = saved(tmp_path / "run", with_base(config, "jax"), "adapters", base)
    assert find_base(run) == base
    assert base_to_load(with_base(config, "jax"), run) == base
    assert list(verify(run.run_dir))[-1] == Result(base.folder, "good", "")
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "run"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    moved = find_checkpoint(tmp_path / "elsewhere" / "run")
    assert find_base(moved).run_dir == tmp_path / "elsewhere" / "base"
    shutil.rmtree(tmp_path / "elsewhere" / "base")
    saved(tmp_path / "elsewhere" / "base", Config(model=MODEL), "other")
    assert list(verify(moved.run_dir))[-1].state == "damaged"
    with pytest.raises(UserError, match=r"found other weights than those that .*run adapts") as caught:
        find_base(moved)
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (2, 0)
    shutil.rmtree(tmp_path / "elsewhere" / "base")
    with pytest.raises(UserError, match=r"step_00000003: found nothing, expected the weights that .*run adapts"):
        find_base(moved)
    with pytest.raises(UserError, match="found no base"):
        find_base(replace(moved, base=None))


def test_a_model_is_restored_after_its_base(
    base: Checkpoint, config: Config, tmp_path: Path, miniature: type, monkeypatch: pytest.MonkeyPatch
):
    complete, loaded = with_base(config, "jax"), list[Path]()
    run, engine = saved(tmp_path / "run", complete, "adapters", base), miniature(complete)
    monkeypatch.setattr(engine, "load_base", loaded.append)
    monkeypatch.setattr(engine, "restore", lambda folder, optimizer: loaded.append(folder))
    restore_model(engine, complete, run)
    assert loaded == [base.state, run.state]
    loaded.clear()
    restore_model(engine, Config(model=MODEL), base)
    assert loaded == [base.state]
