"""What a device is: memory, peak rate and links, from the vendors' data sheets, and the names of targets.

Bandwidths are what a device sends in one direction, in bytes per second: a vendor's bidirectional figure is halved.
"""

import math
import re
import time
from dataclasses import dataclass

from lmcore.errors import UserError
from lmcore.hardware import memory_bytes
from lmcore.model.flops import peak_flops

__all__ = ["HARDWARE", "Hardware", "Target", "read_target"]


@dataclass(frozen=True)
class Hardware:
    """One kind of device."""

    name: str
    """As the device itself says it, by which `lmcore.model.flops` knows its peak."""
    memory: float
    """Bytes that a program can use."""
    memory_bandwidth: float
    link: float
    """Bandwidth for one collective among neighbours: of a TPU along one axis of its torus, to both sides."""
    neighbours: int | None = None
    """Number of devices that are joined by `link`; None for all."""
    network: float = 0.0
    """Bandwidth of each device to those that are no neighbours."""
    measured: float = 0.0
    """Rate of a large matmul in FLOP/s, where no data sheet has a peak."""

    @property
    def peak(self) -> float:
        """Rate of dense matmuls in FLOP/s: the 16-bit peak of the data sheet, else what was measured."""
        return peak_flops(self.name) or self.measured

    def bandwidth(self, group: int, stride: int) -> float:
        """Return the bandwidth of each device in a collective.

        Beyond the neighbours, those of a host that take part share out what goes over the network.

        Args:
            group: number of devices.
            stride: distance between two of them, in the order of the mesh.
        """
        if self.neighbours is None or group * stride <= self.neighbours:
            return self.link
        return min(self.link, max(1, self.neighbours // stride) * self.network)


# Google: https://docs.cloud.google.com/tpu/docs/ v4, v5e, v5p and v6e. Interconnect per chip, one direction: v4
# 300 GB/s and v5p 600 GB/s over three axes of the torus, v5e 200 GB/s and v6e 400 GB/s over two. The compiler keeps
# a part of the memory: for v5e, libtpu 0.0.52 counts 15.75 GiB.
# NVIDIA: data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200. NVLink, both directions: 600, 900, 900 and
# 1800 GB/s within a host of eight. Network: one ConnectX per GPU, as in DGX A100 (200 Gbit/s) and later (400 Gbit/s).
HARDWARE = {
    "tpu:v4": Hardware("TPU v4", 32 * 2**30, 1228e9, 100e9),
    "tpu:v5e": Hardware("TPU v5 lite", 15.75 * 2**30, 819e9, 100e9),
    "tpu:v5p": Hardware("TPU v5p", 95e9, 2765e9, 200e9),
    "tpu:v6e": Hardware("TPU v6 lite", 32e9, 1640e9, 200e9),
    "cuda:a100": Hardware("A100", 80e9, 2039e9, 300e9, 8, 25e9),
    "cuda:h100": Hardware("H100", 80e9, 3350e9, 450e9, 8, 50e9),
    "cuda:h200": Hardware("H200", 141e9, 4800e9, 450e9, 8, 50e9),
    "cuda:b200": Hardware("B200", 180e9, 8000e9, 900e9, 8, 50e9),
}
"""Name of a target -> its device."""


@dataclass(frozen=True)
class Target:
    """The devices that a plan is for."""

    kind: str
    """A key of HARDWARE, or cpu."""
    devices: int
    hardware: Hardware
    topology: str | None = None
    """Shape of the TPU slice, such as 16x16."""

    @property
    def platform(self) -> str:
        """tpu, cuda or cpu."""
        return self.kind.partition(":")[0]


def read_target(text: str, devices: int) -> Target:
    """Read a target, such as `tpu:v5e:16x16`, `cuda:h100` or `cpu`.

    Args:
        text: the target; a TPU's topology may be left out.
        devices: number of devices.

    Raises:
        UserError: no such target, or a topology of another number of devices.
    """
    if devices < 1:
        raise UserError(f"--devices: found {devices}, expected at least 1")
    if text == "cpu":  # all devices share this machine's memory and cores, and exchange by copies in memory
        rate = matmul_rate() / devices
        return Target("cpu", devices, Hardware("cpu", memory_bytes() / devices, math.inf, math.inf, measured=rate))
    match = re.fullmatch(r"(\w+:\w+)(?::(\d+(?:x\d+)+))?", text)
    kind, topology = match.groups() if match else ("", None)
    if kind not in HARDWARE or (topology and not kind.startswith("tpu")):
        expected = f"cpu, {', '.join(HARDWARE)}, a TPU perhaps with its topology, such as tpu:v5e:16x16"
        raise UserError(f"--target: found {text!r}, expected one of {expected}")
    if topology and math.prod(map(int, topology.split("x"))) != devices:
        size = math.prod(map(int, topology.split("x")))
        raise UserError(f"--target: found {text!r}, which is {size} devices, expected the {devices} of --devices")
    return Target(kind, devices, HARDWARE[kind], topology)


def matmul_rate() -> float:
    """Return the rate of float32 matmuls that jax has on this machine's CPU, in FLOP/s: the best of some."""
    import jax
    import jax.numpy as jnp

    size, best = 1024, math.inf
    with jax.default_device(jax.devices("cpu")[0]):
        x = jnp.ones((size, size), jnp.float32)
        for _ in range(8):
            start = time.perf_counter()
            jnp.matmul(x, x).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
