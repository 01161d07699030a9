"""Two hosts on one machine: network namespaces, each with an address of its own, joined by a cable."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Host", "two_hosts"]

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_numbers = itertools.count()


class Host:
    """One of the two."""

    def __init__(self, name: str, address: str):
        self.name, self.address = name, address

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs a program on this host."""
        return ["ip", "netns", "exec", self.name, *arguments]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make the hosts; skip the test where that is not possible."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("two hosts need ip (on Debian: apt-get install iproute2) and the rights of root")
    number = f"{os.getpid()}n{next(_numbers)}"
    hosts = tuple(Host(f"lm{number}{side}", address) for side, address in zip("ab", ADDRESSES, strict=True))
    one, other = hosts
    try:
        if _run("ip", "netns", "add", one.name).returncode:
            pytest.skip("this machine does not allow network namespaces")
        _run("ip", "netns", "add", other.name)
        _run("ip", "link", "add", "eth0", "netns", one.name, "type", "veth", "peer", "eth0", "netns", other.name)
        for host in hosts:
            folder = Path("/etc/netns", host.name)  # a program on this host sees these files in /etc
            folder.mkdir(parents=True)
            others = "".join(f"{other.address} {other.name}\n" for other in hosts if other is not host)
            own = f"127.0.0.1 localhost\n{host.address} {os.uname().nodename}\n"
            (folder / "hosts").write_text(own + others)  # of an address without a name, torch would ask a name server
            (folder / "resolv.conf").write_text("")
            _run(*host.command(["ip", "address", "add", f"{host.address}/24", "dev", "eth0"]))
            for device in ("lo", "eth0"):
                _run(*host.command(["ip", "link", "set", device, "up"]))
        yield one, other
    finally:
        for host in hosts:
            _run("ip", "netns", "delete", host.name)
            shutil.rmtree(Path("/etc/netns", host.name), ignore_errors=True)


def _run(*command: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(command, capture_output=True)
