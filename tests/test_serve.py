"""A run of each twin is served, and says what `generate` says: alone, beside others, and to the OpenAI client."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import httpx
import openai
import pytest

from tests.tiny import TINY

ROOT = Path(__file__).parent.parent
OWN = {
    "model.dim": 16,
    "model.max_seq_len": 64,
    "data.format": "chat",
    "tokenizer.special_tokens": '["<|im_start|>", "<|im_end|>"]',
    "train.steps": 8,
    "sample.prompt": "Who?",
    "sample.max_tokens": 4,
}


def command(package: str, name: str, *words: str) -> object:
    return import_module(f"{package}.{name}").main(list(words))


class Served:
    """A server in a process of its own."""

    def __init__(self, package: str, run: Path, *words: str):
        self.package, self.run = package, run
        settings = os.environ | {"PYTHONPATH": ".", "TWINLM_API_KEY": "secret", "JAX_PLATFORMS": "cpu"}
        start = [sys.executable, "-m", f"{package}.serve", str(run), "--port", "0", "--device", "cpu", *words]
        self.process = subprocess.Popen(start, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=settings)
        assert self.process.stderr is not None
        self.line = self.process.stderr.readline()
        found = re.fullmatch(r"serving (\S+) at (http://127\.0\.0\.1:\d+); Ctrl-C ends\n", self.line)
        assert found, self.line + self.process.stderr.read()
        self.name, self.url = found.groups()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="secret", max_retries=0)

    def text(self, prompt: str, **options: object) -> str:
        """What the server goes on with."""
        return self.client.completions.create(model=self.name, prompt=prompt, **options).choices[0].text  # type: ignore[call-overload]

    def end(self) -> int:
        """End the server, and return its exit code."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=30)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module", params=["torchlm", pytest.param("jaxlm", marks=pytest.mark.slow)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    turns = [
        [{"role": "user", "content": "Say owl."}, {"role": "assistant", "content": "owl " * count}]
        for count in range(1, 30)
    ]
    file = folder / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    fields = TINY | OWN | {"data.files": file, "data.dir": folder / "data", "run_dir": folder / "owls"}
    del fields["data.stories"]
    assert not command(request.param, "train", *(word for n, v in fields.items() for word in (f"--{n}", str(v))))
    served = Served(request.param, folder / "owls", "--slots", "3", "--queue", "30")
    yield served
    assert served.end() == 0


def generated(served: Served, capsys: pytest.CaptureFixture[str], prompt: str, *words: str) -> str:
    capsys.readouterr()
    assert not command(served.package, "generate", str(served.run), "--device", "cpu", "--prompt", prompt, *words)
    return capsys.readouterr().out.removesuffix("\n")


def test_it_tells_its_address_and_the_runs_name(served: Served):
    assert served.name == "owls"
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok", "model": "owls"}
    assert httpx.get(f"{served.url}/v1/models").status_code == 401, "the key of the environment is needed"
    info = httpx.get(f"{served.url}/info", headers={"Authorization": "Bearer secret"}).json()
    assert (info["package"], info["context"], info["slots"], info["chat"]) == (served.package, 64, 3, True)


def test_greedy_and_seeded_text_is_that_of_generate(served: Served, capsys: pytest.CaptureFixture[str]):
    greedy = generated(served, capsys, "Who?", "--max_tokens", "40", "--temperature", "0")
    assert "Who?" + served.text("Who?", max_tokens=40, temperature=0) == greedy
    sampled = generated(
        served, capsys, "An owl", "--max_tokens", "40", "--temperature", "0.9", "--seed", "7", "--top_k", "50",
        "--top_p", "0.95", "--min_p", "0.001",
    )  # fmt: skip
    options = {"max_tokens": 40, "temperature": 0.9, "seed": 7, "top_p": 0.95}
    assert "An owl" + served.text("An owl", **options, extra_body={"top_k": 50, "min_p": 0.001}) == sampled


def test_text_beside_others_is_the_text_alone(served: Served):
    asked = [(f"Owl {i}", {"max_tokens": 5 + 3 * i, "seed": i, "temperature": 1.0}) for i in range(10)]
    alone = [served.text(prompt, **options) for prompt, options in asked]
    with ThreadPoolExecutor(10) as pool:
        beside = list(pool.map(lambda each: served.text(each[0], **each[1]), asked))
    assert beside == alone
    assert len(set(alone)) == 10


def test_a_chat_is_that_of_generate(served: Served, capsys: pytest.CaptureFixture[str]):
    said = generated(served, capsys, "Say owl.", "--chat", "--max_tokens", "20", "--seed", "3", "--temperature", "0.8")
    found = served.client.chat.completions.create(
        model="owls", messages=[{"role": "user", "content": "Say owl."}], max_tokens=20, seed=3, temperature=0.8
    )
    assert found.choices[0].message.content == said


def test_log_probabilities_of_an_echo_are_those_while_decoding(served: Served):
    create = served.client.completions.create
    first = create(model="owls", prompt="Who?", max_tokens=12, temperature=0, logprobs=3).choices[0].logprobs
    assert first is not None
    ids = list(b"Who?") + [ord(token) if len(token) == 1 else int(token[-2:], 16) for token in first.tokens or []]
    again = create(model="owls", prompt=[ids], max_tokens=0, echo=True, logprobs=3).choices[0].logprobs
    assert again is not None
    assert (again.tokens or [])[4:] == first.tokens
    assert (again.token_logprobs or [])[4:] == pytest.approx(first.token_logprobs, abs=1e-4)


def test_attention_weights_sum_to_one_and_look_back(served: Served):
    asked = {"prompt": "Say owl.", "layer": 0, "head": 1}
    headers = {"Authorization": "Bearer secret"}
    answer = httpx.post(f"{served.url}/attention", json=asked, headers=headers, timeout=60).json()
    assert answer["tokens"] == list("Say owl.")
    for position, row in enumerate(answer["weights"]):
        assert sum(row) == pytest.approx(1, abs=1e-3)
        assert set(row[position + 1 :]) <= {0}


def test_the_documented_examples_work_as_they_are(served: Served, tmp_path: Path):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    here = text.replace("http://127.0.0.1:8000", served.url).replace("quickstart", "owls").replace('"none"', '"secret"')
    curls, python = (re.findall(rf"```{kind}\n(.*?)```", here, re.DOTALL) for kind in ("bash", "python"))
    curl = curls[1].replace("curl ", 'curl -sS --fail -H "Authorization: Bearer secret" ')
    for command, said in ((["bash", "-ec", curl], "data: [DONE]"), ([sys.executable, "-c", python[0]], "")):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 40
        assert said in done.stdout
