"""Both transports, and a small federation's certificates."""

import time
from contextlib import asynccontextmanager

import pytest

from openfed.pki.files import ensure_federation, load_identity
from openfed.transport.grpc import GrpcLink, serve
from openfed.transport.inprocess import InProcess


@pytest.fixture(scope="session")
def cert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cert")
    ensure_federation(folder, "fed", ("localhost",), ("one", "two"), time.time())
    return folder


@asynccontextmanager
async def in_process(service, cert):
    yield lambda name: InProcess(service, load_identity(cert, name).peer)


@asynccontextmanager
async def over_grpc(service, cert):
    links = []

    def connect(name):
        links.append(GrpcLink(f"localhost:{server.port}", load_identity(cert, name)))
        return links[-1]

    async with serve(service, load_identity(cert, "aggregator"), "127.0.0.1:0") as server:
        yield connect
        for link in links:
            await link.close()


@pytest.fixture(params=[in_process, over_grpc], ids=["in-process", "grpc"])
def transport(request, cert):
    """`async with transport(service) as connect`; `connect(name)` is a link."""
    return lambda service: request.param(service, cert)
