"""The bare round: the least federated averaging that one can write on Python gRPC and mTLS.

One float32 tensor. The server cuts the model into chunks once a round and streams them to every
client; a client fills its tensor, adds a constant in place, and streams it back; the server adds
each chunk, weighted, as it arrives, and divides when all are there. numpy only. There is no plan,
no check, no digest, no journal, no isolation, nothing on a disk and no recovery: what openfed
takes beyond it is what those cost.
"""

import argparse
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench.meter import MIB
from openfed.pki.files import load_identity
from openfed.transport.environment import grpc

CHUNK = 1 << 20
SERVICE = "bench.Bare"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SAMPLES = 100


class Server:
    """The model, and the sum of what has come of the round at hand."""

    def __init__(self, clients: int, mb: int) -> None:
        self.clients = clients
        self.model = np.random.default_rng(0).standard_normal(mb * MIB // 4, dtype=np.float32)
        self.sum = np.zeros_like(self.model)
        self.term = np.empty(CHUNK // 4, np.float32)
        self.round, self.weight, self.came = 1, 0.0, 0
        self.changed = threading.Condition()
        self.publish()

    def publish(self) -> None:
        view = memoryview(self.model).cast("B")
        self.chunks = [bytes(view[at : at + CHUNK]) for at in range(0, len(view), CHUNK)]

    def down(self, request: bytes, _: Any) -> Iterator[bytes]:
        with self.changed:
            self.changed.wait_for(lambda: self.round >= int(request))
            chunks = self.chunks
        yield from chunks

    def up(self, messages: Iterator[bytes], _: Any) -> bytes:
        weight, at = np.float32(next(messages)), 0
        for message in messages:
            chunk = np.frombuffer(message, np.float32)
            with self.changed:
                np.multiply(chunk, weight, out=self.term[: len(chunk)])
                self.sum[at : at + len(chunk)] += self.term[: len(chunk)]
            at += len(chunk)
        with self.changed:
            self.came += 1
            self.weight += float(weight)
            if self.came == self.clients:
                self.reduce()
        return b""

    def reduce(self) -> None:
        np.multiply(self.sum, np.float32(1 / self.weight), out=self.model)
        self.sum.fill(0)
        self.publish()
        print(f"round {self.round} {self.model[0]}", flush=True)
        self.round, self.weight, self.came = self.round + 1, 0.0, 0
        self.changed.notify_all()


def listening_credentials(certs: Path) -> Any:
    mine = load_identity(certs, "aggregator")
    return grpc.ssl_server_credentials(
        [(mine.key_pem, mine.chain_pem)], mine.authority_pem, require_client_auth=True
    )


def credentials_of(certs: Path, name: str) -> Any:
    mine = load_identity(certs, name)
    return grpc.ssl_channel_credentials(mine.authority_pem, mine.key_pem, mine.chain_pem)


def serve(certs: Path, clients: int, mb: int) -> None:
    """Prints its port, then a line at the end of each round; ends with its standard input."""
    server = grpc.server(ThreadPoolExecutor(2 * clients + 2), options=OPTIONS)
    service = Server(clients, mb)
    methods = {
        "down": grpc.unary_stream_rpc_method_handler(service.down),
        "up": grpc.stream_unary_rpc_method_handler(service.up),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    print(f"port {server.add_secure_port('localhost:0', listening_credentials(certs))}", flush=True)
    server.start()
    sys.stdin.read()
    server.stop(1).wait()


def join(certs: Path, name: str, port: int, mb: int, rounds: int) -> None:
    """Take part in all rounds."""
    credentials = credentials_of(certs, name)
    model = np.empty(mb * MIB // 4, np.float32)
    view = memoryview(model).cast("B")

    def pieces() -> Iterator[bytes]:
        yield str(SAMPLES).encode()
        for at in range(0, len(view), CHUNK):
            yield bytes(view[at : at + CHUNK])

    with grpc.secure_channel(f"localhost:{port}", credentials, options=OPTIONS) as channel:
        up = channel.stream_unary(f"/{SERVICE}/up")
        down = channel.unary_stream(f"/{SERVICE}/down")
        for number in range(1, rounds + 1):
            at = 0
            for chunk in down(str(number).encode()):
                view[at : at + len(chunk)] = chunk
                at += len(chunk)
            model += np.float32(1e-3)
            up(pieces())


def run(certs: Path, names: list[str], mb: int, rounds: int) -> Iterator[int]:
    """One federation of these clients; gives the number of each round when it ends."""
    child = [sys.executable, "-m", "bench.bare", str(certs)]
    given = [*child, "serve", str(len(names)), str(mb)]
    server = subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout
    port = server.stdout.readline().split()[1]
    clients = [
        subprocess.Popen([*child, "join", name, port, str(mb), str(rounds)]) for name in names
    ]
    try:
        for number in range(1, rounds + 1):
            line = server.stdout.readline()
            if not line.startswith(f"round {number} "):
                raise RuntimeError(f"the bare server ended in round {number}")
            yield number
    finally:
        server.stdin.close()
        for process in (*clients, server):
            process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("certs", type=Path)
    roles = parser.add_subparsers(dest="role", required=True)
    server, client = roles.add_parser("serve"), roles.add_parser("join")
    server.add_argument("clients", type=int)
    server.add_argument("mb", type=int)
    client.add_argument("name")
    for each in ("port", "mb", "rounds"):
        client.add_argument(each, type=int)
    given = vars(parser.parse_args())
    {"serve": serve, "join": join}[given.pop("role")](**given)


if __name__ == "__main__":
    main()
