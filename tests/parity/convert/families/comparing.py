"""A model of any family, made by transformers: the same logits, gradients and text in the twins, the same bits back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from lmcore.config import SampleConfig, TrainConfig
from parity.backends import make_pair
from parity.backends.base import generate
from parity.check.rungs.transformers import our_tables, without_islands
from parity.convert.families import FAMILIES
from parity.convert.families.tensors import from_family
from parity.convert.huggingface import read_folder, write_folder
from parity.convert.names import convert_names, torch_to_numpy
from parity.convert.tensors import Tensors

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
SPECIAL = {"vocab_size": 61, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
LENGTH, TOKENS = 17, 60


def made(model_type: str, fields: dict[str, Any]) -> Any:
    """Return a model of transformers in float64, with weights so large that every part shows."""
    config = transformers.AutoConfig.for_model(model_type, **SPECIAL | fields)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=torch.float64) + (parameter.ndim == 1) * 0.5)
    return model.eval()


def assert_same_model(model_type: str, fields: dict[str, Any], folder: Path) -> None:
    """Compare a small random model of transformers with both twins, and its export with itself.

    Args:
        model_type: of the family.
        fields: of its config.
        folder: to write into.
    """
    theirs = made(model_type, fields)
    theirs.save_pretrained(folder / "theirs")
    found = read_folder(folder / "theirs")
    config = replace(found.config, train=TrainConfig(precision="float64", batch_size=2, seq_len=LENGTH, device="cpu"))
    rows = np.random.default_rng(4).integers(61, size=(2, LENGTH)).astype(np.int32)
    tokens, targets, prompts = (torch.from_numpy(part).long() for part in (rows[:, :-1], rows[:, 1:], rows[:, :4]))
    with our_tables(theirs, config.model), without_islands(theirs):
        logits = theirs(tokens).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        text = theirs.generate(prompts, max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert logits.dtype == torch.float64
    stored = {"lm_head.weight": "embed_out.weight"} if model_type == "gpt_neox" else {}  # otherwise named in files
    gradients = Tensors.of({stored.get(n, n): torch_to_numpy(p.grad) for n, p in theirs.named_parameters()})
    gradients = from_family(gradients, FAMILIES[model_type], config.model)
    expected = convert_names(dict(gradients), config.model, "hf", "jax")
    weights = convert_names(dict(found.weights), config.model, "hf", "jax")
    for twin in (pair := make_pair(config, rows.ravel()).with_weights(weights)):
        label = twin.backend.framework
        assert apart(pair.loaded(twin).logits(rows[:, :-1]), logits.detach()) < 1e-11, label
        for name, gradient in pair.loaded(twin).step(rows, 0.0).grads.items():
            if np.abs(expected[name]).max() > 1e-15:  # that of a key's bias without RoPE is zero
                assert apart(gradient, expected[name]) < 1e-11, (label, name)
        greedy = SampleConfig(temperature=0.0, max_tokens=TOKENS)
        written = generate(pair.loaded(twin), prompts.tolist(), greedy, config.model.max_seq_len)
        np.testing.assert_array_equal(written, text[:, prompts.shape[1] :], label)
    (folder / "ours").mkdir()
    write_folder(folder / "ours", found.config, found.weights, None, found.companions)
    before, after = (load_file(folder / name / "model.safetensors") for name in ("theirs", "ours"))
    assert {n: a.tobytes() for n, a in before.items()} == {n: a.tobytes() for n, a in after.items()}
    assert json.loads((folder / "ours" / "config.json").read_text())["model_type"] == model_type
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "ours", attn_implementation="eager")
    with torch.inference_mode(), our_tables(again, config.model), without_islands(again):
        assert torch.equal(again(tokens).logits, logits)


def apart(one: Any, other: Any) -> float:
    """Return the largest difference, relative to the largest value."""
    one, other = np.asarray(one), np.asarray(other)
    return float(np.abs(one - other).max() / np.abs(other).max())
