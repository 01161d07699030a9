"""Every architecture that a config can choose: both twins build it, train it and climb the ladder with it.

Some are checked against models of `transformers` that are neither Llama nor written here.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers

import torchlm.norms
from lmcore.config import Config, LoraConfig, ModelConfig, OptimConfig, TrainConfig
from lmcore.model.lora import is_adapter
from parity.backends import framework_settings, make_pair
from parity.backends.base import Pair, check_config
from parity.check.ladder import climb
from parity.check.rungs.base import Options
from parity.check.selftest.mutants import shaken
from torchlm.model import Decoder

TINY = ModelConfig(vocab_size=11, dim=6, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=5, max_seq_len=9)
KINDS = {
    "position": ("rope", "learned", "sinusoidal", "none"),
    "norm": ("rmsnorm", "layernorm", "none"),
    "norm_placement": ("pre", "post", "sandwich"),
    "mlp": ("swiglu", "geglu", "gelu", "relu"),
}
ALL = [dict(zip(KINDS, chosen, strict=True)) for chosen in product(*KINDS.values())]


def covering(seed: int) -> list[dict[str, str]]:
    """Four variants, drawn so that every kind of every field occurs."""
    rng = np.random.default_rng(seed)
    columns = [rng.permutation(np.resize(rng.permutation(kinds), 4)) for kinds in KINDS.values()]
    return [dict(zip(KINDS, map(str, row), strict=True)) for row in zip(*columns, strict=True)]


DRAWN = covering(seed=3)


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def rough(**fields: Any) -> Pair:
    """Both twins of a variant with weights in which nothing hides."""
    config = Config(model=replace(TINY, **fields), optim=OptimConfig(lr=1e-2, warmup_steps=1, clip=0.7))
    config = check_config(replace(config, train=TrainConfig(steps=20)), "float64")
    tokens = np.random.default_rng(1).integers(TINY.vocab_size, size=4000).astype(np.int32)
    fresh = make_pair(config, tokens)
    return fresh.with_weights(shaken(fresh.start, scale=4.0))


def failures(pair: Pair, rungs: tuple[int, ...]) -> list[str]:
    results = list(climb(pair, rungs, Options(steps=4)))
    assert {r.rung for r in results if r.verdict == "pass"} | {r.rung for r in results if not r.ok} == set(rungs)
    return [f"rung {r.rung}: {r.what}: {r.where}: {r.max_rel}" for r in results if not r.ok]


def test_the_draw_leaves_no_kind_out():
    assert {name: {variant[name] for variant in DRAWN} for name in KINDS} == {n: set(k) for n, k in KINDS.items()}


@pytest.mark.parametrize("number", [0, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_drawn_variants_climb(number: int):
    odd = {"qk_norm": number % 2 == 0, "bias": number > 1, "tie_embeddings": number != 2}
    odd["dropout"] = 0.2 * number  # in the training steps of rungs 5 and 6
    if DRAWN[number]["position"] != "rope":
        odd["head_dim"] = 5
    pair = rough(**DRAWN[number], **odd)
    assert failures(pair, (2, 3, 4, 5, 6)) == []
    before, after = pair.start, pair.port.params()
    assert all(not np.array_equal(before[name], after[name]) for name in before), "every parameter is trained"


@pytest.mark.parametrize("rungs", [(3, 5, 6), pytest.param((2, 4, 7, 8, 9, 10, 11), marks=pytest.mark.slow)])
def test_adapters_climb_and_are_all_that_is_trained(rungs: tuple[int, ...]):
    pair = rough(lora=LoraConfig(rank=2, dropout=0.3, targets=["v_proj", "down_proj"]), dropout=0.1)
    assert failures(pair, rungs) == []
    if 6 in rungs:
        trained = {name for name, value in pair.port.params().items() if not np.array_equal(pair.start[name], value)}
        assert trained == {name for name in pair.start if is_adapter(name)} != set()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ALL, ids=["-".join(variant.values()) for variant in ALL])
def test_every_variant_climbs(variant: dict[str, str]):
    assert failures(rough(**variant), (2, 3, 4, 5, 6)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(DRAWN)))
def test_drawn_variants_train_and_decode_alike(number: int):
    assert failures(rough(**DRAWN[number], qk_norm=True, bias=True, n_layers=2), (7, 8)) == []


def test_a_layernorm_that_keeps_the_mean_is_caught_where_it_acts():
    def faulty(self: Any, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(torch.var(x, dim=-1, keepdim=True, unbiased=False) + self.eps)
        return x * scale * self.weight + self.bias

    with mock.patch.object(torchlm.norms.LayerNorm, "forward", faulty):
        [line] = climb(rough(norm="layernorm", norm_placement="post", position="learned"), (3,))
    assert (line.verdict, line.first) == ("FAIL", "layers.0 attention normed")


def test_what_is_no_llama_leaves_rung_nine_out_and_says_why():
    pair = rough(position="none", mlp="relu")
    [line] = climb(pair, (9,))
    assert line.verdict == "skipped"
    assert line.note.startswith("model.position: found 'none', a Llama has only 'rope'; model.mlp: found 'relu'")


# Other models of transformers as the third implementation.

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (2, 9)))
SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, ffn_dim=28, max_seq_len=9)


def their_logits(config: Any, rename: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights of a random model in our names, and its logits, in float64."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    for name, p in model.named_parameters():
        p.data = torch.randn_like(p) * 0.3 + float("norm" in name or ".ln_" in name)
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    with torch.inference_mode():
        return rename(state), model(TOKENS).logits


def apart(model: ModelConfig, weights: dict[str, torch.Tensor], logits: torch.Tensor, strict: bool = True) -> float:
    """Our logits' largest difference from theirs, relative to the largest of theirs."""
    decoder = Decoder(model, torch.float64)
    decoder.load_state_dict(weights, strict=strict)
    with torch.inference_mode():
        return float((decoder(TOKENS) - logits).abs().max() / logits.abs().max())


def from_gpt2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2 keeps its kernels input × output, and queries, keys and values in one."""
    names = {"wte": "embed_tokens", "wpe": "embed_positions", "ln_f": "norm", "h": "layers"}
    names |= {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn": "self_attn", "c_fc": "up_proj"}
    ours: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        parts = name.removeprefix("transformer.").split(".")
        output = "o_proj" if "attn" in parts else "down_proj"
        path = ".".join(output if part == "c_proj" else names.get(part, part) for part in parts)
        turned = value.T if value.ndim == 2 and "h" in parts else value
        if "c_attn" in path:
            for letter, third in zip("qkv", turned.chunk(3), strict=True):
                ours[path.replace("c_attn", f"{letter}_proj")] = third
        else:
            ours[path] = turned
    return ours


def test_learned_positions_layernorm_gelu_and_biases_make_gpt2():
    gpt2 = transformers.GPT2Config(
        vocab_size=61, n_positions=9, n_embd=20, n_layer=2, n_head=5, n_inner=28, activation_function="gelu"
    )
    weights, logits = their_logits(gpt2, from_gpt2)
    model = replace(SHAPE, position="learned", norm="layernorm", mlp="gelu", bias=True)
    assert apart(model, weights, logits) < 1e-12
    for wrong in ({"mlp": "relu"}, {"position": "none"}, {"norm": "rmsnorm"}, {"bias": False}, {"norm_eps": 1e-3}):
        assert apart(replace(model, **wrong), weights, logits, strict=False) > 1e-4


def test_normed_queries_and_keys_make_qwen3():
    qwen3 = transformers.Qwen3Config(
        vocab_size=61, hidden_size=20, num_hidden_layers=2, num_attention_heads=5, num_key_value_heads=1, head_dim=6
    )
    qwen3.update({"intermediate_size": 28, "max_position_embeddings": 9, "tie_word_embeddings": True})
    weights, logits = their_logits(qwen3, lambda state: {n.removeprefix("model."): v for n, v in state.items()})
    theta, eps = qwen3.rope_parameters["rope_theta"], qwen3.rms_norm_eps
    model = replace(SHAPE, n_kv_heads=1, head_dim=6, qk_norm=True, rope_theta=theta, norm_eps=eps)
    assert apart(model, weights, logits) < 1e-5  # its norms, softmax and angles are float32
    for wrong in ({"qk_norm": False}, {"mlp": "geglu"}, {"rope_theta": theta * 2}):
        assert apart(replace(model, **wrong), weights, logits, strict=False) > 1e-3
