"""Facts about the model, and attention weights, as the page asks for them."""

import httpx
import numpy as np
import pytest

from lmcore.serve.app import Settings
from lmcore.serve.inspection import MAX_ATTENTION
from tests.lmcore.serve.toy import CONTEXT, HEADS, LAYERS, Running, Toy, make_served, running


def test_the_facts_are_those_of_the_model(server: Running):
    assert httpx.get(f"{server.url}/info").json() == {
        "model": "toy",
        "package": "jaxlm",
        "parameters": 1234,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "vocab_size": 259,
        "context": CONTEXT,
        "chat": True,
        "device": "cpu",
        "slots": 3,
        "max_attention": CONTEXT,
        "api_key": False,
        "sampling": {
            "prompt": "Once upon a time",
            "max_tokens": 256,
            "temperature": 0.7,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "seed": 0,
        },
    }


def test_the_facts_say_whether_a_key_is_needed():
    with running(settings=Settings(api_key="k")) as server:
        headers = {"Authorization": "Bearer k"}
        assert httpx.get(f"{server.url}/info", headers=headers).json()["api_key"] is True


@pytest.mark.parametrize("prompt", ["aé", [97, 0xC3, 0xA9]])
def test_attention_is_of_the_layer_and_head(server: Running, prompt: object):
    asked = {"prompt": prompt, "layer": 1, "head": 1}
    answer = httpx.post(f"{server.url}/attention", json=asked).json()
    assert (answer["layer"], answer["head"]) == (1, 1)
    assert answer["tokens"] == ["a", r"bytes:\xc3", r"bytes:\xa9"]
    expected = Toy().attention(np.zeros(3, np.int32), 1)[1]
    np.testing.assert_allclose(answer["weights"], expected, atol=6e-5)
    assert answer["weights"][0] == [1, 0, 0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "layer": LAYERS}, "layer"),
        ({"prompt": "a", "head": HEADS}, "head"),
        ({"prompt": "a" * (CONTEXT + 1)}, "prompt"),
        ({"prompt": [259]}, "prompt"),
    ],
)
def test_what_the_model_lacks_is_refused(server: Running, body: dict, param: str):
    response = httpx.post(f"{server.url}/attention", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_long_text_is_refused_though_the_context_has_room():
    with running(make_served(max_seq_len=1000), Toy(size=1000)) as server:
        fits = httpx.post(f"{server.url}/attention", json={"prompt": "a" * MAX_ATTENTION})
        assert len(fits.json()["weights"]) == MAX_ATTENTION
        error = httpx.post(f"{server.url}/attention", json={"prompt": "a" * (MAX_ATTENTION + 1)}).json()["error"]
        assert error["message"] == "prompt: found 257 tokens, expected at most 256"


def test_nan_is_an_error_and_not_json(monkeypatch: pytest.MonkeyPatch):
    with running() as server:
        monkeypatch.setattr(server.slots, "attention", lambda tokens, layer: np.full((2, 1, 1), np.nan))
        response = httpx.post(f"{server.url}/attention", json={"prompt": "a"})
        assert (response.status_code, "NaN" in response.text) == (500, True)
