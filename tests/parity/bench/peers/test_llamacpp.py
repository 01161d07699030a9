"""llama.cpp beside the twins: the same weights, logits and greedy text, by its own code.

Skipped where llama-cpp-python is neither in this environment nor in `.venv-llamacpp`; what it cannot do is refused
without it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmcore.config import Config
from lmcore.errors import UserError
from parity.bench import modes
from parity.bench.peers.llamacpp import check


@pytest.fixture
def even(config: Config) -> Config:
    """Widths that are multiples of 32, and a greedy text that varies."""
    shape: dict[str, Any] = {"dim": 64, "ffn_dim": 96, "tie_embeddings": False, "init": "kaiming", "max_seq_len": 64}
    return replace(config, model=replace(config.model, **shape), sample=replace(config.sample, temperature=0.0))


def test_a_width_that_is_no_multiple_of_32_is_refused_for_q8_0_alone(config: Config, even: Config):
    check(config, "f32")
    check(even, "q8_0")
    with pytest.raises(UserError) as caught:
        check(config, "q8_0")
    assert str(caught.value) == "model.dim: found 20, expected a multiple of 32 to be timed in llama.cpp-q8_0"
    with pytest.raises(UserError, match=r"^model.ffn_dim: found 100, expected a multiple of 32"):
        check(replace(even, model=replace(even.model, ffn_dim=100)), "q8_0")


def test_a_gpu_is_refused(config: Config):
    with pytest.raises(UserError, match=r"train.device: found 'cuda', expected cpu to be timed beside llama.cpp"):
        check(replace(config, train=replace(config.train, device="cuda")), "f32")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_its_logits_are_those_of_a_twin(even: Config, tied: bool, precision: Any, pythons: Callable, turns: Callable):
    config = replace(
        even, model=replace(even.model, tie_embeddings=tied), train=replace(even.train, precision=precision)
    )
    names = ["llama.cpp", "llama.cpp-q8_0"]
    measures = modes.generation(config, ["torchlm", *names], turns(pythons(*names)))
    facts = {m.implementation: m.facts for m in measures if m.what.startswith("decode")}
    assert {f["parameters"] for f in facts.values()} == {facts["torchlm"]["parameters"]}
    assert 0 < facts["llama.cpp"]["difference"] < modes.TOLERANCE[precision]
    assert 1e-3 < facts["llama.cpp-q8_0"]["difference"] < 0.1
    assert facts["llama.cpp-q8_0"]["weight_bytes"] * 32 == facts["torchlm"]["weight_bytes"] * 34 / (
        4 if precision == "float32" else 2
    )
    assert all(min(m.seconds) > 0 for m in measures)


def test_its_greedy_text_is_that_of_transformers(even: Config, pythons: Callable, run_with: Callable):
    chosen = pythons("llama.cpp", "transformers")
    lines = "answer = made.model.generate(made.prompts(prompts), do_sample=False, max_new_tokens=9, pad_token_id=0)"
    expected = run_with("transformers", chosen["transformers"], even, f"{lines}[:, 7:].tolist()")
    lines = """
def write(prompts):
    made.start(prompts)
    return made.extend(9).tolist()
seconds = made.generate(prompts)
answer = [write(prompts), write(prompts[:1]), write(prompts), *seconds]
"""
    both, alone, again, *seconds = run_with("llama.cpp", chosen["llama.cpp"], even, lines)
    assert both == expected
    assert again == expected
    assert alone == expected[:1]
    assert len(set(both[0])) > 2
    assert min(seconds) > 0


def test_it_samples_as_the_config_says(even: Config, pythons: Callable, run_with: Callable):
    def text(**options: Any) -> list[list[int]]:
        config = replace(even, sample=replace(even.sample, **options))
        lines = "made.start(prompts); answer = made.extend(20).tolist()"
        return run_with("llama.cpp", pythons("llama.cpp")["llama.cpp"], config, lines)

    greedy = text()
    for only_the_likeliest in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        assert text(**{"temperature": 2.0} | only_the_likeliest) == greedy, only_the_likeliest
    assert text(temperature=2.0) != greedy


def test_tokens_are_drawn_by_their_probabilities(even: Config, pythons: Callable, run_with: Callable):
    config = replace(even, sample=replace(even.sample, temperature=1.5, top_k=3))
    lines = """
logits = [row for row in made.logits(prompts).tolist()]
drawn = []
for _ in range(2000):
    made.start(prompts)
    drawn.append(made.extend(1)[:, 0].tolist())
answer = [logits, drawn]
"""
    config = replace(config, model=replace(config.model, vocab_size=64))
    logits, drawn = map(np.array, run_with("llama.cpp", pythons("llama.cpp")["llama.cpp"], config, lines))
    for row, tokens in zip(logits, drawn.T, strict=True):
        top = np.argsort(row)[-3:]
        expected = np.exp(row[top] / 1.5) / np.exp(row[top] / 1.5).sum()
        found = [(tokens == token).mean() for token in top]
        np.testing.assert_allclose(found, expected, atol=4.5 * 0.5 / np.sqrt(2000))  # 4.5 standard errors
        assert sum(found) == pytest.approx(1)


def test_a_wrong_weight_is_caught_before_it_is_timed(
    even: Config, pythons: Callable, faulty: Callable, turns: Callable, monkeypatch: pytest.MonkeyPatch
):
    swap = "n['mlp.gate_proj'], n['mlp.up_proj'] = n['mlp.up_proj'], n['mlp.gate_proj']"
    lines = f"from parity.convert.gguf import NAMES as n; {swap}"
    monkeypatch.setattr(modes, "take_turns", lambda *_: pytest.fail("it was timed"))
    for name in ("llama.cpp", "llama.cpp-q8_0"):
        python = faulty(pythons(name)[name], lines)
        with pytest.raises(modes.Differ, match=f"logits after a prompt in float32: {name} and torchlm differ"):
            modes.generation(even, ["torchlm", name], turns({name: python}))
