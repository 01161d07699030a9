"""A small model as a run of torchlm, both twins of it, and their server."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import torchlm.slots
from lmcore import config as configs
from lmcore.config import Config, ModelConfig, SampleConfig, TokenizerConfig
from lmcore.data.tokenizer import train as train_tokenizer
from lmcore.run.saving import Checkpoints
from lmcore.serve.served import Served
from parity.arrays import Arrays
from parity.backends import framework_settings
from parity.convert.moments import zero_moments
from parity.convert.names import table
from parity.convert.states import State, write_state
from parity.serve.command import load, make_server, serve
from parity.serve.lockstep import Lockstep
from parity.serve.verdict import Check

LETTERS = "the quick brown fox jumps over the lazy dog. " * 4
MODEL = ModelConfig(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=24, max_seq_len=48)

Twins = tuple[Served, Lockstep]


def write_run(folder: Path, change: Callable[[Arrays], None] = lambda params: None) -> Path:
    """Write a run of torchlm with random weights, large enough that every context has its own distribution.

    Args:
        folder: of the run, which is made.
        change: changes the weights before they are written.
    """
    folder.mkdir()
    tokenizer = train_tokenizer(TokenizerConfig(kind="chars"), [LETTERS])
    tokenizer.save(folder / "tokenizer.json")
    sample = SampleConfig(prompt="the fox", max_tokens=20, temperature=1.0)
    config = Config(model=replace(MODEL, vocab_size=tokenizer.vocab_size), sample=sample)
    rng = np.random.default_rng(0)
    params = {}
    for row in table(config.model):
        shape = row.shape_in("torch")
        params[row.name("torch")] = 1 + rng.normal(size=shape) / 4 if len(shape) == 1 else rng.normal(size=shape) / 3
    params = {name: value.astype(np.float32) for name, value in params.items()}
    change(params)
    moments = zero_moments(config, "torch", np.dtype("f4"))
    saver = Checkpoints(folder, "torch", keep=1)
    saver.save(3, 1.5, lambda place: write_state(place, State("torch", 3, params, moments), config))
    saver.wait()
    saver.close()
    configs.save(config, folder / "config.yaml")
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run."""
    return write_run(tmp_path_factory.mktemp("serve") / "small")


@pytest.fixture(scope="module")
def twins(run: Path) -> Iterator[Twins]:
    """What is served, and both twins; a test that changes one puts it back."""
    with framework_settings():
        yield load(run, "cpu", "float32")


@pytest.fixture
def perturbed(twins: Twins) -> Iterator[Callable[[str, float], None]]:
    """Multiplies a parameter of the PyTorch twin, as a faulty port would."""
    lockstep = twins[1]
    before = lockstep.slots[1]

    def perturb(name: str, factor: float) -> None:
        port = lockstep.pair.port
        params = dict(lockstep.pair.start)
        params[name] = params[name] * np.float32(factor)
        port.load(params)
        lockstep.slots[1] = torchlm.slots.Slots(port.engine, 1, lockstep.pair.context)

    yield perturb
    lockstep.pair.loaded(lockstep.pair.port)
    lockstep.slots[1] = before


@contextmanager
def serving(twins: Twins, check: Check, hosts: frozenset[str] | None = None) -> Iterator[str]:
    """Serve them in a thread; the address."""
    server = make_server(*twins, check, hosts)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(serve(server, check, listener, "small")))
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it listened"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"


@pytest.fixture(scope="module")
def url(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server without a check."""
    with serving(twins, Check([], tmp_path_factory.mktemp("check"))) as url:
        yield url
