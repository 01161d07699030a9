"""A model without values knows its parameters' names, shapes and first values, and becomes a decoder with any."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.functional import Model
from jaxlm.layers import stack_layers
from lmcore.config import Config, ModelConfig, TrainConfig
from lmcore.model.init import initial_weight

MODEL = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)
BLOCK = {
    "input_layernorm.weight": (20,),
    "self_attn.q_proj.kernel": (20, 30),
    "self_attn.k_proj.kernel": (20, 6),
    "self_attn.v_proj.kernel": (20, 6),
    "self_attn.o_proj.kernel": (30, 20),
    "post_attention_layernorm.weight": (20,),
    "mlp.gate_proj.kernel": (20, 24),
    "mlp.up_proj.kernel": (20, 24),
    "mlp.down_proj.kernel": (24, 20),
}


def test_every_parameter_has_its_name_and_shape() -> None:
    model = Model(Config(model=MODEL))
    layers = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in BLOCK.items()}
    expected = {"embed_tokens.weight": (61, 20), **layers, "norm.weight": (20,)}
    assert {name: leaf.shape for name, leaf in model.shapes.items()} == expected
    assert model.parameter_count == sum(int(np.prod(shape)) for shape in expected.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_first_weights_are_the_shared_draws_in_float32(precision: str) -> None:
    config = Config(model=MODEL, train=TrainConfig(seed=3, precision=precision))
    params = Model(config).initial_params()
    assert {value.dtype for value in params.values()} == {jnp.dtype("float32")}
    for name in ("embed_tokens.weight", "layers.1.mlp.down_proj.kernel"):
        np.testing.assert_array_equal(params[name], initial_weight(3, name, params[name].shape, MODEL))


def test_a_decoder_has_the_values_that_it_is_given_stacked_or_not() -> None:
    model = Model(Config(model=MODEL))
    params = {name: jnp.full(leaf.shape, float(i)) for i, (name, leaf) in enumerate(model.shapes.items())}
    name = "layers.1.self_attn.o_proj.kernel"
    for given in (params, stack_layers(params)):
        kernel = model(given).layers[1].self_attn.o_proj.kernel
        np.testing.assert_array_equal(kernel[...], params[name])
    with pytest.raises(KeyError, match=r"layers\.2"):
        model({**params, "layers.2.input_layernorm.weight": jnp.ones(20)})
