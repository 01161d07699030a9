"""Estimates of one config on many meshes: which fit, which are fastest, and what would make the given one fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.run.mesh import MeshShape, check_mesh
from parity.plan.hardware import Target
from parity.plan.memory import Memory, device_memory
from parity.plan.shapes import Shapes
from parity.plan.timing import Timing, step_time
from parity.plan.traffic import Exchange, exchanges

__all__ = ["HEADROOM", "Estimate", "all_meshes", "best", "estimate", "remedies"]

HEADROOM = 0.1
"""Fraction of the memory to leave free: temporaries are an estimate, and allocators leave gaps."""


@dataclass(frozen=True)
class Estimate:
    """A config on a mesh, by arithmetic alone."""

    config: Config
    mesh: MeshShape
    memory: Memory
    exchanges: list[Exchange]
    timing: Timing
    fits: bool

    @property
    def options(self) -> str:
        """The options of the command line that ask for this mesh."""
        axes = (f"--parallel.{axis} {getattr(self.mesh, axis)}" for axis in ("data", "fsdp", "tensor"))
        return f"{' '.join(axes)} --train.grad_accum {self.config.train.grad_accum}"


def estimate(config: Config, shapes: Shapes, mesh: MeshShape, target: Target) -> Estimate:
    """Return the estimate of a config on a mesh, which it must fit (see `lmcore.run.mesh.check_mesh`)."""
    memory, exchanged = device_memory(config, shapes, mesh), exchanges(config, shapes, mesh)
    timing = step_time(config, mesh, memory, exchanged, target.hardware)
    return Estimate(config, mesh, memory, exchanged, timing, memory.total <= (1 - HEADROOM) * target.hardware.memory)


def all_meshes(devices: int) -> Iterator[MeshShape]:
    """Yield every mesh of a number of devices."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for tensor in divisors:
        for fsdp in divisors:
            if devices % (tensor * fsdp) == 0:
                yield MeshShape(devices // (tensor * fsdp), fsdp, tensor)


def best(config: Config, shapes: Shapes, target: Target, count: int = 5) -> list[Estimate]:
    """Return the meshes that fit with the shortest steps, the fastest first.

    Each has the fewest accumulation steps with which it fits; the batch stays as it is.

    Args:
        config: of the run.
        shapes: of its model.
        target: the devices.
        count: maximum number of meshes.
    """
    fitting = [found for mesh in all_meshes(target.devices) if (found := _fewest(config, shapes, mesh, target))]
    return sorted(fitting, key=lambda found: (found.timing.step, found.memory.total))[:count]


def remedies(found: Estimate, shapes: Shapes, target: Target) -> Iterator[tuple[str, Estimate]]:
    """Yield single changes with which an estimate's run fits, each as an option, and its estimate.

    Where rematerialization, accumulation, sequence parallelism and another mesh do not suffice, more devices may.
    """
    config, mesh, train = found.config, found.mesh, found.config.train
    changed: list[tuple[str, Estimate | None]] = []
    if not train.remat:
        rematerialized = replace(config, train=replace(train, remat=True))
        changed.append(("--train.remat true", estimate(rematerialized, shapes, mesh, target)))
    if fewer := _fewest(config, shapes, mesh, target, train.grad_accum + 1):
        changed.append((f"--train.grad_accum {fewer.config.train.grad_accum}", fewer))
    if mesh.tensor > 1 and not config.parallel.sequence and train.seq_len % mesh.tensor == 0:
        split = replace(config, parallel=replace(config.parallel, sequence=True))
        changed.append(("--parallel.sequence true", estimate(split, shapes, mesh, target)))
    if others := best(config, shapes, target, 1):
        changed.append((others[0].options, others[0]))
    fitting = [(option, each) for option, each in changed if each is not None and each.fits]
    for times in (2, 4, 8, 16, 32, 64) if not fitting and target.platform != "cpu" else ():
        more = replace(target, devices=times * target.devices)
        if others := best(config, shapes, more, 1):
            fitting = [(f"--devices {more.devices} {others[0].options}", others[0])]
            break
    yield from fitting


def _fewest(config: Config, shapes: Shapes, mesh: MeshShape, target: Target, least: int = 1) -> Estimate | None:
    """Return the estimate with the fewest accumulation steps, at least `least`, that fits; None if none does."""
    train = config.train
    for steps in range(least, train.batch_size // mesh.batch + 1):
        if train.batch_size % steps:
            continue
        changed = replace(config, train=replace(train, grad_accum=steps))
        try:
            check_mesh(changed, mesh)
        except UserError:
            continue
        if (found := estimate(changed, shapes, mesh, target)).fits:
            return found
    return None
