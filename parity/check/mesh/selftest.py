"""Proof that the check across meshes can fail: it catches each fault, and passes without one."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmcore.config import Config
from parity.check.mesh.faults import FAULTS, PARTS, Fault
from parity.check.mesh.ladder import Side, mesh_config, topology
from parity.check.result import Result
from parity.check.selftest.mutants import odd_config

__all__ = ["Caught", "self_test"]


@dataclass(frozen=True)
class Caught:
    """The first line that fails with a fault in one twin."""

    name: str
    framework: str
    fault: Fault | None
    """None for the sound twin, with which no line may fail."""
    line: Result | None
    """None if none failed."""

    @property
    def ok(self) -> bool:
        """Whether the fault was caught, or the sound twin passed."""
        return (self.line is None) is (self.fault is None)


def self_test(faults: Sequence[Fault] = FAULTS) -> Iterator[Caught]:
    """Plant faults, one after the other, in runs of a small model with dropout; first, none.

    Args:
        faults: of one twin or of both.
    """
    text = np.random.default_rng(0).integers(60, size=4000).astype(np.int32)
    for framework in dict.fromkeys(fault.framework for fault in faults):
        own = [fault for fault in faults if fault.framework == framework]
        topologies = {mesh: topology(mesh, PARTS) for mesh in dict.fromkeys(fault.mesh for fault in own)}
        config = mesh_config(_even_config(), list(topologies.values()), "float64")
        with tempfile.TemporaryDirectory() as folder:
            side = Side(framework, Path(folder), text, [config], list(topologies.values()))
            side.run()
            for mesh, one in topologies.items():
                failed = next((line for line in side.compare(config, one) if not line.ok), None)
                yield Caught(f"none, on {mesh}", framework, None, failed)
            for fault in own:
                one = topologies[fault.mesh]
                side.on_mesh(one, fault.key)
                failed = next((line for line in side.compare(config, one) if not line.ok), None)
                yield Caught(fault.name, framework, fault, failed)


def _even_config() -> Config:
    """Return the config of a small model that two devices can share, with dropout."""
    config = odd_config()
    return replace(config, model=replace(config.model, vocab_size=62, n_kv_heads=2, dropout=0.1))
