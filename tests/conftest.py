"""What tests of several kinds need."""

import select
import socket
import socketserver
import threading
from contextlib import contextmanager, suppress

import pytest
from hypothesis import settings

settings.register_profile("shared", deadline=None)  # on machines that others use too
settings.load_profile("shared")


class ConnectProxy(socketserver.ThreadingTCPServer):
    """A real HTTP proxy that only CONNECTs. It alone knows the names that end in `.invalid`: they
    are this machine's, so that whoever reaches one has come through it.

    `asked`: the head of every request; `seen`: all that went through, both ways; `known`: the one
    value of Proxy-Authorization that it accepts, if any; `answer`: what it says instead of
    connecting; `instead`: the port that it connects to whatever is asked for.
    """

    allow_reuse_address = True
    known = answer = instead = None

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Talk)
        self.port = self.server_address[1]
        self.asked, self.seen, self.open = [], bytearray(), []

    @property
    def targets(self):
        return [head.split()[1].decode() for head in self.asked]

    def cut(self):
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        pass  # the other side has gone


class Talk(socketserver.BaseRequestHandler):
    def handle(self):
        proxy, here = self.server, self.request
        proxy.open.append(here)
        head = self.head()
        if not head:
            return
        proxy.asked.append(head)
        if proxy.answer is not None:
            here.sendall(proxy.answer)
            return
        if proxy.known and f"\r\nProxy-Authorization: {proxy.known}\r\n".encode() not in head:
            here.sendall(
                b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Negotiate\r\n"
                b'Proxy-Authenticate: Basic realm="ward"\r\nContent-Length: 2\r\n\r\nno'
            )
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        at = "127.0.0.1" if host.endswith(".invalid") else host
        try:
            there = socket.create_connection((at, proxy.instead or int(port)), 5)
        except OSError:
            here.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return
        with there:
            proxy.open.append(there)
            here.sendall(b"HTTP/1.1 200 Connection established\r\nVia: ward\r\n\r\n")
            self.pass_on(here, there)

    def head(self):
        head = b""
        while not head.endswith(b"\r\n\r\n") and (byte := self.request.recv(1)):
            head += byte
        return head

    def pass_on(self, here, there):
        to = {here: there, there: here}
        while True:
            for each in select.select(list(to), [], [])[0]:
                data = each.recv(1 << 16)
                if not data:
                    return
                self.server.seen += data
                to[each].sendall(data)


@contextmanager
def connect_proxy(port=0, **settings):
    with ConnectProxy(port) as proxy:
        for name, value in settings.items():
            setattr(proxy, name, value)
        serving = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        serving.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            serving.join()
            proxy.cut()


@pytest.fixture(scope="session")
def http_proxy():
    """`with http_proxy() as proxy`: a `ConnectProxy`; its settings by keyword."""
    return connect_proxy
