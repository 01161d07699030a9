"""Faults of decoding: masks and positions of one token, options, the half of a context that is kept, stop tokens."""

from typing import Any

import numpy as np
import torch

from lmcore.config import SampleConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.tokenizer import Tokenizer
from lmcore.generate.prompting import write_tokens
from lmcore.model.quantize import quantize
from parity.check.selftest.faults import decoding
from torchlm.model import causal_mask


def test_only_a_decoded_token_does_not_see_itself():
    pads = torch.zeros(1, dtype=torch.int64)
    faulty = decoding.blind_to_itself(causal_mask)
    one, several = torch.tensor([3]), torch.arange(4)
    seen = (causal_mask(one, 6, pads) & ~faulty(one, 6, pads)).nonzero()[:, -1]
    assert seen.tolist() == [3]
    assert torch.equal(causal_mask(several, 6, pads), faulty(several, 6, pads)), "a prefill is as it was"


def test_padding_is_seen():
    pads, positions = torch.tensor([2]), torch.arange(4)
    healthy, faulty = (
        make(positions, 4, pads)[..., -1, :].flatten() for make in (causal_mask, decoding.sees_padding(causal_mask))
    )
    assert healthy.tolist() == [False, False, True, True]
    assert faulty.tolist() == [True] * 4


def test_only_a_decoded_token_is_rotated_too_far():
    late = decoding.late_positions(lambda self, positions: positions)
    assert late(None, torch.tensor([[5]])).tolist() == [[6]]
    assert late(None, torch.tensor([[0, 1, 2]])).tolist() == [[0, 1, 2]]


def test_other_options_reach_the_choice():
    def choose(logits: Any, uniforms: Any, options: SampleConfig) -> SampleConfig:
        return options

    faulty = decoding.other_options(lambda options: {"top_k": options.top_k + 1})(choose)
    assert faulty(None, None, SampleConfig(top_k=5, top_p=0.7)) == SampleConfig(top_k=6, top_p=0.7)


class Counting:
    """A generator that decodes the number after the last, and keeps the prompts of its prefills."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> np.ndarray:
        self.prompts.append(tokens[0, pads[0] :].tolist())
        return np.asarray(tokens[:, -1:])

    def has_nan(self, state: np.ndarray) -> bool:
        return False

    def extend(self, state: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decoded = state + 1 + np.arange(uniforms.shape[1])[None]
        return decoded, decoded[:, -1:]


def test_the_newer_half_of_a_full_context_is_forgotten():
    healthy, faulty = Counting(), Counting()
    options = {"options": SampleConfig(max_tokens=12), "context": 8, "pad": 0}
    for generator, write in ((healthy, write_tokens), (faulty, decoding.forgets_newer(write_tokens))):
        list(write(generator, [[1, 2, 3, 4]], **options))
    assert healthy.prompts[0] == faulty.prompts[0] == [1, 2, 3, 4]
    newest = healthy.prompts[1]
    assert newest == list(range(newest[0], newest[0] + len(newest)))
    assert faulty.prompts[1] == [*[1, 2, 3, 4][: len(newest) - 1], newest[-1]]


def test_only_the_end_of_text_stops_a_sequence():
    healthy = tokenizers.train(tokenizers.TokenizerConfig(kind="bytes"), [])
    faulty = Tokenizer.__new__(Tokenizer)
    names = [healthy.inner.id_to_token(5)]
    decoding.one_stop(Tokenizer.__init__)(faulty, healthy.inner, healthy.inner.id_to_token(healthy.eot_id), names)
    assert faulty.stop_ids == {healthy.eot_id}
    assert Tokenizer(healthy.inner, healthy.inner.id_to_token(healthy.eot_id), names).stop_ids == {5, healthy.eot_id}


def test_a_layer_has_one_scale():
    layers = decoding.per_tensor(lambda weight: {"a": quantize(weight)})(np.array([[1.0, 2.0], [127.0, 254.0]]))
    assert layers["a"].scales.tolist() == [2, 2]
    assert layers["a"].values.tolist() == [[1, 1], [64, 127]]
