"""Sequences in slots: the bits of each depend neither on its slot nor on the others; its text is a generator's."""

from dataclasses import replace

import numpy as np
import pytest

from jaxlm.engine import Engine
from jaxlm.slots import Slots
from lmcore.config import Config, ModelConfig, SampleConfig, TrainConfig
from lmcore.generate.prompting import draw_uniforms, write_tokens
from lmcore.model.init import initial_weight
from lmcore.serve.slots import Sampling
from lmcore.serve.slots import Slots as Protocol

MODEL = ModelConfig(vocab_size=61, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=32, max_seq_len=80)
SIZE, COUNT = 70, 4
PROMPTS = [[3, 1, 4, 1, 5], [9], list(range(40)), [7, 7]]
OPTIONS = [
    SampleConfig(temperature=0.0, max_tokens=24),
    SampleConfig(temperature=1.0, seed=5, max_tokens=24),
    SampleConfig(temperature=0.8, top_k=9, top_p=0.9, min_p=0.02, seed=9, max_tokens=24),
    SampleConfig(temperature=0.7, top_p=0.8, seed=3, max_tokens=24),
]
JOINS = [0, 3, 5, 6]


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine(Config(model=MODEL, train=TrainConfig(batch_size=2, cpu_devices=1)))
    engine.init(lambda name, shape: initial_weight(0, name, shape, MODEL) * (1 if "norm" in name else 15))
    return engine


def decode(slots: Slots, places: dict[int, int], joins: list[int]) -> tuple[dict[int, list], dict[int, np.ndarray]]:
    """Decode the sequences of `places` (number -> slot); return the tokens and the logits of each."""
    tokens: dict[int, list] = {number: [] for number in places}
    logits: dict[int, list] = {number: [] for number in places}
    uniforms = [draw_uniforms(options.seed, 1, options.max_tokens)[0] for options in OPTIONS]
    for step in range(max(joins) + 24):
        for number, slot in places.items():
            if joins[number] == step:
                slots.prefill(slot, np.array(PROMPTS[number], np.int32))
        active = {n: slot for n, slot in places.items() if joins[n] <= step and len(tokens[n]) < 24}
        draws, sampling = np.zeros(COUNT, np.float32), Sampling(*np.zeros((4, COUNT)))
        sampling = sampling._replace(top_k=np.zeros(COUNT, np.int32), top_p=np.ones(COUNT))
        for number, slot in active.items():
            draws[slot] = uniforms[number][len(tokens[number])]
            for name, values in sampling._asdict().items():
                values[slot] = getattr(OPTIONS[number], name)
            logits[number].append(slots.logits()[slot])
        chosen = slots.step(draws, sampling, np.isin(np.arange(COUNT), list(active.values())))
        for number, slot in active.items():
            tokens[number].append(int(chosen[slot]))
    return tokens, {number: np.stack(rows) for number, rows in logits.items()}


def test_a_sequence_is_the_same_in_any_slot_alone_or_beside_others(engine: Engine):
    slots = Slots(engine, COUNT, SIZE)
    assert isinstance(slots, Protocol)
    together, logits = decode(slots, {0: 0, 1: 3, 2: 1, 3: 2}, JOINS)
    for number, options in enumerate(OPTIONS):
        alone, own = decode(slots, {number: (number + 2) % COUNT}, [0] * 4)
        assert alone[number] == together[number]
        np.testing.assert_array_equal(own[number], logits[number], "to the bit")
        generator = engine.generator(options)
        written = np.concatenate(list(write_tokens(generator, [PROMPTS[number]], options, context=80, pad=0)), axis=1)
        assert written[0].tolist() == alone[number]
    assert len({tuple(row) for row in together.values()}) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "OPTIONS", [OPTIONS[0], replace(OPTIONS[1], seed=6)])
        assert decode(slots, {1: 0}, [0] * 4)[0][1] != together[1], "another seed"


def test_an_inactive_sequence_stays(engine: Engine):
    slots = Slots(engine, COUNT, SIZE)
    greedy = Sampling(np.zeros(COUNT), np.zeros(COUNT, np.int32), np.ones(COUNT), np.zeros(COUNT))
    slots.prefill(0, np.array(PROMPTS[2], np.int32))
    slots.prefill(1, np.array(PROMPTS[0], np.int32))
    before = slots.logits()
    active = np.array([False, True, False, False])
    for _ in range(5):
        slots.step(np.zeros(COUNT, np.float32), greedy, active)
    after = slots.logits()
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] != before[1]).any()
    first = [int(slots.step(np.zeros(COUNT, np.float32), greedy, ~active)[0]) for _ in range(20)]
    fresh = Slots(engine, COUNT, SIZE)
    fresh.prefill(0, np.array(PROMPTS[2], np.int32))
    assert first == [int(fresh.step(np.zeros(COUNT, np.float32), greedy, ~active)[0]) for _ in range(20)]


def test_a_slot_can_be_filled_to_its_last_position(engine: Engine):
    slots = Slots(engine, 2, SIZE)
    greedy = Sampling(np.zeros(2), np.zeros(2, np.int32), np.ones(2), np.zeros(2))
    text = [int(t) for t in np.random.default_rng(0).integers(0, 61, SIZE - 1)]
    last = slots.prefill(1, np.array(text, np.int32))
    token = int(slots.step(np.zeros(2, np.float32), greedy, np.array([False, True]))[1])
    assert token == int(last.argmax())
    whole = slots.prompt_logits(np.array([*text, token], np.int32))
    assert whole.shape == (SIZE, 61)
    np.testing.assert_allclose(whole[-2], last, rtol=0, atol=1e-4)
    np.testing.assert_allclose(slots.logits()[1], whole[-1], rtol=0, atol=1e-4)
    full = slots.logits()
    slots.step(np.zeros(2, np.float32), greedy, np.array([True, False]))
    np.testing.assert_array_equal(slots.logits()[1], full[1])


def test_attention_weights_are_a_causal_distribution_over_the_keys(engine: Engine):
    slots = Slots(engine, 2, SIZE)
    weights = slots.attention(np.array(PROMPTS[0], np.int32), 1)
    assert weights.shape == (4, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert (np.triu(weights[:, :4], 1) == 0).all()
    assert np.abs(weights[0] - weights[3]).max() > 0.01, "each head has its own"
    longer = slots.attention(np.array([*PROMPTS[0], 8], np.int32), 1)
    np.testing.assert_allclose(longer[:, :5, :5], weights, atol=1e-6)


def test_a_sequence_does_not_see_the_nan_of_the_one_before_in_its_slot(engine: Engine):
    slots = Slots(engine, 1, SIZE)
    sampling = Sampling(np.zeros(1, np.float32), np.zeros(1, np.int32), np.ones(1, np.float32), np.zeros(1, np.float32))

    def decoded() -> list[np.ndarray]:
        first = slots.prefill(0, np.array(PROMPTS[0], np.int32)).copy()
        slots.step(np.zeros(1, np.float32), sampling, np.ones(1, bool))
        return [first, slots.logits()[0]]

    expected = decoded()
    cache = slots.state.cache
    nan = [tuple(x * np.nan for x in each) for each in (cache.keys, cache.values)]
    slots.state = slots.state._replace(cache=cache._replace(keys=nan[0], values=nan[1]))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(decoded(), expected)
