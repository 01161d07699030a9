"""Which peers there are, and in which environment: mistakes get one line that says what to install."""

import sys
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest

from lmcore.errors import UserError
from parity.bench.modes import IMPLEMENTATIONS
from parity.bench.peers import PEERS, interpreters, peer_of, peer_versions


def test_every_peer_has_its_maker_and_its_modes_in_the_benchmark():
    for peer in PEERS.values():
        assert callable(resolve_name(peer.make))
        for name, modes in peer.implementations.items():
            assert IMPLEMENTATIONS[name] == modes
            assert peer_of(name) is peer
    assert peer_of("torchlm") is None


@pytest.mark.parametrize(
    ("peer", "remedy"),
    [
        ("keras", "pip install '.[peers]'"),
        ("litgpt", "'.[litgpt]'; and add"),
        ("llamacpp", "pip install '.[llamacpp]', which builds"),
    ],
)
def test_a_package_that_is_missing_gets_one_line(peer: str, remedy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PEERS, peer, replace(PEERS[peer], packages=("no-such-package", "numpy")))
    with pytest.raises(UserError) as caught:
        peer_versions(peer, sys.executable)
    start = f"--peers {peer}: found no package no-such-package, expected no-such-package and numpy; "
    assert str(caught.value).startswith(start)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_versions_of_another_environment_name_its_frameworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    other.chmod(0o755)
    monkeypatch.setitem(PEERS, "litgpt", replace(PEERS["litgpt"], packages=("numpy",)))
    assert set(peer_versions("litgpt", sys.executable)) == {"numpy"}
    assert set(peer_versions("litgpt", str(other))) == {"numpy", "torch for litgpt", "jax for litgpt"}
    other.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(UserError, match="which does not run as Python"):
        peer_versions("litgpt", str(other))


def test_a_peer_may_have_an_interpreter_of_its_own():
    assert interpreters([], ["hf"]) == {"hf": sys.executable}
    found = interpreters(["litgpt=" + sys.executable], ["hf", "litgpt"])
    assert found == {"hf": sys.executable, "litgpt": sys.executable}


@pytest.mark.parametrize("word", ["litgpt", "litgpt=", "keras=" + sys.executable, "litgpt=no/python", "litgpt=/tmp"])
def test_an_interpreter_that_is_none_is_refused(word: str):
    with pytest.raises(UserError, match=f"--peer_python: found '{word}', expected"):
        interpreters([word], ["litgpt"])
