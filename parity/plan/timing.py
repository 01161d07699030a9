"""Expected time of one step, by a formula whose terms are said with it.

step = max(matmuls + tensor, sharding) + update

- matmuls: FLOPs of forward and backward pass (`lmcore.model.flops`), with `train.remat` four thirds of them, at
  EFFICIENCY of the devices' peak. That fraction is an assumption: large matmuls come to 50 to 75 %.
- tensor: what `tensor` exchanges, which the next matmul waits for.
- sharding: what `data` and `fsdp` exchange, which can go on beside the matmuls of other layers.
- update: the optimizer's reading and writing of the state and the gradients.

An exchange takes what one device sends, by the ring algorithm, over its bandwidth; latencies are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lmcore.config import Config
from lmcore.model.flops import flops_per_token
from lmcore.run.mesh import MeshShape
from parity.plan.hardware import Hardware
from parity.plan.memory import Memory
from parity.plan.traffic import Exchange

__all__ = ["EFFICIENCY", "Timing", "step_time"]

EFFICIENCY = 0.6
"""Fraction of the peak that matmuls are assumed to reach."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one step, by part."""

    matmuls: float
    tensor: float
    sharding: float
    update: float
    mfu: float
    """Model FLOPs utilization: FLOPs without those of rematerialization, over what the peak allows in that time."""

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return max(self.matmuls + self.tensor, self.sharding) + self.update


def step_time(
    config: Config, mesh: MeshShape, memory: Memory, exchanges: Sequence[Exchange], hardware: Hardware
) -> Timing:
    """Return the expected time of one step.

    Args:
        config: of the run.
        mesh: the devices.
        memory: of each.
        exchanges: of a step.
        hardware: what each device is.
    """
    train = config.train
    ideal = flops_per_token(config.model, train.seq_len) * train.batch_size * train.seq_len / mesh.size / hardware.peak
    seconds = {True: 0.0, False: 0.0}
    for each in exchanges:
        seconds[each.axis == "tensor"] += each.wire / hardware.bandwidth(each.group, each.stride)
    update = (2 * memory.state + memory.gradients) / hardware.memory_bandwidth
    matmuls = ideal * (4 / 3 if train.remat else 1) / EFFICIENCY
    timing = Timing(matmuls, seconds[True], seconds[False], update, 0.0)
    return Timing(matmuls, seconds[True], seconds[False], update, ideal / timing.step)
