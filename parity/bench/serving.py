"""Timings of the server: many requests at once beside the same one after the other, and to the first token.

The server runs as its command does, in a process of its own, and so does the client, which shares the processor with
it. What is compared with is a server with one slot, which decodes a single sequence as fast as `generate` does.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.config import Config
from lmcore.data.stories.generator import stories
from parity.bench.report import Measure
from parity.bench.rounds import Options, environment

__all__ = ["CLIENTS", "serving"]

CLIENTS = 16
"""Clients at once, and slots of the server under load."""
PROMPT_WORDS, TOKENS = 24, 64
"""Length of a prompt, and of what is generated after it."""
VOCABULARY = 4096
"""Of the tokenizer, whatever the model's: the embedded stories have not many more words."""


@dataclass
class Server:
    """A server that runs, and how it is asked."""

    twin: str
    slots: int
    clients: int
    url: tuple[str, int]
    process: subprocess.Popen

    @property
    def name(self) -> str:
        """What it is called in the report."""
        slots, clients = (f"{n} {what}{'s' * (n > 1)}" for n, what in ((self.slots, "slot"), (self.clients, "client")))
        return f"{slots}, {clients}"

    @property
    def rss_bytes(self) -> int | None:
        """Resident memory now; None where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return int(found[1]) * 1024 if found else None

    def load(self, count: int) -> dict[str, Any]:
        """Send so many requests, and return what they took."""
        order = {"host": self.url[0], "port": self.url[1], "bodies": _bodies(count), "clients": self.clients}
        command = [sys.executable, "-m", "parity.bench.load"]
        done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.twin} did not answer: {done.stderr.strip()}")
        return json.loads(done.stdout)


def _bodies(count: int) -> list[dict[str, Any]]:
    """Return requests with prompts from the embedded stories, each with a seed of its own."""
    texts = (" ".join(text.split()[:PROMPT_WORDS]) for text in stories(count))
    return [{"prompt": text, "max_tokens": TOKENS, "temperature": 1.0, "seed": seed} for seed, text in enumerate(texts)]


def serving(config: Config, twins: Sequence[str], options: Options) -> list[Measure]:
    """Time requests to each twin's server: one after the other, and by many clients at once.

    Args:
        config: shape of the model and dtype.
        twins: packages of the twins.
        options: rounds, and requests in a turn.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs = _runs(config, twins, Path(folder), options)
        servers = [
            stack.enter_context(_started(twin, runs[twin], slots, clients, Path(folder)))
            for twin in twins
            for slots, clients in ((1, 1), (CLIENTS, CLIENTS))
        ]
        taken: list[list[dict[str, Any]]] = [[] for _ in servers]
        for number in range(-1, options.rounds):
            for server, answers in zip(servers, taken, strict=True):
                options.say(f"round {number + 1} of {options.rounds}: {server.twin}, {server.name}")
                answer = server.load(CLIENTS if number < 0 else options.requests)
                if number >= 0:  # the first warms up
                    answers.append(answer | {"rss_bytes": server.rss_bytes})
        return [m for kind in _KINDS for s, a in zip(servers, taken, strict=True) for m in [kind(config, s, a)]]


def _throughput(config: Config, server: Server, answers: list[dict[str, Any]]) -> Measure:
    tokens = sum(answer["tokens"] for answer in answers) / len(answers)
    return Measure(
        mode="serve",
        dtype=config.train.precision,
        implementation=server.name,
        what=f"{server.twin}, streamed completions",
        unit="tokens/s",
        amount=tokens,
        seconds=[answer["seconds"] * tokens / answer["tokens"] for answer in answers],
        facts={"rss_bytes": answers[-1]["rss_bytes"]},
    )


def _first_token(percent: int) -> Any:
    def measure(config: Config, server: Server, answers: list[dict[str, Any]]) -> Measure:
        return Measure(
            mode="serve",
            dtype=config.train.precision,
            implementation=server.name,
            what=f"{server.twin}, first token, {'median' if percent == 50 else f'{percent} %'}",
            unit="s",
            amount=1,
            seconds=[answer[f"first_p{percent}"] for answer in answers],
        )

    return measure


_KINDS = (_throughput, _first_token(50), _first_token(95))


def _runs(config: Config, twins: Sequence[str], folder: Path, options: Options) -> dict[str, Path]:
    """Return a run for each twin, with the same weights: those after one small update."""
    from parity.convert.conversion import main as convert

    options.say("making a run to serve")
    model = {name: getattr(config.model, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim")}
    model |= {"vocab_size": config.model.vocab_size, "max_seq_len": config.model.max_seq_len}
    fields = {f"model.{name}": value for name, value in model.items()}
    fields |= {"tokenizer.vocab_size": min(VOCABULARY, config.model.vocab_size), "train.seq_len": 32}
    fields |= {"train.steps": 1, "train.batch_size": 1, "eval.windows": 1, "sample.max_tokens": 1}
    fields |= {"train.precision": config.train.precision, "data.dir": folder / "data"}
    runs = {twin: folder / twin for twin in ("jaxlm", "torchlm")}
    words = [f"--{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "jaxlm.train", f"--run_dir={runs['jaxlm']}", *words]
    subprocess.run(command, check=True, env=environment(folder / "cache"), capture_output=True)
    if "torchlm" in twins:
        convert([str(runs["jaxlm"]), "--to", "torch", "--out", str(runs["torchlm"])])
    return runs


@contextmanager
def _started(twin: str, run: Path, slots: int, clients: int, folder: Path) -> Iterator[Server]:
    """Start a server and wait until it answers; end it at the end of the context."""
    command = [sys.executable, "-m", f"{twin}.serve", str(run), "--port=0", f"--slots={slots}", "--queue=1000"]
    env = environment(folder / f"{twin}-cache")
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                if found := re.search(r" at http://([\d.]+):(\d+)", line):
                    yield Server(twin, slots, clients, (found[1], int(found[2])), process)
                    break
                lines.append(line)
            else:
                raise RuntimeError(f"{twin}.serve ended with {process.wait()}: {''.join(lines)}")
        finally:
            process.kill()
