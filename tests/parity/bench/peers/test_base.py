"""What the peers share: the weights of the twins under Hugging Face's names, AdamW, and which models they have."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lmcore.config import Config
from lmcore.errors import UserError
from parity.bench.peers.base import TorchPeer, adamw, check_llama, initial_weights
from parity.convert.names import convert_names, torch_to_numpy
from torchlm.engine import initial_params
from torchlm.model import Decoder


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_a_twin(config: Config, tied: bool):
    config = replace(config, model=replace(config.model, tie_embeddings=tied))
    ours = initial_params(Decoder(config.model, torch.float32), config.train.seed)
    arrays = {name: torch_to_numpy(p) for name, p in ours.items()}
    expected = convert_names(arrays, config.model, "torch", "hf")
    found = initial_weights(config)
    assert list(found) == list(expected)
    assert ("lm_head.weight" in found) is not tied
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_model_that_is_no_llama_is_refused(config: Config):
    config = replace(config, model=replace(config.model, norm="layernorm"))
    with pytest.raises(UserError, match=r"model\.norm: found 'layernorm', a Llama has only 'rmsnorm'"):
        initial_weights(config)


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("model", "bias", True, "model.bias: found True, expected False to be timed beside LitGPT"),
        ("model", "head_dim", 12, "model.head_dim: found 12, expected 10 to be timed beside LitGPT"),
        ("train", "remat", True, "train.remat: found True, expected False to be timed beside LitGPT"),
    ],
)
def test_what_the_peers_do_not_have_is_refused(config: Config, group: str, field: str, value: Any, message: str):
    check_llama("LitGPT", config)
    with pytest.raises(UserError) as caught:
        check_llama("LitGPT", replace(config, **{group: replace(getattr(config, group), **{field: value})}))
    assert str(caught.value) == message


def test_only_matrices_decay(config: Config):
    config = replace(config, optim=replace(config.optim, weight_decay=0.25))
    decayed, kept = adamw(config, Decoder(config.model, torch.float32), fused=True).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.25, 0.0)
    assert len(decayed["params"]) == 2 * 7 + 1, "seven projections in each of two layers, and the embedding"
    assert {p.ndim for p in kept["params"]} == {1}
    assert decayed["fused"]


class Sum(TorchPeer):
    """Its loss is the sum of its only weight times the inputs."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1)
        self.clipped: list[float] = []

    def backward(self, inputs: Any, targets: Any, parts: int) -> Any:
        loss = (self.model.weight * inputs.sum() + targets.sum()) / parts
        loss.backward()
        return loss.squeeze()

    def clip(self) -> None:
        assert self.model.weight.grad is not None
        self.clipped.append(self.model.weight.grad.item())

    def forward(self, tokens: Any) -> Any:
        return tokens[..., None].expand(-1, -1, 100) * 2


def test_an_update_adds_the_micro_batches_and_clips_once(config: Config):
    peer = Sum(config)  # two micro-batches
    batch = np.arange(6 * 3, dtype=np.int32).reshape(6, 3)
    assert peer.step(batch, 0.5).item() == batch[:, 1:].sum() / 2
    assert peer.clipped == [batch[:, :-1].sum() / 2]
    assert peer.model.weight.item() == -0.5 * batch[:, :-1].sum() / 2
    peer.step(batch, 0.5)
    assert peer.clipped[1] == peer.clipped[0], "the gradients of the first update are gone"


def test_logits_are_those_after_the_last_token(config: Config):
    found = Sum(config).logits(np.array([[3, 4], [5, 6]], np.int32))
    np.testing.assert_array_equal(found, np.repeat([[8.0], [12.0]], 64, axis=1))
