"""The decoder against an independent Llama, and each part against its definition, in float64 and on odd sizes."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.functional import Model, Params
from jaxlm.model import RMSNorm, rotate
from lmcore.config import Config, ModelConfig, RopeScaling, TrainConfig
from tests.jaxlm.compiled import Compiled

ODD = ModelConfig(vocab_size=61, dim=24, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=10, ffn_dim=24, max_seq_len=19)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def make(model: ModelConfig, **train: object) -> tuple[Model, Params]:
    """A model whose weights are large enough for every part to show in its output."""
    made = Model(Config(model=model, train=TrainConfig(precision="float64", **train)))
    rng = np.random.default_rng(1)
    return made, {n: jnp.asarray(p + rng.normal(0, 0.3, p.shape)) for n, p in made.initial_params().items()}


def tokens_for(model: ModelConfig, rows: int, length: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).integers(0, model.vocab_size, (rows, length), dtype=np.int32))


def llama_logits(model: ModelConfig, params: Params, tokens: jax.Array) -> np.ndarray:
    """What transformers' Llama computes with the same weights, in float64."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_scaling is not None:
        scaling = model.rope_scaling
        rope |= {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor}
        rope |= {"high_freq_factor": scaling.high_freq_factor}
        rope |= {"original_max_position_embeddings": scaling.original_max_seq_len}
    config = transformers.LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.dim,
        intermediate_size=model.ffn_dim,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_seq_len,
        rms_norm_eps=model.norm_eps,
        tie_word_embeddings=model.tie_embeddings,
        rope_parameters=rope,
        attn_implementation="eager",
    )
    llama = transformers.LlamaForCausalLM(config).double().eval()
    state = {}
    for name, value in params.items():
        owner, kind = name.rsplit(".", 1)
        array = torch.from_numpy(np.array(value.T if kind == "kernel" else value))
        state[f"{'' if owner == 'lm_head' else 'model.'}{owner}.weight"] = array
    missing, unexpected = llama.load_state_dict(state, strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}
    llama.tie_weights()
    with torch.no_grad():
        return llama(torch.from_numpy(np.array(tokens)).long()).logits.numpy()


SCALING = RopeScaling(factor=4.0, original_max_seq_len=8)


@pytest.mark.parametrize(
    "model",
    [
        ODD,
        replace(ODD, tie_embeddings=False, n_kv_heads=6),
        replace(ODD, rope_scaling=SCALING),
        replace(ODD, n_kv_heads=1),
    ],
    ids=["grouped", "untied", "scaled-rope", "one-kv-head"],
)
def test_logits_are_those_of_an_independent_llama(model: ModelConfig) -> None:
    made, params = make(model)
    tokens = tokens_for(model, rows=2, length=19)
    expected = llama_logits(model, params, tokens)
    # That Llama works out norms, rotary tables and softmax in float32 whatever its type: the float32 tolerance.
    np.testing.assert_allclose(Compiled(made(params))(tokens), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    wrong = replace(model, rope_theta=model.rope_theta * 2)
    assert np.abs(Compiled(Model(Config(model=wrong))(params))(tokens) - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_token_changes_nothing_before_it() -> None:
    made, params = make(ODD)
    tokens = tokens_for(ODD, rows=1, length=11)
    changed = tokens.at[0, 6].set((tokens[0, 6] + 1) % ODD.vocab_size)
    model = Compiled(made(params))
    before, after = (np.asarray(model(rows)) for rows in (tokens, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, 6:].max(axis=(0, 2)) > 1e-6).all()


def test_rms_norm_is_its_formula() -> None:
    norm = RMSNorm(5, eps=0.1)
    norm.weight = nnx.Param(jnp.asarray([1.0, -2.0, 3.0, 0.5, 0.0]))
    x = np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * np.asarray(norm.weight[...])
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-14)


def test_rotation_keeps_lengths_and_makes_scores_depend_on_distance_only() -> None:
    made, params = make(ODD)
    cos, sin = made(params).rope(jnp.arange(19)[None])["full"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, 10)))
    turned = rotate(jnp.broadcast_to(x, (1, 19, 1, 10)), cos, sin)[0, :, 0]
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x), rtol=1e-14)
    scores = np.asarray(turned @ turned.T)
    for distance in range(19):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12)
    assert abs(scores[0, 0] - scores[0, 5]) > 1e-3


@pytest.mark.parametrize("sizes", [[7, 1, 1, 3], [1] * 12])
def test_decoding_with_a_cache_is_the_full_forward_pass(sizes: list[int]) -> None:
    made, params = make(ODD)
    decoder = Compiled(made(params))
    tokens = tokens_for(ODD, rows=2, length=sum(sizes))
    full = decoder(tokens)
    cache = decoder.empty_cache(jnp.zeros(2, jnp.int32), 16)
    end = 0
    for size in sizes:
        logits, cache = decoder.decode(tokens[:, end : end + size], cache)
        end += size
        np.testing.assert_allclose(logits, full[:, end - 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
def test_left_padding_is_not_seen(position: str) -> None:
    made, params = make(replace(ODD, position=position))
    decoder = Compiled(made(params))
    tokens = tokens_for(ODD, rows=2, length=9)
    alone = decoder(tokens[1:, 4:])[:, -1]
    for filler in (0, 5):
        tokens = tokens.at[1, :4].set(filler)
        logits, _ = decoder.decode(tokens, decoder.empty_cache(jnp.asarray([0, 4], jnp.int32), 12))
        np.testing.assert_allclose(logits[1:], alone, rtol=1e-12, atol=1e-12)
    seen, _ = decoder.decode(tokens, decoder.empty_cache(jnp.asarray([0, 3], jnp.int32), 12))
    assert np.abs(seen[1:] - alone).max() > 1e-3


def test_recomputing_blocks_changes_no_gradient() -> None:
    tokens = tokens_for(ODD, rows=2, length=8)

    def gradients(remat: bool) -> Params:
        made, params = make(ODD, remat=remat)
        return jax.jit(jax.grad(lambda p: made(p)(tokens).var()))(params)

    stored, recomputed = gradients(False), gradients(True)
    for name in stored:
        np.testing.assert_allclose(recomputed[name], stored[name], rtol=1e-10, atol=1e-14)


def test_a_loop_over_the_layers_is_the_same_model_with_the_same_dropout() -> None:
    tokens = tokens_for(ODD, rows=2, length=8)

    def run(scan_layers: bool, seed: int = 0) -> tuple[jax.Array, Params, str]:
        made, params = make(replace(ODD, scan_layers=scan_layers, dropout=0.3), remat=True)

        def loss(params: Params) -> jax.Array:
            return made(params).hidden(tokens, jax.random.key(seed)).var()

        traced = jax.jit(jax.value_and_grad(loss)).trace(params)
        return *traced.lower().compile()(params), str(traced.jaxpr)

    (apart, gradients, unrolled), (together, scanned, looped) = run(False), run(True)
    assert "scan" in looped
    assert "scan" not in unrolled
    np.testing.assert_allclose(together, apart, rtol=1e-12)
    for name in gradients:
        np.testing.assert_allclose(scanned[name], gradients[name], rtol=1e-10, atol=1e-14)
    assert abs(run(True, seed=1)[0] - apart) > 1e-3


def test_dropout_acts_in_training_only_and_depends_on_its_key() -> None:
    made, params = make(replace(ODD, dropout=0.3))
    tokens = tokens_for(ODD, rows=1, length=8)
    hidden = partial(Compiled(made(params)).hidden, tokens)
    np.testing.assert_array_equal(hidden(), hidden())
    first, second = hidden(jax.random.key(0)), hidden(jax.random.key(1))
    np.testing.assert_array_equal(first, hidden(jax.random.key(0)))
    assert np.abs(first - second).max() > 1e-2
    assert np.abs(first - hidden()).max() > 1e-2


def test_float32_parameters_multiply_in_bfloat16() -> None:
    made = Model(Config(model=ODD, train=TrainConfig(precision="bfloat16")))
    params = made.initial_params()
    assert {p.dtype for p in params.values()} == {jnp.dtype("float32")}
    text = jax.jit(lambda p, t: made(p)(t)).lower(params, tokens_for(ODD, 1, 5)).as_text()
    factors = [
        re.findall(r"(bf16|f32|f64)>", line.rpartition(" : (")[2].partition(") ->")[0])
        for line in text.splitlines()
        if "stablehlo.dot_general" in line
    ]
    assert factors == [["bf16", "bf16"]] * (3 * 9 + 1)
