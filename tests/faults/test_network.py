"""The lines: what is passed on is what came, and each fault does what its name says."""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from tests.faults.network import DOWN, UP, Proxies


@contextmanager
def line():
    """A proxy before a server that sends back what it gets."""

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection):
        with connection, suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        proxies = Proxies({"farm": "127.0.0.1"}, listener.getsockname()[1])
        way = proxies.ways["farm"]
        try:
            with socket.create_connection(("127.0.0.1", way.port), 10) as client:
                yield proxies, way, client
        finally:
            proxies.close()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def read(client, size):
    data = b""
    while len(data) < size and (more := client.recv(1 << 16)):
        data += more
    return data


def test_what_comes_is_passed_on_both_ways():
    data = bytes(range(256)) * 500
    with line() as (_, _, client):
        client.sendall(data)
        assert read(client, len(data)) == data


def test_a_connection_is_reset_after_so_many_bytes():
    with line() as (proxies, way, client):
        client.sendall(b"x")
        assert read(client, 1) == b"x"
        proxies.change(lambda: setattr(way, "left", 5))
        client.sendall(b"1234")
        with pytest.raises(ConnectionResetError):
            assert read(client, 4) == b"1234"
            client.recv(1)
        assert proxies.resets == 1 and way.left is None


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_one_way_is_stalled_and_what_waited_comes_whole(direction):
    with line() as (proxies, way, client):
        client.sendall(b"x")
        assert read(client, 1) == b"x"
        proxies.change(way.going[direction].clear)
        client.sendall(b"late")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxies.change(way.going[direction].set)
        client.settimeout(10)
        assert read(client, 4) == b"late"


def test_what_comes_is_late_by_the_delay_each_way():
    with line() as (proxies, way, client):
        proxies.change(lambda: setattr(way, "delay_s", 0.2))
        began = time.monotonic()
        client.sendall(b"x")
        assert read(client, 1) == b"x"
        assert time.monotonic() - began >= 0.4
