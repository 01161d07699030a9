"""Other packages' Llamas in a benchmark: which there are, what each needs, and in which environment it is found.

A peer is a file here, with a function `make(name, config, mode)`, and a row of `PEERS`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcore.errors import UserError

__all__ = ["PEERS", "Peer", "interpreters", "peer_of", "peer_versions"]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package with a Llama of its own."""

    make: str
    """Module and function that return an implementation."""
    implementations: Mapping[str, tuple[str, ...]]
    """Name -> modes that it takes part in."""
    packages: tuple[str, ...]
    """What it needs beside the twins' packages."""
    remedy: str
    """How a user gets them."""


PEERS = {
    "hf": Peer(
        make="parity.bench.peers.hf:make",
        implementations={"transformers": ("train", "generate"), "transformers-compiled": ("train",)},
        packages=("transformers",),
        remedy="pip install '.[peers]'",
    ),
    "keras": Peer(
        make="parity.bench.peers.keras:make",
        implementations={"keras-jax": ("train", "generate"), "keras-torch": ("train", "generate")},
        packages=("keras-hub", "keras"),
        remedy="pip install '.[peers]'",
    ),
    "litgpt": Peer(
        make="parity.bench.peers.litgpt:make",
        implementations={"litgpt": ("train", "generate"), "litgpt-compiled": ("train",)},
        packages=("litgpt", "lightning"),
        remedy="its pins exclude this project's, so give it an environment of its own: python -m venv .venv-litgpt; "
        ".venv-litgpt/bin/pip install '.[litgpt]'; and add --peer_python litgpt=.venv-litgpt/bin/python",
    ),
    "llamacpp": Peer(
        make="parity.bench.peers.llamacpp:make",
        implementations={"llama.cpp": ("generate",), "llama.cpp-q8_0": ("generate",)},
        packages=("llama-cpp-python", "gguf"),
        remedy="pip install '.[llamacpp]', which builds llama.cpp for this processor in about ten minutes",
    ),
}
"""Name on the command line -> peer."""

PROBE = """
import importlib.metadata, json, sys

found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def peer_of(implementation: str) -> Peer | None:
    """Return the peer that has an implementation; None for those of this project."""
    return next((peer for peer in PEERS.values() if implementation in peer.implementations), None)


def interpreters(words: Sequence[str], peers: Sequence[str]) -> dict[str, str]:
    """Return each peer's Python interpreter: that of this process, or another that a word `NAME=PATH` gives.

    Args:
        words: of `--peer_python`.
        peers: names in `PEERS` that are to be timed.

    Raises:
        UserError: a word is none of these, or names no program.
    """
    found = dict.fromkeys(peers, sys.executable)
    for word in words:
        name, _, path = word.partition("=")
        if name not in peers or not path:
            raise UserError(f"--peer_python: found {word!r}, expected NAME=PATH with a NAME among --peers")
        if not os.access(path, os.X_OK) or Path(path).is_dir():
            raise UserError(f"--peer_python: found {word!r}, expected a Python interpreter, such as .venv/bin/python")
        found[name] = str(Path(path).absolute())
    return found


def peer_versions(name: str, python: str) -> dict[str, str]:
    """Return the versions of a peer's packages in the environment of an interpreter.

    Raises:
        UserError: one of them is not installed there.
    """
    peer = PEERS[name]
    elsewhere = python != sys.executable
    frameworks = ("torch", "jax") if elsewhere else ()  # which may be other releases than here
    done = subprocess.run([python, "-c", PROBE, *peer.packages, *frameworks], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--peer_python: found {name}={python}, which does not run as Python; expected an interpreter")
    versions = json.loads(done.stdout)
    if missing := [package for package in peer.packages if package not in versions]:
        where = f" in the environment of {python}" if elsewhere else ""
        expected = " and ".join(peer.packages)
        raise UserError(f"--peers {name}: found no package {missing[0]}{where}, expected {expected}; {peer.remedy}")
    return {f"{package} for {name}" if package in frameworks else package: versions[package] for package in versions}
