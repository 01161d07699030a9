"""The KV cache: what is written where, and that a prompt prefills it as decoding would."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.torchlm.test_model import GROUPED, close, decoder, draws, tokens
from torchlm.cache import at, write
from torchlm.fast.decoding import for_decoding

BLOCKS: list[dict[str, Any]] = [
    {},
    *({"norm_placement": placement} for placement in ("post", "sandwich", "output")),
    {"parallel_residual": True, "n_layers": 1},
    {"layer_types": ["sliding", "full"], "sliding_window": 2},
    {"layer_types": ["full", "sliding"], "sliding_window": 2},
    {"attention_softcap": 0.5, "qk_norm": True, "tie_embeddings": False},
]


@pytest.mark.parametrize("fields", BLOCKS)
@pytest.mark.parametrize("pads", [[0, 0, 0], [0, 3, 1]])
@pytest.mark.parametrize("fast", [False, True])
def test_prefill_is_decode_with_an_empty_cache(fields: dict[str, Any], pads: list[int], fast: bool):
    model, ids, counts = decoder(replace(GROUPED, **fields)), tokens(), torch.tensor([7, 6, 4])
    model = for_decoding(model) if fast else model
    with torch.inference_mode():
        empty = (model.empty_cache(torch.tensor(pads), 9) for _ in range(2))
        expected, cache = model.decode(ids, next(empty), counts)
        found, filled = model.prefill(ids, next(empty), counts)
        assert close(found, expected)
        assert torch.equal(filled.lengths, cache.lengths)
        for mine, other in zip(filled.keys + filled.values, cache.keys + cache.values, strict=True):
            for row, (pad, count) in enumerate(zip(pads, counts, strict=True)):
                assert close(mine[row, :, pad:count], other[row, :, pad:count])
        following = ids[:, :1]
        assert close(model.decode(following, filled)[0], model.decode(following, cache)[0])


def test_the_last_block_computes_one_position():
    model, ids = decoder(), tokens()
    seen = []
    for block in model.layers:
        block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    with torch.inference_mode():
        model.prefill(ids, model.empty_cache(torch.zeros(3, dtype=torch.long), 9))
    assert seen == [7, 1]


def test_each_sequence_is_written_at_its_own_position():
    cached, new = torch.zeros(2, 3, 5, 4, dtype=torch.float64), draws(2, 2, 3, 4)
    written = write(cached, new, torch.tensor([0, 3]))
    assert written is cached
    assert torch.equal(cached[0, :, :2], new[0].transpose(0, 1))
    assert torch.equal(cached[1, :, 3:], new[1].transpose(0, 1))
    assert not cached[0, :, 2:].any()
    assert not cached[1, :, :3].any()


def test_at_takes_one_position_of_each_sequence():
    x = draws(3, 7, 2, 4)
    assert torch.equal(at(x, torch.tensor([6, 0, 2])), torch.stack([x[0, 6:], x[1, :1], x[2, 2:3]]))
