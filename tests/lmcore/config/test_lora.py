"""The group of adapters refuses what cannot be, alone and with the architecture that it adapts."""

from typing import Any

import pytest

from lmcore.config import ADAPTED, Config, LoraConfig, ModelConfig, TrainConfig
from lmcore.errors import UserError

NAMES = ", ".join(ADAPTED)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "model.lora.rank: found 0, expected at least 1"),
        ({"alpha": 0.0}, "model.lora.alpha: found 0.0, expected more than 0"),
        ({"dropout": 1.0}, "model.lora.dropout: found 1.0, expected at least 0 and less than 1"),
        ({"targets": []}, f"model.lora.targets: found [], expected one or several of {NAMES}"),
        ({"targets": ["q"]}, f"model.lora.targets: found ['q'], expected one or several of {NAMES}"),
        (
            {"targets": ["q_proj"] * 2},
            f"model.lora.targets: found ['q_proj', 'q_proj'], expected one or several of {NAMES}",
        ),
    ],
)
def test_what_cannot_be_names_the_field_the_value_and_what_would_do(values: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        LoraConfig(**values)
    assert str(caught.value) == message


SMALL = {"dim": 16, "n_heads": 4, "n_kv_heads": 1}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 5}, "model.lora.rank: found 5, expected at most 4, the smaller side of v_proj"),
        (
            {"targets": ["gate_proj"]},
            "model.lora.targets: found ['gate_proj'], expected any of q_proj, k_proj, v_proj, ",
        ),
    ],
)
def test_adapters_fit_the_architecture_unless_another_run_is_to_say_it(lora: dict[str, Any], message: str):
    model = ModelConfig(**SMALL, mlp="gelu", lora=LoraConfig(**lora))
    with pytest.raises(UserError) as caught:
        Config(model=model)
    assert str(caught.value).startswith(message)
    Config(model=model, train=TrainConfig(init_from="another"))


def test_the_largest_rank_is_the_smaller_side():
    Config(model=ModelConfig(**SMALL, lora=LoraConfig(rank=4)))
    Config(model=ModelConfig(**SMALL, lora=LoraConfig(rank=16, targets=["q_proj", "down_proj"])))


def test_the_scale_is_alpha_over_rank():
    assert LoraConfig(rank=8, alpha=12.0).scale == 1.5
