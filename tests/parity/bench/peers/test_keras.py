"""KerasHub's Llama beside the twins, on both backends: the same weights, loss, update and greedy text, by its own code.

Skipped where KerasHub is neither in this environment nor in `.venv-keras`.
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
from parity.bench.peers.keras import rename


def test_weights_are_inputs_by_outputs_under_its_paths(config: Config):
    weights = initial_weights(config)
    renamed = rename(weights, 2)
    assert len(renamed) == len(weights)
    query = renamed["transformer_layer_1/self_attention/query/kernel"].reshape(20, 2, 10)
    np.testing.assert_array_equal(query[:, 1, 3], weights["model.layers.1.self_attn.q_proj.weight"][13])
    output = renamed["transformer_layer_0/self_attention/attention_output/kernel"].reshape(2, 10, 20)
    np.testing.assert_array_equal(output[1, 3], weights["model.layers.0.self_attn.o_proj.weight"][:, 13])
    np.testing.assert_array_equal(renamed["token_embedding/embeddings"], weights["model.embed_tokens.weight"])


@pytest.mark.parametrize(("backend", "tied"), [("jax", True), ("torch", False)])
def test_its_first_updates_are_those_of_a_twin(
    config: Config, backend: str, tied: bool, pythons: Callable, trained: Callable
):
    optim = replace(config.optim, weight_decay=0.25)
    config = replace(config, model=replace(config.model, tie_embeddings=tied), optim=optim)
    name = f"keras-{backend}"
    found = trained(config, ["torchlm", name], pythons(name))
    assert found[name][0] == found["torchlm"][0], "parameters"
    np.testing.assert_allclose(found[name][1], found["torchlm"][1], rtol=1e-5)
    assert len(set(found[name][1])) == 3


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_its_greedy_text_is_that_of_transformers(config: Config, backend: str, pythons: Callable, run_with: Callable):
    model = replace(config.model, tie_embeddings=False, init="kaiming", max_seq_len=64)  # else it repeats a token
    config = replace(config, model=model, sample=replace(config.sample, temperature=0.0))
    name = f"keras-{backend}"
    chosen = pythons(name, "transformers")
    lines = "answer = made.model.generate(made.prompts(prompts), do_sample=False, max_new_tokens=9, pad_token_id=0)"
    expected = run_with("transformers", chosen["transformers"], config, f"{lines}.tolist()")
    lines = "seconds = made.generate(prompts); answer = [made.write(prompts, 9).tolist(), *seconds]"
    text, *seconds = run_with(name, chosen[name], config, lines)
    assert text == expected
    assert len(set(text[0])) > 9
    assert min(seconds) > 0


def test_a_wrong_weight_is_caught_before_it_is_timed(
    config: Config, pythons: Callable, faulty: Callable, turns: Callable, monkeypatch: pytest.MonkeyPatch
):
    swap = "n['mlp.gate_proj'], n['mlp.up_proj'] = n['mlp.up_proj'], n['mlp.gate_proj']"
    python = faulty(pythons("keras-jax")["keras-jax"], f"from parity.bench.peers.keras import NAMES as n; {swap}")
    monkeypatch.setattr(modes, "take_turns", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(modes.Differ, match="losses of the first updates in float32: keras-jax and torchlm differ"):
        modes.training(config, ["torchlm", "keras-jax"], turns({"keras-jax": python}))


def test_sampling_that_it_does_not_have_is_refused(config: Config, pythons: Callable, turns: Callable):
    sample: Any = replace(config.sample, temperature=1.0, top_p=0.9)
    with pytest.raises(UserError, match=r"sample.top_p: found 0.9, expected 1.0 to be timed beside KerasHub"):
        modes.generation(replace(config, sample=sample), ["keras-torch"], turns(pythons("keras-torch")))
