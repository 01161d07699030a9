"""Where a server listens, by which names it is reached, and within which limits."""

import os
import socket

import pytest

from lmcore.errors import UserError
from lmcore.serve.connections import Connection
from lmcore.serve.listening import bind, known_hosts, server_config, url_of


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST", "::1", "127.0.0.2"])
def test_only_names_of_this_machine_reach_a_loopback_address(host: str):
    hosts = known_hosts(host)
    assert hosts is not None
    assert {"localhost", "127.0.0.1", "::1", host.lower()} == hosts | {host.lower()}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "box.local"])
def test_every_name_reaches_another_address(host: str):
    assert known_hosts(host) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_bound_socket_does_not_listen_yet(host: str):
    try:
        listener = bind(host, 0)
    except UserError:
        pytest.skip(f"{host} is none of this machine")
    with listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname()[:2], timeout=5)


def test_the_address_is_one_for_a_browser():
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_ipv6_has_brackets():
    try:
        listener = bind("::1", 0)
    except UserError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert listener.family == socket.AF_INET6
        assert url_of(listener).startswith("http://[::1]:")


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_there_is_not_is_refused(port: int):
    with pytest.raises(UserError, match=f"--port: found {port}, expected from 0 to 65535"):
        bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "x" * 300, "\udcff"])
def test_a_host_that_is_not_here_is_refused(host: str):
    with pytest.raises(UserError, match=r"--host: found .*, expected an address of this machine"):
        bind(host, 0)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may use every port")
def test_a_port_of_the_system_is_refused():
    with pytest.raises(UserError, match=r"--port: cannot listen at 127\.0\.0\.1 port 1 "):
        bind("127.0.0.1", 1)


def test_slow_clients_and_too_many_have_limits():
    config = server_config(None)
    assert config.http is Connection
    assert config.limit_concurrency == 1000
    assert not config.proxy_headers
