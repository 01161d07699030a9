"""Trials change what they say, together where several do, and are ordered so that each kind comes in its turn."""

import torch
from torch import nn

from parity.mapping import resolve
from parity.ports.causes.operations import recorded, setting
from parity.ports.causes.trial import Trial, change, groups, label, over, ranked

KEYS = [(f"blocks.{i}.norm{n}", "layer_norm", 0) for i in (0, 1) for n in (1, 2)]


def test_operations_are_changed_all_at_once_by_pattern_and_alone():
    found = groups([*KEYS, ("final", "layer_norm", 0)])
    assert [(words, rank) for words, _, rank in found] == [
        ("all 5 places, from blocks.0.norm1 to final", 0),
        ("blocks.*.norm1", 1),
        ("blocks.*.norm2", 1),
        ("blocks.0.norm1", 2),
        ("blocks.0.norm2", 2),
        ("blocks.1.norm1", 2),
        ("blocks.1.norm2", 2),
        ("final", 2),
    ]
    assert groups(KEYS[:1]) == [("blocks.0.norm1", KEYS[:1], 0)]


def test_several_calls_in_one_place_are_numbered():
    words = [words for words, *_ in groups([("", "gelu", 0), ("", "gelu", 1)])]
    assert words == ["the module itself", "the module itself (gelu, call 1)", "the module itself (gelu, call 2)"]
    assert label([("a", "relu", 0), ("b", "relu", 0)]) == "a and b"


def test_changes_of_operations_and_of_the_mapping_are_made_together():
    module = nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2))
    x = torch.tensor([[0.0, 0.1]])
    rows = resolve(
        {"a": "0.weight", "b": "1.weight", "c": "0.bias", "d": "1.bias"},
        dict.fromkeys("abcd", (2,)),
        dict.fromkeys(("0.weight", "1.weight", "0.bias", "1.bias"), (2,)),
    )
    norms = recorded(module, lambda: module(x)).named("layer_norm")
    whole, *_ = over("eps", norms, "eps", setting("layer_norm", eps=1.0))
    without = Trial(what="", kind="", places=frozenset(), relayout=lambda rows: rows[1:])
    context, mapping = change([whole, without], module, rows)
    assert mapping == rows[1:]
    expected = nn.Sequential(nn.LayerNorm(2, eps=1.0), nn.LayerNorm(2, eps=1.0))(x)
    with context:
        assert torch.equal(module(x), expected)
    assert not torch.allclose(module(x), expected)


def test_trials_of_all_places_come_first_and_each_kind_in_its_turn():
    def trial(kind: str, rank: int) -> Trial:
        return Trial(what=kind, kind=kind, places=frozenset(), rank=rank)

    found = ranked([trial("a", 2), trial("a", 2), trial("a", 0), trial("b", 2), trial("b", 0)])
    assert [(t.rank, t.kind) for t in found] == [(0, "a"), (0, "b"), (2, "a"), (2, "b"), (2, "a")]
