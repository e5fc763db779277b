"""Connections up to the file limit, and who says nothing on them: those who are there go on."""

import asyncio
import re
import socket
import ssl
import threading
from contextlib import contextmanager, suppress

import pytest

from openfed.pki.files import load_identity
from openfed.transport.crowd import most_connections, sockets
from openfed.transport.retry import retrying
from openfed.wire.messages import Hello, RunState, Stamp
from tests.adversary.world import PATIENT, aggregator, last_digest, make_world, take_part

FILES = 128
SITES = {"one": (0.5, 4), "two": (0.25, 8)}
ROUNDS = 20


def silent(port, context):
    return socket.create_connection(("127.0.0.1", port), 2)


def with_certificate(port, context):
    """A handshake that succeeds; then nothing is said, not even HTTP/2's first words."""
    plain = socket.create_connection(("127.0.0.1", port), 2)
    try:
        return context.wrap_socket(plain)
    except (OSError, ssl.SSLError):
        plain.close()
        raise


def half_a_handshake(port, context):
    plain = socket.create_connection(("127.0.0.1", port), 2)
    plain.sendall(b"\x16\x03\x01\x02\x00")  # the head of a ClientHello that never comes
    return plain


FLOODS = {each.__name__: each for each in (silent, half_a_handshake, with_certificate)}


def client_context(world, name) -> ssl.SSLContext:
    node = load_identity(world.root / "cert", name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    path = world.root / f"{name}.pem"
    path.write_bytes(node.chain_pem + node.key_pem)
    context.load_cert_chain(path)
    return context


@contextmanager
def flooded(connect, port, context, many):
    """As many connections as can be had, made anew when they are closed, until the block ends."""
    held, over, full = [], threading.Event(), threading.Event()

    def alive(each):
        each.setblocking(False)
        try:
            return each.recv(4096) != b""
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False

    def flood():
        while not over.is_set():
            for each in [each for each in held if not alive(each)]:
                held.remove(each)
                each.close()
            for _ in range(many - len(held)):
                if over.is_set():
                    break
                try:
                    held.append(connect(port, context))
                except OSError:
                    full.set()  # it was turned away
                    break
            else:
                full.set()
            over.wait(0.1)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        assert full.wait(60)
        yield
    finally:
        over.set()
        flooding.join()
        for each in held:
            with suppress(OSError):
                each.close()


@pytest.mark.parametrize(
    "kind",
    [each if each == "silent" else pytest.param(each, marks=pytest.mark.slow) for each in FLOODS],
)
def test_a_flood_of_connections_disturbs_nobody_who_is_there(kind, tmp_path):
    """The whole cohort is required, so the digest is that of the undisturbed run."""
    world = make_world(tmp_path / "w", SITES, rounds=ROUNDS)
    go = threading.Event()
    world.toys["two"].breaks = lambda toy, task: go.wait(0.2)  # rounds enough for a flood

    async def main():
        here = [asyncio.create_task(take_part(server, name)) for name in SITES]
        await asyncio.to_thread(server.wait_for, "round.ended", round=1)
        with flooded(FLOODS[kind], server.port, client_context(world, "two"), 2 * FILES):
            told = await asyncio.to_thread(server.wait_for, "note")
            await asyncio.to_thread(server.wait_for, "round.ended")
            assert server.descriptors() < FILES
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_greeting(server), 1)  # turned away
            late = asyncio.create_task(_greeting(server))
        assert (await asyncio.wait_for(late, 30)).state is RunState.RUNNING
        go.set()
        for state, reason in await asyncio.gather(*here):
            assert (state, reason) == (RunState.COMPLETED, "")
        return told["text"]

    with aggregator(world, files=FILES) as server:
        told = asyncio.run(main())
        assert server.finish() == 0
        assert re.match(rf"T19  {FILES // 2} connections", told)
        assert "Too many open files" not in server.log.read_text()
    assert last_digest(world) == undisturbed(tmp_path / "u")


def undisturbed(root) -> str:
    lab = make_world(root, SITES, rounds=ROUNDS)
    lab.run()
    return last_digest(lab)


async def _greeting(server):
    """A site that comes anew, as patiently as an agent."""
    link = retrying(server.link("one"), PATIENT)
    try:
        return await link.hello(Hello(Stamp("lab", "", server.world.lock.digest, "op")))
    finally:
        await link.close()


def test_half_of_the_descriptors_are_for_connections():
    assert 1 <= most_connections() <= 8192


def test_sockets_are_told_from_files(tmp_path):
    before = sockets(0)
    with socket.socket(), (tmp_path / "f").open("w"):
        assert sockets(0) == before + 1
    assert sockets(1 << 20) == 0
