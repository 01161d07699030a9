"""SmolLM3, as transformers makes it, is the same model in both twins."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from lmcore.config import Config, ModelConfig
from parity.convert.huggingface import write_folder
from parity.convert.names import table
from tests.parity.convert.families.comparing import SIZES, assert_same_model


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"no_rope_layer_interval": 2}])
def test_it_is_the_same_model_here_and_back(fields: dict[str, Any], tmp_path: Path):
    assert_same_model("smollm3", SIZES | fields, tmp_path)


@pytest.mark.parametrize(
    "variant", [{"layer_types": ["full", "nope"]}, {"layer_types": ["sliding"], "sliding_window": 3}]
)
def test_special_tokens_are_none_of_the_familys_own(variant: dict[str, Any], tmp_path: Path):
    model = ModelConfig(vocab_size=11, dim=24, n_layers=2, n_heads=4, max_seq_len=9, **variant)
    weights = {row.hf: np.zeros(row.shape_in("hf"), np.float32) for row in table(model)}
    write_folder(tmp_path, Config(model=model), weights, None)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().padding_idx is None
