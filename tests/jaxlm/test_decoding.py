"""The choice of tokens against a plain NumPy reading of the contract, and generators against the full forward pass."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.decoding import choose_tokens
from jaxlm.engine import Engine
from lmcore.config import Config, ModelConfig, SampleConfig, TrainConfig
from lmcore.generate.prompting import draw_uniforms, write_tokens
from lmcore.serve.slots import Sampling
from tests.jaxlm.compiled import Compiled

GREEDY = SampleConfig(temperature=0.0, max_tokens=24)


def expected_token(logits: np.ndarray, uniform: float, options: SampleConfig) -> int:
    """Temperature, top-k, top-p, min-p and the inverse distribution, one plain step at a time."""
    scaled = logits / options.temperature
    allowed = np.isfinite(scaled)
    if options.top_k:
        allowed &= scaled >= np.sort(scaled)[::-1][min(options.top_k, len(scaled)) - 1]
    weights = np.where(allowed, np.exp(scaled - scaled.max()), 0)
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")
    kept = 1 + int(np.sum(np.cumsum(probabilities[order]) < options.top_p)) if options.top_p < 1 else len(order)
    allowed &= probabilities >= probabilities[order[min(kept, len(order)) - 1]]
    allowed &= probabilities >= options.min_p * probabilities.max()
    cumulative = np.cumsum(np.where(allowed, probabilities, 0))
    return int(np.argmax(cumulative > uniform * cumulative[-1]))


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([0, 1, 3, 100]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from([11, 300]),
)
def test_tokens_are_chosen_as_the_contract_says(
    seed: int, temperature: float, k: int, p: float, m: float, vocab_size: int
) -> None:
    rng = np.random.default_rng(seed)
    logits, uniforms = rng.normal(0, 3, (4, vocab_size)), rng.random(4)
    options = SampleConfig(temperature=temperature, top_k=k, top_p=p, min_p=m)
    with jax.enable_x64(True):
        chosen = choose_tokens(jnp.asarray(logits), jnp.asarray(uniforms), options)
    assert chosen.tolist() == [expected_token(*row, options) for row in zip(logits, uniforms)]


def choose(row: list[float], uniform: float, **options: float) -> int:
    chosen = choose_tokens(
        jnp.asarray([row]), jnp.asarray([uniform]), replace(SampleConfig(temperature=1.0), **options)
    )
    return int(chosen[0])


def test_each_sequence_may_have_options_of_its_own() -> None:
    options = [
        SampleConfig(temperature=0.0),
        SampleConfig(temperature=1.0),
        SampleConfig(temperature=0.7, top_k=3),
        SampleConfig(temperature=1.3, top_p=0.6),
        SampleConfig(temperature=1.0, min_p=0.3, top_k=1000),
    ]
    rng = np.random.default_rng(0)
    logits, uniforms = rng.normal(0, 2, (200, 40)).astype(np.float32), rng.random(200, np.float32)
    own = [options[row % 5] for row in range(200)]
    sampling = Sampling(*(np.array([getattr(each, name) for each in own]) for name in Sampling._fields))
    together = jax.jit(choose_tokens)(logits, uniforms, sampling)
    for first, each in enumerate(options):
        alone = choose_tokens(jnp.asarray(logits[first::5]), jnp.asarray(uniforms[first::5]), each)
        np.testing.assert_array_equal(together[first::5], alone)
    greedy = jax.jit(choose_tokens)(logits, uniforms, sampling._replace(temperature=np.zeros(200)))
    np.testing.assert_array_equal(greedy, logits.argmax(axis=-1))


def test_draws_follow_the_distribution() -> None:
    logits = jnp.log(jnp.asarray([[0.5, 0.2, 0.3]]))
    uniforms = jnp.asarray(draw_uniforms(seed=3, rows=1, length=20_000)[0])
    chosen = choose_tokens(jnp.broadcast_to(logits, (20_000, 3)), uniforms, SampleConfig(temperature=1.0))
    np.testing.assert_allclose(np.bincount(chosen) / 20_000, [0.5, 0.2, 0.3], atol=0.01)


def test_greedy_takes_the_first_of_equals() -> None:
    for temperature in (0.0, 1e-46, 1e-40, 1e-30):
        assert choose([1.0, 3.0, 2.0], 0.99, temperature=temperature) == 1
    assert choose([1.0, 3.0, 3.0], 0.99, temperature=0.0) == 1


def test_a_uniform_number_next_to_one_stays_on_an_allowed_token() -> None:
    last = float(np.nextafter(np.float32(1), np.float32(0)))
    assert choose([0.3, 0.1, -np.inf], last) == 1
    assert choose([0.1] * 7 + [-50.0], last, top_k=7) == 6


@pytest.mark.parametrize("row", [[-np.inf] * 4, [np.nan] * 4, [2.0] * 4, [np.inf] * 4])
def test_rows_without_a_preference_are_drawn_evenly(row: list[float]) -> None:
    assert [choose(row, u) for u in (0.0, 0.3, 0.6, 0.9)] == [0, 1, 2, 3]
    assert choose(row, 0.9, temperature=0.0) == 0


def test_nan_is_never_chosen_beside_a_number() -> None:
    assert {choose([np.nan, 0.0, np.nan], u) for u in (0.0, 0.5, 0.99)} == {1}


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = ModelConfig(vocab_size=31, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=32, max_seq_len=48)
    engine = Engine(Config(model=model, train=TrainConfig(batch_size=2)))
    engine.init()
    rng = np.random.default_rng(0)
    params = {n: p + jnp.asarray(rng.normal(0, 0.2, p.shape), p.dtype) for n, p in engine.state.params.items()}
    engine.state = replace(engine.state, params=params)
    return engine


def written(engine: Engine, prompts: list[list[int]], options: SampleConfig) -> np.ndarray:
    chunks = write_tokens(engine.generator(options), prompts, options, context=48, pad=0)
    return np.concatenate(list(chunks), axis=1)


def test_greedy_text_is_that_of_the_full_forward_pass(engine: Engine) -> None:
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    rows = written(engine, prompts, GREEDY)
    assert rows.shape == (2, 24)
    decoder = Compiled(engine.model(engine.state.params))
    for prompt, row in zip(prompts, rows.tolist()):
        logits = np.asarray(decoder(jnp.asarray([prompt + row[:-1]])))[0, len(prompt) - 1 :]
        assert logits.argmax(axis=-1).tolist() == row
    assert len(set(itertools.chain(*rows.tolist()))) > 4


def test_a_row_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    options = SampleConfig(max_tokens=20, temperature=1.0, seed=5)
    together = written(engine, [[3, 1, 4], [9]], options)
    np.testing.assert_array_equal(together[:1], written(engine, [[3, 1, 4]], options))
    np.testing.assert_array_equal(together[1:], written(engine, [[9]], replace(options, seed=6)))
    assert (together[1:] != written(engine, [[9]], options)).any()


def test_writing_goes_on_past_the_context(engine: Engine) -> None:
    prompt = list(range(30)) * 3
    rows = written(engine, [prompt], replace(GREEDY, max_tokens=100))
    assert rows.shape == (1, 100)
    decoder = Compiled(engine.model(engine.state.params))
    # Of a prompt longer than the context of 48, the first chunk of 16 sees what leaves it room.
    row = rows[0, :16].tolist()
    logits = np.asarray(decoder(jnp.asarray([prompt[-32:] + row[:-1]])))[0, 31:]
    assert logits.argmax(axis=-1).tolist() == row


def test_on_a_cpu_a_bfloat16_model_writes_in_float32(engine: Engine) -> None:
    narrow = Engine(replace(engine.config, train=replace(engine.config.train, precision="bfloat16")))
    narrow.state = engine.state
    options = SampleConfig(max_tokens=40, temperature=1.0, seed=5)
    np.testing.assert_array_equal(written(narrow, [[3, 1, 4]], options), written(engine, [[3, 1, 4]], options))
    tokens = jnp.asarray([[3, 1, 4]])  # outside of writing, its products are its own
    full, half = (Compiled(each.model(engine.state.params))(tokens) for each in (engine, narrow))
    assert (np.asarray(full) != np.asarray(half)).any()
