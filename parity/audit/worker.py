"""Lower and compile a config's programs for a platform that is not here, and check them, in a process of its own.

The number of a process's CPU devices is fixed once jax has started, and libtpu keeps the process that loads it.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lmcore.config import Config, from_dict, to_dict
from lmcore.run.mesh import AXES, MeshShape
from parity.audit.checks import Check, Program, judge
from parity.audit.facts import Facts
from parity.plan.worker import ask_worker, on_virtual_devices

if TYPE_CHECKING:
    from parity.audit.programs import Lowered

__all__ = ["audit_jax", "check_lowered"]


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


def check_lowered(lowered: "Lowered", config: Config, mesh: MeshShape) -> list[Check]:
    """Return the checks of what jax lowers.

    Args:
        lowered: a step.
        config: that it was lowered for.
        mesh: the devices.
    """
    from parity.audit.stablehlo import read_module

    program = Program(lowered.platform, lowered.name, "lowered", config, mesh, lowered.donated)
    if lowered.callbacks:  # nothing else is known
        checks = judge(program, Facts(callbacks=lowered.callbacks))
        return [check for check in checks if check.name == "host callbacks"]
    return judge(program, read_module(lowered.program.compiler_ir("stablehlo"), config.train.seq_len))


def _checked(config: Config, platform: str, topology: str | None) -> Iterator[Check]:
    from jaxlm.device import set_up_jax
    from parity.audit.compiled import read_text
    from parity.audit.programs import compile_for, lower_decode_step, lower_train_step

    set_up_jax(config)
    mesh = MeshShape(**{axis: getattr(config.parallel, axis) for axis in AXES})
    train = lower_train_step(config, mesh, platform)
    yield from check_lowered(train, config, mesh)
    if topology and train.program:
        compiled = Program(platform, train.name, f"compiled for {topology}", config, mesh, train.donated)
        facts = read_text(compile_for(topology, config, mesh), config.train.seq_len, mesh.size)
        yield from judge(compiled, facts)
    yield from check_lowered(lower_decode_step(config, platform), config, mesh)


def main() -> None:
    """Read what to audit, as JSON, from standard input, and print the checks."""
    asked: dict[str, Any] = json.load(sys.stdin)
    checks = _checked(from_dict(Config, asked["config"]), asked["platform"], asked["topology"])
    print(json.dumps([asdict(each) for each in checks]))


if __name__ == "__main__":
    main()
