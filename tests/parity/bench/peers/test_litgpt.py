"""LitGPT's Llama beside the twins: the same weights, loss, update and greedy text, by its own code.

Skipped where LitGPT is neither in this environment nor in `.venv-litgpt`, which its pins ask for.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmcore.config import Config
from lmcore.errors import UserError
from parity.bench import modes
from parity.bench.peers.base import initial_weights
from parity.bench.peers.litgpt import rename


def test_queries_keys_and_values_are_one_matrix(config: Config):
    weights = initial_weights(config)
    renamed = rename(weights, 2)
    joined = renamed["transformer.h.1.attn.qkv.weight"]
    assert joined.shape == (20 + 10 + 10, 20)
    np.testing.assert_array_equal(joined[20:30], weights["model.layers.1.self_attn.k_proj.weight"])
    assert len(renamed) == len(weights) - 2 * 2


@pytest.mark.parametrize("tied", [True, False])
def test_its_first_updates_are_those_of_a_twin(config: Config, tied: bool, pythons: Callable, trained: Callable):
    optim = replace(config.optim, weight_decay=0.25)
    config = replace(config, model=replace(config.model, tie_embeddings=tied), optim=optim)
    found = trained(config, ["torchlm", "litgpt"], pythons("litgpt"))
    assert found["litgpt"][0] == found["torchlm"][0], "parameters"
    np.testing.assert_allclose(found["litgpt"][1], found["torchlm"][1], rtol=1e-6)
    assert len(set(found["litgpt"][1])) == 3


def test_its_greedy_text_is_that_of_transformers(config: Config, pythons: Callable, run_with: Callable):
    model = replace(config.model, tie_embeddings=False, init="kaiming", max_seq_len=64)  # else it repeats a token
    config = replace(config, model=model, sample=replace(config.sample, temperature=0.0))
    chosen = pythons("litgpt", "transformers")
    lines = "answer = made.model.generate(made.prompts(prompts), do_sample=False, max_new_tokens=9, pad_token_id=0)"
    expected = run_with("transformers", chosen["transformers"], config, f"{lines}[:, 7:].tolist()")
    lines = "seconds = made.generate(prompts); both = [[t.item() for t in step] for step in made.write(prompts, 9)]"
    lines += "\nalone = made.generate(prompts[:1]); one = [t.item() for t in made.write(prompts[:1], 9)]"
    lines += "\nanswer = [list(zip(*both)), one, *seconds, *alone]"
    both, one, *seconds = run_with("litgpt", chosen["litgpt"], config, lines)
    assert both == expected
    assert one == expected[0]
    assert len(set(one)) > 2
    assert min(seconds) > 0


def test_a_wrong_weight_is_caught_before_it_is_timed(
    config: Config, pythons: Callable, faulty: Callable, turns: Callable, monkeypatch: pytest.MonkeyPatch
):
    swap = "n['mlp.gate_proj'], n['mlp.up_proj'] = n['mlp.up_proj'], n['mlp.gate_proj']"
    python = faulty(pythons("litgpt")["litgpt"], f"from parity.bench.peers.litgpt import BLOCK as n; {swap}")
    monkeypatch.setattr(modes, "take_turns", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(modes.Differ, match="losses of the first updates in float32: litgpt and torchlm differ"):
        modes.training(config, ["torchlm", "litgpt"], turns({"litgpt": python}))


def test_sampling_that_it_does_not_have_is_refused(config: Config, pythons: Callable, turns: Callable):
    sample: Any = replace(config.sample, temperature=1.0, min_p=0.1)
    with pytest.raises(UserError, match=r"sample.min_p: found 0.1, expected 0.0 to be timed beside LitGPT"):
        modes.generation(replace(config, sample=sample), ["litgpt"], turns(pythons("litgpt")))
