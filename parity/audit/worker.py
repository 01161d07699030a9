"""Lower and compile a config's programs for a platform that is not here, and check them, in a process of its own.

The number of a process's CPU devices is fixed once jax has started, and libtpu keeps the process that loads it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lmcore.config import Config, from_dict, to_dict
from lmcore.run.mesh import AXES, MeshShape
from parity.audit.checks import Check, Program, judge
from parity.plan.worker import ask_worker, on_virtual_devices

__all__ = ["audit_jax"]


def audit_jax(config: Config, mesh: MeshShape, platform: str, topology: str | None = None) -> list[Check]:
    """Return the checks of jaxlm's train and decode steps.

    Args:
        config: from `parity.audit.programs.audited`.
        mesh: the devices.
        platform: `cuda` or `tpu`.
        topology: of TPUs to compile for, such as `v5e:2x2`; None stops at what jax lowers.
    """
    asked = {"config": to_dict(on_virtual_devices(config, mesh)), "platform": platform, "topology": topology}
    return [Check(**each) for each in ask_worker("parity.audit.worker", asked, topology)]


def _checked(config: Config, platform: str, topology: str | None) -> Iterator[Check]:
    from jaxlm.device import set_up_jax
    from parity.audit.compiled import read_text
    from parity.audit.programs import compile_for, lower_decode_step, lower_train_step
    from parity.audit.stablehlo import read_module

    set_up_jax(config)
    mesh = MeshShape(**{axis: getattr(config.parallel, axis) for axis in AXES})
    for lowered in (lower_train_step(config, mesh, platform), lower_decode_step(config, platform)):
        length = config.train.seq_len
        program = Program(platform, lowered.name, "lowered", config, mesh, lowered.donated)
        yield from judge(program, read_module(lowered.program.compiler_ir("stablehlo"), length))
        if topology and lowered.name == "train":
            compiled = Program(platform, lowered.name, f"compiled for {topology}", config, mesh, lowered.donated)
            yield from judge(compiled, read_text(compile_for(topology, config, mesh), length, mesh.size))


def main() -> None:
    """Read what to audit, as JSON, from standard input, and print the checks."""
    asked: dict[str, Any] = json.load(sys.stdin)
    checks = _checked(from_dict(Config, asked["config"]), asked["platform"], asked["topology"])
    print(json.dumps([asdict(each) for each in checks]))


if __name__ == "__main__":
    main()
