"""A config survives saving, and a file that is none is refused in one line; a change of any field is seen."""

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from lmcore.config import (
    GROUPS,
    Config,
    DataConfig,
    LoraConfig,
    ModelConfig,
    RopeScaling,
    TrainConfig,
    differences,
    flatten,
    from_dict,
    load,
    save,
)
from lmcore.errors import UserError
from tests.lmcore.config.every_field import RESOLVED, all_fields


def alternative(name: str, hint: Any, value: Any) -> Any:
    """Another possible value of a field, given those of `RESOLVED`."""
    if name in ALTERNATIVES:
        return ALTERNATIVES[name]
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    if hint is bool:
        return not value
    if hint is int:
        return value + 1
    if hint is float:
        return value / 2 + 0.01
    if get_origin(hint) is list:
        return [*value, "another"]
    assert str in (hint, *get_args(hint)), f"{name}: no rule to change {hint}"
    return f"{value or ''}2"


ALTERNATIVES = {
    "model.n_heads": 8,
    "model.n_kv_heads": 2,
    "model.head_dim": 34,
    "model.rope_scaling": None,
    "model.rotary_dim": 8,
    "model.layer_types": ["nope"],
    "model.qk_norm": "all_heads",
    "model.bias": "qkv",
    "model.lora": None,
    "model.lora.targets": ["up_proj"],
    "optim.warmup_steps": 7,
    "train.grad_accum": 2,
    "parallel.data": 2,
    "train.seq_len": 100,
    "tokenizer.kind": "chars",
}


def changed(name: str, hint: Any) -> Config:
    values = asdict(RESOLVED)
    inner = values
    *groups, last = name.split(".")
    for group in groups:
        inner = inner[group]
    inner[last] = alternative(name, hint, inner[last])
    if name == "tokenizer.file":
        inner["kind"] = "file"
    if name == "model.position":
        inner["rope_scaling"] = None
    if name.startswith("model.sliding"):
        inner |= {"layer_types": ["sliding"], "sliding_window": 3}
    return from_dict(Config, values)


@pytest.mark.parametrize(("name", "hint"), list(all_fields()), ids=[name for name, _ in all_fields()])
def test_a_change_of_any_field_is_seen_and_survives_saving(name: str, hint: Any, tmp_path: Path):
    config = changed(name, hint)
    found = {n for n in differences(RESOLVED, config) if n != "tokenizer.kind" or name == n}
    scaling = {f"model.rope_scaling.{f.name}" for f in fields(RopeScaling)}
    adapters = {f"model.lora.{f.name}" for f in fields(LoraConfig)}
    window = {"model.layer_types", "model.sliding_window"}
    expected = {
        "model.rope_scaling": scaling,
        "model.position": {name} | scaling,
        "model.lora": adapters,
        "model.sliding_window": window,
        "model.sliding_rope_theta": window | {name},
    }.get(name, {name})
    assert found == expected
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config != RESOLVED


def test_differences_give_old_and_new():
    old, new = Config(train=TrainConfig(steps=100)), Config(train=TrainConfig(steps=200), run_dir="r")
    assert differences(old, old) == {}
    assert differences(old, new) == {
        "run_dir": (None, "r"),
        "optim.warmup_steps": (5, 10),
        "train.steps": (100, 200),
    }
    scaled = Config(model=ModelConfig(rope_scaling=RopeScaling(factor=2)))
    assert differences(Config(), scaled)["model.rope_scaling.factor"] == (None, 2)
    assert differences(scaled, Config())["model.rope_scaling.factor"] == (2, None)


def test_flatten_names_every_field_once():
    names = [name for name, _ in flatten(RESOLVED)]
    assert names == [name for name, _ in all_fields() if name not in ("model.rope_scaling", "model.lora")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model:\n  dmi: 3\n", r"model\.dmi: no such field"),
        (b"model:\n  dim: three\n", r"model\.dim: found 'three', expected an integer"),
        (b"train:\n  grad_accum: 3\n", r"train\.grad_accum: found 3, expected a divisor of batch_size = 8"),
        (b"", "config: found None, expected fields"),
        (b"- 1\n", r"config: found \[1\], expected fields"),
        (b"model: [\n", "cannot be read as a config"),
        (b"data:\n  dataset: caf\xe9\n", "cannot be read as a config"),
        (None, "cannot be read as a config"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_the_saved_file_is_plain_yaml_and_leaves_open_what_was_derived(tmp_path: Path):
    config = Config(data=DataConfig(separator="—\n"), train=TrainConfig(seq_len=64))
    save(config, tmp_path / "config.yaml")
    found = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert list(found) == ["run_dir", *GROUPS]
    open_ = {
        **{f"model.{name}": 0 for name in ("n_kv_heads", "head_dim", "rotary_dim", "ffn_dim")},
        "eval.batch_size": 0,
        "optim.warmup_steps": None,
    }
    for name, value in flatten(config):
        group, _, field = name.rpartition(".")
        assert (found[group] if group else found)[field] == open_.get(name, value), name
    assert load(tmp_path / "config.yaml") == config


def test_a_whole_number_for_a_real_one_is_a_real_one():
    optim = from_dict(Config, {"optim": {"lr": 0, "clip": 1}}).optim
    assert (repr(optim.lr), repr(optim.clip), repr(optim.warmup_steps)) == ("0.0", "1.0", "35")
