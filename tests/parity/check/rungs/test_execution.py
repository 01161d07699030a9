"""Rung 11: ways of computing in a small model of the same kind; the one that differs is named."""

from collections.abc import Callable
from itertools import islice
from unittest import mock

import lmcore.run.engine
import torchlm.fast.parallel
from lmcore.config import Config, ModelConfig
from parity.backends.base import Pair
from parity.check.rungs.base import Options
from parity.check.rungs.execution import LENGTH, LONG, execution, small_config
from parity.check.selftest.faults.run import misses_last_window, part_lost


def test_a_small_model_is_of_the_same_kind_and_its_neighbouring_axes_differ():
    large = ModelConfig(vocab_size=4096, dim=512, n_heads=8, n_kv_heads=2, norm="layernorm", max_seq_len=2048)
    small = small_config(Config(model=large)).model
    assert (small.norm, small.n_kv_heads, small.max_seq_len) == ("layernorm", 2, LONG)
    sizes = small.vocab_size, small.dim, small.n_heads, small.head_dim, small.ffn_dim, LENGTH
    assert len(set(sizes)) == len(sizes)
    short = ModelConfig(dim=32, n_heads=4, max_seq_len=8)
    assert small_config(Config(model=short)).model.max_seq_len == LENGTH, "no shorter than the sequences"
    assert small_config(Config(model=short)).model.n_kv_heads == 4


def test_rounding_would_hide_what_is_compared(tiny_pair: Callable[..., Pair]):
    (line,) = execution(tiny_pair(train={"precision": "float32"}), Options())
    assert (line.verdict, line.note) == ("skipped", "compared in float64, which separates logic from rounding")


def test_the_way_that_differs_is_named(tiny_pair: Callable[..., Pair]):
    fault = part_lost(torchlm.fast.parallel._with_gradients)
    with mock.patch.object(torchlm.fast.parallel, "_with_gradients", fault):
        lines = list(islice(execution(tiny_pair(), Options()), 5))
    assert {line.what: line.ok for line in lines} == {
        "torch: remat, scan_layers, 2 devices, no accumulation": False,
        "torch: remat": True,
        "torch: scan_layers": True,
        "torch: cpu_devices 2": False,
        "torch: grad_accum 1": True,
    }


def test_an_evaluation_that_ends_early_is_found(tiny_pair: Callable[..., Pair]):
    fault = misses_last_window(lmcore.run.engine.eval_windows)
    with mock.patch.object(lmcore.run.engine, "eval_windows", fault):
        lines = {line.what: line.verdict for line in execution(tiny_pair(), Options())}
    assert [what for what, verdict in lines.items() if verdict == "FAIL"] == ["evaluation windows, each token once"]
    assert lines["evaluation with dropout 0.3 as without"] == "pass"
    assert lines[f"gradients at {LONG} tokens"] == "skipped", "the model takes 24"
