"""The choice of each token against its definition, and decoding in every precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig, SampleConfig
from lmcore.generate.prompting import write_tokens
from lmcore.serve.slots import Sampling
from torchlm.decoding import Generator, choose_tokens, inverse_cdf
from torchlm.model import Decoder

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=16)
CHANCES = [0.05, 0.4, 0.1, 0.4, 0.05]


def chosen(chances: list[float], options: SampleConfig) -> dict[int, float]:
    """Token -> share of the unit interval that leads to it."""
    uniforms = (torch.arange(1000) + 0.5) / 1000
    logits = torch.log(torch.tensor(chances)).expand(1000, -1)
    tokens, counts = np.unique(choose_tokens(logits, uniforms, options).numpy(), return_counts=True)
    return {int(token): int(count) / 1000 for token, count in zip(tokens, counts)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 0.05, 1: 0.4, 2: 0.1, 3: 0.4, 4: 0.05}),
        ({"temperature": 0}, {1: 1.0}),
        ({"temperature": 0.5}, {0: 0.0075, 1: 0.478, 2: 0.03, 3: 0.478, 4: 0.0075}),
        ({"top_k": 1}, {1: 0.5, 3: 0.5}),
        ({"top_k": 3}, {1: 0.444, 2: 0.111, 3: 0.444}),
        ({"top_p": 0.85}, {1: 0.444, 2: 0.111, 3: 0.444}),
        ({"top_p": 0.75}, {1: 0.5, 3: 0.5}),
        ({"min_p": 0.2}, {1: 0.444, 2: 0.111, 3: 0.444}),
        ({"top_k": 3, "top_p": 0.85, "min_p": 0.5}, {1: 0.5, 3: 0.5}),
    ],
)
def test_options_keep_the_tokens_they_name_in_their_proportions(options: dict, expected: dict[int, float]):
    found = chosen(CHANCES, SampleConfig(**{"temperature": 1, **options}))
    assert found == pytest.approx(expected, abs=2e-3)


def test_each_sequence_may_have_options_of_its_own():
    options = [
        SampleConfig(temperature=0.0),
        SampleConfig(temperature=1.0),
        SampleConfig(temperature=0.7, top_k=3),
        SampleConfig(temperature=1.3, top_p=0.6),
        SampleConfig(temperature=1.0, min_p=0.3, top_k=1000),
    ]
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 2, (200, 40)).astype(np.float32))
    uniforms = torch.from_numpy(rng.random(200, np.float32))
    own = [options[row % 5] for row in range(200)]
    sampling = Sampling(*(np.array([getattr(each, name) for each in own]) for name in Sampling._fields))
    together = choose_tokens(logits, uniforms, sampling)
    for first, each in enumerate(options):
        assert torch.equal(together[first::5], choose_tokens(logits[first::5], uniforms[first::5], each))
    greedy = choose_tokens(logits, uniforms, sampling._replace(temperature=np.zeros(200)))
    assert torch.equal(greedy, logits.argmax(dim=-1))


def test_nan_counts_as_minus_infinity_and_a_row_of_it_as_all_equal():
    nan, infinity = float("nan"), float("inf")
    logits = torch.tensor([[nan, 0.0, -infinity], [nan, -infinity, nan], [0.0, infinity, 1.0]])
    for temperature, expected in ((0.0, [1, 0, 1]), (1e-40, [1, 0, 1]), (1.0, [1, 2, 1])):
        options = SampleConfig(temperature=temperature)
        assert choose_tokens(logits, torch.tensor([0.99, 0.99, 0.99]), options).tolist() == expected


def test_the_draw_never_leaves_the_kept_tokens():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    largest = torch.tensor([np.nextafter(np.float32(1), np.float32(0))])
    assert choose_tokens(logits, largest, SampleConfig(temperature=1)).tolist() == [1]
    assert choose_tokens(logits, torch.zeros(1), SampleConfig(temperature=1)).tolist() == [0]


@pytest.mark.parametrize("size", [100, 128, 300])
def test_a_draw_is_the_first_token_up_to_which_the_chances_sum_to_more(size: int):
    generator = torch.Generator().manual_seed(size)
    chances = torch.rand(size, dtype=torch.float64, generator=generator)
    chances[torch.rand(size, generator=generator) < 0.7] = 0
    uniforms = torch.rand(2000, dtype=torch.float64, generator=generator)
    ends = torch.tensor([0, np.nextafter(1, 0)], dtype=torch.float64)
    sums = chances.cumsum(0)
    expected = torch.searchsorted(sums, uniforms * sums[-1], right=True)
    assert inverse_cdf(chances.expand(2000, -1), uniforms).tolist() == expected.tolist()
    assert inverse_cdf(chances.flip(0).expand(2000, -1), uniforms).tolist() != expected.tolist()
    assert inverse_cdf(chances.expand(2, -1), ends).tolist() == chances.nonzero()[[0, -1], 0].tolist()


def decoder(dtype: torch.dtype, **changes: object) -> Decoder:
    model = Decoder(replace(SHAPE, **changes), dtype).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.5, generator=generator)
    return model


def written(model: Decoder, options: SampleConfig, prompts: list[list[int]]) -> np.ndarray:
    chunks = write_tokens(Generator(model, options), prompts, options, context=16, pad=0)
    return np.concatenate(list(chunks), axis=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_greedy_text_is_the_argmax_of_the_whole_pass(dtype: torch.dtype):
    model, options = decoder(dtype), SampleConfig(temperature=0, max_tokens=6)
    ids = [5, 6, 7]
    for token in written(model, options, [ids])[0]:
        with torch.inference_mode():
            logits = model(torch.tensor([ids]))[0, -1]
        assert logits[token] >= logits.max() - (1e-1 if dtype == torch.bfloat16 else 1e-4)
        ids.append(int(token))


def test_a_row_is_written_alike_alone_and_in_a_batch_and_past_the_context():
    model, options = decoder(torch.float64), SampleConfig(temperature=1, max_tokens=40, top_p=0.9)
    both = written(model, options, [[1, 2, 3, 4], [5]])
    assert np.array_equal(both[:1], written(model, options, [[1, 2, 3, 4]]))
    second = replace(options, seed=options.seed + 1)
    assert np.array_equal(both[1:], written(model, second, [[5]]))
    assert not np.array_equal(both[1:], written(model, options, [[5]]))
