"""The application: what a comparison streams, what is refused, and the report of the check."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from lmcore.config import SampleConfig
from lmcore.serve.limits import HEADERS
from parity.serve.verdict import Check
from tests.parity.serve.conftest import Twins, serving

ASKED = {"prompt": "the ", "max_tokens": 12, "temperature": 0.8, "seed": 5, "top_k": 9}


LONG = {"prompt": "the ", "max_tokens": 44, "temperature": 0.01, "seed": 1}
DELAY = 0.1


@pytest.fixture
def slow(twins: Twins) -> Iterator[None]:
    """Makes a step of the first twin take a while."""
    slots = twins[1].slots[0]
    step = slots.step

    def delayed(*arguments: Any) -> Any:
        time.sleep(DELAY)
        return step(*arguments)

    with mock.patch.object(slots, "step", delayed):
        yield


def compare(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/compare", json=ASKED | fields, timeout=60)


def events(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    *found, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


def test_the_model_and_both_twins_are_described(url: str):
    found = httpx.get(f"{url}/info").json()
    assert (found["model"], found["precision"], found["chat"], found["context"]) == ("small", "float32", False, 48)
    assert [(twin["framework"], twin["title"], twin["package"]) for twin in found["twins"]] == [
        ("jax", "JAX", "jaxlm"),
        ("torch", "PyTorch", "torchlm"),
    ]
    assert found["sampling"]["prompt"] == "the fox"


def test_a_comparison_streams_what_the_twins_choose(url: str, twins: Twins):
    served, lockstep = twins
    found = events(compare(url))
    options = SampleConfig(max_tokens=12, temperature=0.8, seed=5, top_k=9)
    expected = list(lockstep.compare(served.tokenizer.encode_prompt("the "), options, ()))
    assert len(found) == len(expected)
    for number, (event, (position, summary)) in enumerate(zip(found, expected, strict=True)):
        assert (event["position"], event["same"]) == (number, position.same)
        assert event["summary"]["difference"] == pytest.approx(summary.difference, rel=0.2)
        for choice, real in zip(event["choices"], position.choices, strict=True):
            name = served.texts.text_of(real.token.token)
            assert (choice["token"], choice["text"], choice["ended"]) == (name, real.text, real.ended)
            assert choice["special"] is (real.token.token in served.stop_ids)
            assert choice["logprob"] == pytest.approx(real.token.value, abs=1e-4)
            assert len(choice["top"]) == 5
    assert found[-1]["summary"]["tokens"] == [len(found)] * 2
    assert found[-1]["summary"]["first_difference"] is None


def test_without_a_seed_every_comparison_has_its_own(url: str):
    texts = {"".join(e["choices"][0]["text"] for e in events(compare(url, seed=None, temperature=2))) for _ in "1234"}
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 2}, "n: expected one prompt and one choice"),
        ({"prompt": ["a", "b"]}, "prompt: expected one prompt and one choice"),
        ({"echo": True}, "echo: expected one prompt and one choice"),
        ({"logprobs": 2}, "logprobs: expected one prompt and one choice"),
        ({"stream": False}, "stream: expected one prompt and one choice"),
        ({"max_tokens": 60}, "expected at most 48, the model's context"),
        ({"top_p": 2}, "top_p: found 2, expected"),
        ({"prompt": [9999]}, "prompt: found token 9999"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_cannot_be_compared_is_refused(url: str, fields: dict, words: str):
    response = compare(url, **fields)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_other_paths_methods_types_and_hosts_are_refused(twins: Twins, tmp_path: Path):
    with serving(twins, Check([], tmp_path), frozenset({"127.0.0.1"})) as url:
        assert httpx.get(f"{url}/nothing").json()["error"]["message"] == "/nothing: found no such path"
        assert httpx.get(f"{url}/compare").status_code == 405
        assert httpx.post(f"{url}/compare", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
        assert httpx.post(f"{url}/compare", json={"prompt": "a" * (2 << 20)}).status_code == 413
        assert httpx.get(f"{url}/info").status_code == 200
        response = httpx.get(f"{url}/info", headers={"Host": "evil.example"})
        assert response.status_code == 400
        assert "evil.example" in response.json()["error"]["message"]


def test_one_comparison_runs_at_a_time_and_ends_when_its_client_goes_away(url: str, slow: None):
    with httpx.stream("POST", f"{url}/compare", json=LONG, timeout=60) as first:
        texts = first.iter_text()  # the connection is closed with it
        next(texts)
        second = compare(url)
        assert second.status_code == 429
        assert second.headers["retry-after"] == "1"
    begin = time.monotonic()
    while (after := compare(url)).status_code == 429:
        time.sleep(0.05)
    assert time.monotonic() - begin < 30 * DELAY, "it did not go on to its end"
    assert len(events(after)) > 1


def test_the_end_of_the_server_ends_a_stream_with_the_reason(twins: Twins, tmp_path: Path, slow: None):
    begun = threading.Event()

    def read(url: str) -> str:
        text = ""
        with httpx.stream("POST", f"{url}/compare", json=LONG, timeout=60) as response:
            for part in response.iter_text():
                text += part
                begun.set()
        return text

    with ThreadPoolExecutor(1) as pool:
        with serving(twins, Check([], tmp_path)) as url:
            stream = pool.submit(read, url)
            assert begun.wait(60)
        assert '{"error": {"message": "the server is stopping"' in stream.result().split("\n\n")[-2]


def test_a_comparison_that_is_never_read_blocks_no_other(url: str):
    threads = [threading.Thread(target=lambda: httpx.post(f"{url}/compare", json=ASKED, timeout=60)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compare(url).status_code == 200


def test_the_verdict_and_its_report_are_served(twins: Twins, run: Path, tmp_path: Path):
    check = Check([str(run), "--rungs", "1", "--dtype", "float32"], tmp_path, None, "rung 1")
    with serving(twins, check) as url:
        assert httpx.get(f"{url}/report").status_code == 404
        while (found := httpx.get(f"{url}/verdict").json())["state"] == "checking":
            time.sleep(0.1)
        assert (found["state"], found["scope"]) == ("passed", "rung 1")
        report = httpx.get(f"{url}/report")
    assert report.headers["content-type"] == "text/html; charset=utf-8"
    assert found["verdict"] in report.text
    assert report.headers.get_list("content-security-policy") == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
    ]


def test_every_response_has_the_headers_that_keep_a_browser_safe(url: str):
    for path in ("/", "/app.js", "/parity.js", "/info", "/nothing"):
        response = httpx.get(url + path)
        assert {name.decode(): response.headers[name.decode()] for name, _ in HEADERS} == {
            name.decode(): value.decode() for name, value in HEADERS
        }
