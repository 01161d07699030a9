"""The table of names: complete on all three sides, bijective, bit-exact, and loud about whatever does not fit it."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.functional import Model
from lmcore.config import Config, ModelConfig
from lmcore.errors import UserError
from parity.convert.names import (
    IDENTITY,
    TRANSPOSE,
    Row,
    convert_names,
    convert_rows,
    numpy_to_torch,
    table,
    torch_to_numpy,
)
from torchlm.model import Decoder

TINY = ModelConfig(vocab_size=11, dim=10, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=7, max_seq_len=9)
UNTIED = replace(TINY, tie_embeddings=False)
SIDES = ("jax", "torch", "hf")
DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.integers(1, 8))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 40)),
        dim=draw(st.integers(1, 20)),
        n_layers=draw(st.sampled_from([1, 2, 3, 11])),
        n_heads=heads,
        n_kv_heads=draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])),
        head_dim=2 * draw(st.integers(1, 16)),
        ffn_dim=draw(st.integers(1, 20)),
        tie_embeddings=draw(st.booleans()),
        bias=draw(st.sampled_from([False, True, "qkv", "attention", "mlp"])),
        max_seq_len=4,
    )


VARIANTS = st.fixed_dictionaries(
    {
        "position": st.sampled_from(["rope", "learned", "sinusoidal", "none"]),
        "norm": st.sampled_from(["rmsnorm", "zero_centered_rmsnorm", "layernorm", "none"]),
        "norm_placement": st.sampled_from(["pre", "post", "sandwich", "output"]),
        "mlp": st.sampled_from(["swiglu", "geglu", "gelu", "relu"]),
        "qk_norm": st.sampled_from([False, True, "all_heads"]),
        "previous_tokens": st.sampled_from([0, 2]),
    }
).filter(lambda variant: variant["norm"] != "zero_centered_rmsnorm" or variant["qk_norm"] != "all_heads")


def bits(size: int, dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Any bits at all: NaNs with payloads, negative zero and subnormal numbers too."""
    return np.frombuffer(rng.bytes(size * dtype.itemsize), dtype)


def arrays(config: ModelConfig, side: str, dtype: type = np.float64, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {row.name(side): row.shape_in(side) for row in table(config)}
    return {name: bits(int(np.prod(s)), np.dtype(dtype), rng).reshape(s) for name, s in shapes.items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return list(one) == list(other) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@settings(max_examples=25)
@given(models(), VARIANTS)
def test_the_table_names_exactly_what_the_twins_hold(config: ModelConfig, variant: dict):
    config = replace(config, **variant)
    rows = table(config)
    shapes = Model(Config(model=config)).shapes
    assert {row.jax: row.shape for row in rows} == {name: leaf.shape for name, leaf in shapes.items()}
    with torch.device("meta"):
        state = Decoder(config).state_dict()
    assert {row.torch: row.shape_in("torch") for row in rows} == {name: tuple(t.shape) for name, t in state.items()}
    for side in SIDES:
        assert len({row.name(side) for row in rows}) == len(rows)


@pytest.mark.parametrize("config", [TINY, UNTIED, replace(TINY, bias=True)])
def test_transformers_names_and_shapes_its_llama_so(config: ModelConfig):
    llama = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn_dim,
        tie_word_embeddings=config.tie_embeddings,
        attention_bias=config.bias,
        mlp_bias=config.bias,
    )
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(llama).state_dict()
    if config.tie_embeddings:
        del state["lm_head.weight"]
    assert {row.hf: row.shape_in("hf") for row in table(config)} == {name: tuple(t.shape) for name, t in state.items()}


@given(models(), st.sampled_from(DTYPES), st.sampled_from(SIDES), st.sampled_from(SIDES), st.integers(0, 99))
def test_every_round_trip_keeps_every_bit(config: ModelConfig, dtype: type, source: str, over: str, seed: int):
    first = arrays(config, source, dtype, seed)
    there = convert_names(first, config, source, over)
    back = convert_names(there, config, over, source)
    assert same(first, back)
    assert all(array.flags.c_contiguous for array in [*there.values(), *back.values()])
    name = list(first)[-1]
    other = {**back, name: back[name].copy()}
    other[name].reshape(-1).view(np.uint8)[-1] ^= 1
    assert not same(first, other)


@given(models(), VARIANTS, st.integers(0, 99))
def test_variants_go_to_every_side_and_back_bit_for_bit(config: ModelConfig, variant: dict, seed: int):
    config = replace(config, **variant)
    first = arrays(config, "jax", np.float32, seed)
    for side in ("torch", "hf"):
        assert same(first, convert_names(convert_names(first, config, "jax", side), config, side, "jax"))


def test_a_kernel_is_turned_and_an_embedding_is_not():
    first = arrays(UNTIED, "jax", np.int64)
    there = convert_names(first, UNTIED, "jax", "torch")
    assert np.array_equal(there["layers.1.mlp.up_proj.weight"], first["layers.1.mlp.up_proj.kernel"].T)
    assert np.array_equal(there["embed_tokens.weight"], first["embed_tokens.weight"])
    assert np.array_equal(there["lm_head.weight"], first["lm_head.kernel"].T)
    assert same(convert_names(there, UNTIED, "torch", "hf"), convert_names(first, UNTIED, "jax", "hf"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_tensors_keep_every_bit(dtype: type):
    array = bits(24, np.dtype(dtype), np.random.default_rng(1)).reshape(4, 6)
    tensor = numpy_to_torch(array)
    assert str(tensor.dtype) == f"torch.{np.dtype(dtype)}"
    assert same({"a": torch_to_numpy(tensor)}, {"a": array})
    assert same({"a": torch_to_numpy(tensor.T)}, {"a": np.ascontiguousarray(array.T)})
    before = array.tobytes()
    tensor.zero_()
    assert array.tobytes() == before, "a copy"
    assert not same({"a": torch_to_numpy(tensor)}, {"a": array})


def test_all_that_does_not_fit_is_told_at_once():
    wrong = arrays(UNTIED, "jax")
    del wrong["norm.weight"]
    wrong["layers.0.self_attn.q_proj.kernel"] = wrong["layers.0.self_attn.q_proj.kernel"].T
    wrong |= {"layers.2.mlp.up_proj.kernel": np.zeros((10, 7)), "lm_head.bias": np.zeros(11)}
    with pytest.raises(UserError) as caught:
        convert_names(wrong, UNTIED, "jax", "hf")
    message = str(caught.value)
    for part in (
        "layers.2.mlp.up_proj.kernel [10, 7] is in no row",
        "lm_head.bias [11] is in no row",
        "norm.weight [10] is missing, so nothing fills model.norm.weight",
        "layers.0.self_attn.q_proj.kernel is [30, 10], expected [10, 30]",
    ):
        assert part in message
    assert message.count(";") == 3
    convert_names(arrays(UNTIED, "jax"), UNTIED, "jax", "hf")


@pytest.mark.parametrize("source", SIDES)
def test_each_missing_array_and_each_turned_one_is_found(source: str):
    whole = arrays(UNTIED, source)
    for name, array in whole.items():
        with pytest.raises(UserError, match="is missing"):
            convert_names({n: a for n, a in whole.items() if n != name}, UNTIED, source, "torch")
        if array.ndim == 2:
            with pytest.raises(UserError, match=r"expected \["):
                convert_names({**whole, name: array.T}, UNTIED, source, "torch")


def test_a_table_that_is_not_bijective_is_refused():
    rows = [Row("a", "x", "m", (2,), IDENTITY), Row("b", "x", "n", (2,), IDENTITY)]
    with pytest.raises(UserError, match="x is filled twice, by a and b"):
        convert_rows({"a": np.zeros(2), "b": np.zeros(2)}, rows, "jax", "torch")
    with pytest.raises(UserError, match="x is read by 2 rows"):
        convert_rows({"x": np.zeros(2)}, rows, "torch", "jax")
    assert list(convert_rows({"a": np.zeros(2), "b": np.zeros(2)}, rows, "jax", "hf")) == ["m", "n"]


def test_a_tied_head_may_come_along_only_if_it_is_the_embedding():
    weights = arrays(TINY, "hf")
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].copy()}
    for target in SIDES:
        assert same(convert_names(weights | head, TINY, "hf", target), convert_names(weights, TINY, "hf", target))
    head["lm_head.weight"].view(np.uint8)[-1, -1] ^= 1
    with pytest.raises(UserError, match=r"differs from model.embed_tokens.weight, though"):
        convert_names(weights | head, TINY, "hf", "jax")
    with pytest.raises(UserError, match=r"lm_head.kernel \[10, 11\] is in no row"):
        convert_names(arrays(UNTIED, "jax"), TINY, "jax", "torch")
    with pytest.raises(UserError, match=r"lm_head.weight \[11, 10\] is missing"):
        convert_names(weights, UNTIED, "hf", "jax")


def test_a_transform_and_its_inverse_undo_each_other():
    array = np.arange(6).reshape(2, 3)
    for transform in (IDENTITY, TRANSPOSE):
        assert np.array_equal(transform.inverse(transform.forward(array)), array)
    assert TRANSPOSE.forward(array).shape == (3, 2)
