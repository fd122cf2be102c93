"""The relay before the coordination service, with a service of sockets.  JAX behind it: tests/distributed."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
from collections.abc import Iterator

import pytest

from kpjax.parallel.relay import Relay

LIMIT = 20


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        yield listener


@contextlib.contextmanager
def connected(
    service: socket.socket, silence: float
) -> Iterator[tuple[Relay, socket.socket, socket.socket, queue.Queue[str]]]:
    """(relay, the client's socket, the service's, what the relay said)."""
    said: queue.Queue[str] = queue.Queue()
    relay = Relay(f"127.0.0.1:{service.getsockname()[1]}", silence, said.put)
    host, port = relay.address.split(":")
    with socket.create_connection((host, int(port)), LIMIT) as client, service.accept()[0] as server:
        server.settimeout(LIMIT)
        yield relay, client, server, said
        if relay._process.poll() is None:
            relay.close(leave=client.close)


def test_bytes_pass_and_a_closed_service_is_reported_while_the_client_stays_open(service: socket.socket) -> None:
    with connected(service, silence=60) as (relay, client, server, said):
        relay.watch()
        client.sendall(b"a" * 300_000 + b"z")
        received = b""
        while not received.endswith(b"z"):
            received += server.recv(1 << 16)
        assert len(received) == 300_001
        server.sendall(b"answer")
        assert client.recv(10) == b"answer"
        server.close()
        assert said.get(timeout=LIMIT) == "closed"
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
    assert relay._process.returncode == 0


def test_a_silent_service_is_reported_and_one_that_speaks_is_not(service: socket.socket) -> None:
    with connected(service, silence=0.5) as (relay, _, server, said):
        with pytest.raises(queue.Empty):
            said.get(timeout=1.5)  # before `watch`: JAX waits for the others to come
        relay.watch()
        for _ in range(15):
            server.sendall(b".")
            with pytest.raises(queue.Empty):
                said.get(timeout=0.1)
        assert said.get(timeout=LIMIT) == "silent"


def test_leaving_is_no_loss(service: socket.socket) -> None:
    with connected(service, silence=60) as (relay, client, server, said):
        relay.watch()

        def leave() -> None:
            server.close()
            client.settimeout(LIMIT)
            assert client.recv(1) == b""
            client.close()

        relay.close(leave)
        assert said.empty() and relay._process.returncode == 0


def test_signals_to_the_group_do_not_end_it(service: socket.socket) -> None:
    with connected(service, silence=60) as (relay, client, server, _):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(relay._process.pid, number)
        server.sendall(b"x")
        assert client.recv(1) == b"x"
