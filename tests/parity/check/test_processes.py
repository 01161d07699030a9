"""The precisions of a check side by side: what each finds, as many as fit, mistakes and faults told."""

from dataclasses import replace

import pytest

from lmcore.config import DataConfig, TokenizerConfig
from lmcore.errors import UserError
from parity.backends import PAIR
from parity.check.processes import climb_in_processes, climb_one, processes_for
from parity.check.rungs.base import Options
from parity.check.selftest.mutants import odd_config
from parity.check.subject import open_subject


def test_precisions_side_by_side_find_what_they_find_in_turn():
    config = odd_config()
    config = replace(
        config,
        model=replace(config.model, n_layers=1),
        data=DataConfig(stories=20),
        tokenizer=TokenizerConfig(kind="bytes"),
    )
    subject = open_subject(None, replace(config, model=replace(config.model, vocab_size=0)), [])
    asked = [2], PAIR, Options()
    apart = list(climb_in_processes(subject, ("float64", "float32"), *asked))
    for dtype, (devices, found) in zip(("float64", "float32"), apart, strict=True):
        alone = climb_one(subject, dtype, *asked)
        assert devices == alone[0]
        assert [(r.what, r.dtype, r.verdict) for r in found] == [(r.what, r.dtype, r.verdict) for r in alone[1]]
    wide = replace(subject.config.model, ffn_dim=10**12)
    huge = replace(subject, config=replace(subject.config, model=wide))
    with pytest.raises(UserError, match="model: found one that needs at least"):
        list(climb_in_processes(huge, ("float64", "float32"), *asked))
    assert processes_for(huge, ("float64", "float32"), PAIR) == 1
    assert processes_for(subject, ("float64", "float32"), dict.fromkeys(PAIR, "cuda")) == 1
