"""Compile the train step for devices that are not here, in a process of its own: `python -m parity.plan.worker`.

The number of a process's CPU devices is fixed once jax has started, and libtpu keeps the process that loads it; so
`compile_step` starts one for each program. It allocates no array.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

from lmcore.config import Config, from_dict, to_dict
from lmcore.run.mesh import AXES, MeshShape
from parity.plan.hlo import Collective

__all__ = ["Compiled", "ask_worker", "compile_step", "has_libtpu", "on_virtual_devices"]


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device's program."""

    compiler: str
    """Platform that it was compiled for, perhaps with a topology."""
    seconds: float
    state: int = 0
    """Bytes of the state: of all arguments that outputs take the place of."""
    temporaries: int = 0
    peak: int = 0
    collectives: tuple[Collective, ...] = ()
    error: str = ""
    """The compiler's own words where it refuses the program, for a lack of memory say."""


def has_libtpu() -> bool:
    """Return whether programs can be compiled for TPUs."""
    return find_spec("libtpu") is not None


def compile_step(config: Config, mesh: MeshShape, topology: str | None = None) -> Compiled:
    """Compile the train step that jaxlm's engine runs on a mesh.

    Args:
        config: with `model.vocab_size` set.
        mesh: the devices.
        topology: of TPUs, such as `v5e:16x16`; None compiles for as many virtual CPU devices.
    """
    asked = {"config": to_dict(on_virtual_devices(config, mesh)), "topology": topology}
    answer = ask_worker("parity.plan.worker", asked, topology)
    return Compiled(**answer | {"collectives": tuple(Collective(**each) for each in answer["collectives"])})


def on_virtual_devices(config: Config, mesh: MeshShape) -> Config:
    """Return the config with a fixed mesh of as many virtual CPU devices."""
    parallel = replace(config.parallel, **{axis: getattr(mesh, axis) for axis in AXES})
    return replace(config, train=replace(config.train, device="cpu", cpu_devices=0), parallel=parallel)


def ask_worker(module: str, asked: dict[str, Any], topology: str | None) -> Any:
    """Return what a module answers, in a process of its own, in the last line that it prints.

    Args:
        module: with a `main` that reads JSON from standard input.
        asked: what it reads.
        topology: of TPUs that it compiles for; None where it does not.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    if topology:
        environment.pop("XLA_FLAGS", None)  # libtpu ends the process for a flag of the CPU's
    command = [sys.executable, "-m", module]
    ended = subprocess.run(command, input=json.dumps(asked), env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"the compiler's process ended with exit code {ended.returncode}:\n{ended.stderr[-4000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def _compiled(config: Config, topology: str | None) -> Compiled:
    import jax

    from jaxlm.device import set_up_jax
    from jaxlm.engine import lower_train_step
    from jaxlm.sharding import make_mesh, mesh_of
    from parity.plan.hlo import collectives

    set_up_jax(config)
    if topology is None:
        mesh = make_mesh(config)
    else:
        from jax.experimental.topologies import get_topology_desc

        shape = MeshShape(**{axis: getattr(config.parallel, axis) for axis in AXES})
        mesh = mesh_of(get_topology_desc(topology, platform="tpu").devices, shape)
    name, start = f"tpu {topology}" if topology else "cpu", time.perf_counter()
    try:
        program = lower_train_step(config, mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(name, time.perf_counter() - start, error=" ".join(str(error)[:1000].split()))
    seconds, memory = time.perf_counter() - start, program.memory_analysis()
    found = tuple(collectives(program.as_text(), mesh.size))
    sizes = memory.alias_size_in_bytes, memory.temp_size_in_bytes, memory.peak_memory_in_bytes
    return Compiled(name, seconds, *sizes, found)


def main() -> None:
    """Read a config and a topology, as JSON, from standard input, and print what the compiler says."""
    asked: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(asdict(_compiled(from_dict(Config, asked["config"]), asked["topology"]))))


if __name__ == "__main__":
    main()
