"""What hostile code must not reach: listeners and processes of this machine."""

import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

MIB = 1 << 20


class Prey:
    """Listeners and processes outside, that a task process must not reach."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[str] = []
        self.closing = contextlib.ExitStack()
        hosts = ["127.0.0.1", *own_addresses()]
        self.tcp = [self._stream(socket.AF_INET, (host, 0), host) for host in hosts]
        self.path = folder / "others.sock"
        self._stream(socket.AF_UNIX, str(self.path), "unix")
        self.abstract = f"openfed-prey-{os.getpid()}"
        self._stream(socket.AF_UNIX, "\0" + self.abstract, "abstract")
        self.udp = self._datagrams()
        self.pid = os.getpid()

    def _stream(self, family: int, address: Any, what: str) -> Any:
        server = self.closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
        server.bind(address)
        server.listen(8)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()
                    self.heard.append(what)

        threading.Thread(target=accept, daemon=True).start()
        self.closing.callback(server.shutdown, socket.SHUT_RDWR)
        return server.getsockname()

    def _datagrams(self) -> Any:
        server = self.closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))

        def echo() -> None:
            while True:
                data, peer = server.recvfrom(100)
                if data == b"end":
                    return
                self.heard.append("udp")
                server.sendto(data, peer)

        echoing = threading.Thread(target=echo, daemon=True)
        echoing.start()
        self.closing.callback(echoing.join)
        self.closing.callback(server.sendto, b"end", server.getsockname())
        return server.getsockname()

    def targets(self, **more: Any) -> str:
        told = {"tcp": self.tcp, "udp": self.udp, "unix": [str(self.path)], "pid": self.pid}
        told |= {"abstract": self.abstract, "memory": 768 * MIB, "secrets": [], "spoils": []}
        return json.dumps(told | more)


def own_addresses() -> list[str]:
    """This machine's, on its way out; none where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]
