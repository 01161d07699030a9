"""Inputs of users: mutated configs and command lines (`commands`), and corpora of every kind (`corpora`)."""

from collections.abc import Iterator
from pathlib import Path

from tests.torture import commands, corpora
from tests.torture.outcome import Outcome

__all__ = ["faults"]


def faults(count: int, folder: Path) -> Iterator[Outcome]:
    """Run `count` mutated commands, and prepare a sixth as many corpora; 300 takes all of them."""
    yield from corpora.faults(max(6, count // 6), folder / "corpora")
    yield from commands.faults(count, folder / "commands")
