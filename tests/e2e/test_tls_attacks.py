"""Who is refused on the wire, by real sockets: each with its own message on the side that can know.

gRPC reports a failed handshake on the server's standard error; a client is told by openfed's probe.
"""

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from openfed.errors import CertificateError, OpenFedError, TransportError
from openfed.pki.authority import Enrolment, create_authority, issue
from openfed.pki.files import load_profiles
from openfed.pki.keys import create_identity_key, create_key
from openfed.pki.leaf import Identity, inspect
from openfed.pki.request import create_request
from openfed.transport import probe
from openfed.transport.environment import grpc
from openfed.transport.grpc import SERVICE, GrpcLink, serve
from openfed.transport.probe import diagnose
from openfed.wire.convert import encode
from openfed.wire.messages import Hello, RunState, Stamp, Welcome
from tests.e2e.faults import raw_server

HELLO = Hello(Stamp("fed", "", "d" * 64, "op"))
DAY = 86400.0
PROFILES = load_profiles()
OURS, THEIRS = create_authority("fed", time.time()), create_authority("fed", time.time())


def identity(role="collaborator", name="one", *, by=OURS, age=0.0, profile=None) -> Identity:
    """A node with a certificate `age` seconds old, that trusts who certified it."""
    profile = profile or PROFILES[role]
    hosts = ("localhost",) if "server_auth" in profile.usages else ()
    federation = inspect(by.certificate).federation
    key, now = create_key(profile.key), time.time() - age
    request = create_request(name, key, create_identity_key())
    leaf = issue(by, request, Enrolment(federation, role, name, hosts), profile, now)
    return Identity(key, leaf, by.certificate, inspect(leaf))


def trusting(node: Identity, *authorities) -> Identity:
    """As if its operator had added those authorities to the node's own."""
    added = b"".join(authority.certificate for authority in authorities)
    return replace(node, authority_pem=node.authority_pem + added)


AGGREGATOR, ONE, TWO = identity("aggregator", "aggregator"), identity(), identity(name="two")


class Service:
    """Answers a hello; nothing else is reached here."""

    async def hello(self, peer, hello):
        return Welcome(HELLO.stamp, RunState.RUNNING, 1.0)

    next = report = renew = pull = push_offset = push_blocks = hello


@asynccontextmanager
async def aggregator(node=AGGREGATOR):
    async with serve(Service(), node, "127.0.0.1:0") as server:
        yield server.port


async def greet(port, node, **options):
    """One call by an openfed collaborator."""
    link = GrpcLink(f"localhost:{port}", node, **options)
    try:
        return await asyncio.wait_for(link.hello(HELLO), 20)
    finally:
        await link.close()


async def greet_without_probe(port, node):
    """One call over a channel alone, as if the probe had been deceived."""
    credentials = grpc.ssl_channel_credentials(node.authority_pem, node.key_pem, node.chain_pem)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        return await channel.unary_unary(f"/{SERVICE}/Hello")(encode(HELLO), timeout=10)


def refusal(port, node, **options):
    async def main():
        with pytest.raises(OpenFedError) as caught:
            await greet(port, node, **options)
        return caught.value

    return asyncio.run(main())


def context_of(node, tmp_path, side, **options) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if node:
        path = tmp_path / "node.pem"
        path.write_bytes(node.chain_pem + node.key_pem)
        context.load_cert_chain(path)
    for option, value in options.items():
        setattr(context, option, value)
    return context


def raw_call(port, context) -> bytes:
    """What a server says first to a client of plain sockets; b"" when it hangs up."""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain) as tls,
    ):
        try:
            return tls.recv(100)
        except (ConnectionResetError, ssl.SSLError):
            return b""


def tls_server(node, tmp_path, **options):
    context = context_of(node, tmp_path, ssl.PROTOCOL_TLS_SERVER, **options)

    def talk(connection):
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # HTTP/2 settings
            while tls.recv(4096):
                pass

    return raw_server(talk)


@pytest.fixture
def log(capfd):
    """Waits until the server's standard error says something."""
    seen = []

    async def log(pattern):
        async with asyncio.timeout(10):
            while not re.search(pattern, "".join(seen)):
                seen.append(capfd.readouterr().err)
                await asyncio.sleep(0.01)

    return log


# -- the aggregator is attacked --------------------------------------------------------------------

NOT_OURS = "unable to get local issuer certificate"
ATTACKERS = {
    "no certificate": (None, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    "another authority's": (identity(by=THEIRS), NOT_OURS),
    "an aggregator's": (AGGREGATOR, "unsupported certificate purpose"),
    "expired": (identity(age=31 * DAY), "certificate has expired"),
    "not yet valid": (identity(age=-DAY), "certificate is not yet valid"),
}


def test_a_peer_of_the_federation_is_answered(tmp_path):
    async def main():
        context = context_of(ONE, tmp_path, ssl.PROTOCOL_TLS_CLIENT)
        async with aggregator() as port:
            assert await asyncio.to_thread(raw_call, port, context)
            assert (await greet(port, ONE)).state is RunState.RUNNING
            assert await greet_without_probe(port, ONE)

    asyncio.run(main())


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_a_peer_without_a_good_certificate_is_hung_up_on(attacker, tmp_path, log):
    node, message = ATTACKERS[attacker]

    async def main():
        context = context_of(node, tmp_path, ssl.PROTOCOL_TLS_CLIENT)
        async with aggregator() as port:
            assert await asyncio.to_thread(raw_call, port, context) == b""
            await log(message)

    asyncio.run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_tls_1_3_is_spoken(version, tmp_path, log):
    async def main():
        context = context_of(
            ONE, tmp_path, ssl.PROTOCOL_TLS_CLIENT, maximum_version=version, minimum_version=version
        )
        async with aggregator() as port:
            if version is ssl.TLSVersion.TLSv1_3:
                assert await asyncio.to_thread(raw_call, port, context)
            else:
                with pytest.raises((ssl.SSLError, ConnectionResetError)):
                    await asyncio.to_thread(raw_call, port, context)
                await log("NO_SHARED_CIPHER")

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
@pytest.mark.parametrize(("flag", "spoken"), [("-tls1_2", False), ("-tls1_3", True)])
def test_only_tls_1_3_is_spoken_to_openssl(flag, spoken, tmp_path):
    path = tmp_path / "node.pem"
    path.write_bytes(ONE.chain_pem + ONE.key_pem)

    async def main():
        async with aggregator() as port:
            command = ["openssl", "s_client", flag, "-alpn", "h2", "-cert", path, "-key", path]
            return await asyncio.to_thread(
                subprocess.run,
                [*command, "-connect", f"127.0.0.1:{port}"],
                input=b"",
                capture_output=True,
                timeout=20,
            )

    done = asyncio.run(main())
    assert (b"Cipher is TLS_AES" in done.stdout) == spoken, done.stdout + done.stderr
    assert (b"Cipher is (NONE)" in done.stdout) != spoken


@pytest.mark.parametrize(
    "words",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), b"GET / HTTP/1.1\r\n\r\n"],
    ids=["http/2", "http/1"],
)
def test_a_plaintext_client_is_hung_up_on(words, log):
    def talk(port):
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            plain.sendall(words)
            try:
                return plain.recv(100)
            except ConnectionResetError:
                return b""

    async def main():
        async with aggregator() as port:
            found = await asyncio.to_thread(talk, port)
            assert found == b"" or found[:1] == b"\x15"  # a TLS alert is no answer either
            await log("WRONG_VERSION_NUMBER|BAD_PACKET_LENGTH|HTTP_REQUEST")

    asyncio.run(main())


def test_a_role_that_may_not_call_is_refused_by_name(caplog):
    evaluator = identity("evaluator", "eve", profile=PROFILES["collaborator"])

    async def main():
        async with aggregator() as port:
            with pytest.raises(CertificateError, match="^C09 .*evaluator 'eve'"):
                await greet(port, evaluator)

    asyncio.run(main())
    assert "refused: C09" in caplog.text


def test_a_peer_of_another_federation_is_refused_by_name():
    """Even if one authority served two federations."""
    other = replace(AGGREGATOR, peer=replace(AGGREGATOR.peer, federation="other"))

    async def main():
        async with aggregator(other) as port:
            with pytest.raises(CertificateError, match="^C16 .*'one'.*'other'"):
                await greet(port, ONE)

    asyncio.run(main())


# -- the collaborator is attacked, or misled -------------------------------------------------------


def with_aggregator(node, visitor, **options):
    async def main():
        async with aggregator(node) as port:
            with pytest.raises(OpenFedError) as caught:
                await greet(port, visitor, **options)
            return caught.value

    return asyncio.run(main())


ELSEWHERE = create_authority("elsewhere", time.time())
MISLED = {
    "another authority's server": (
        "C21",
        "not issued by our authority",
        identity("aggregator", "aggregator", by=THEIRS),
        ONE,
    ),
    "expired server": (
        "C20",
        "expired",
        identity("aggregator", "aggregator", age=31 * DAY),
        ONE,
    ),
    "server of tomorrow": (
        "C20",
        "not yet valid",
        identity("aggregator", "aggregator", age=-DAY),
        ONE,
    ),
    "server of another federation": (
        "C23",
        "'elsewhere'",
        identity("aggregator", "aggregator", by=ELSEWHERE),
        trusting(ONE, ELSEWHERE),
    ),
    "a server that does not know us": (
        "C24",
        "refuses the certificate of collaborator 'one'",
        AGGREGATOR,
        trusting(identity(by=THEIRS), OURS),
    ),
    "own certificate expired": ("C05", "expired", AGGREGATOR, identity(age=31 * DAY)),
    "own key of another certificate": (
        "C10",
        "private key",
        AGGREGATOR,
        replace(ONE, key_pem=TWO.key_pem),
    ),
}


@pytest.mark.parametrize("case", MISLED)
def test_a_collaborator_is_told_why_it_cannot_connect(case):
    code, words, server, visitor = MISLED[case]
    error = with_aggregator(server, visitor)
    assert isinstance(error, CertificateError)
    assert (error.code, words in error.message) == (code, True), error


def test_a_name_that_the_certificate_lacks_is_told_with_those_it_has():
    error = with_aggregator(AGGREGATOR, ONE, server_name="other.example")
    assert error.code == "C22"
    assert "'other.example'; it names localhost" in error.message


@pytest.mark.parametrize(
    "impostor", [TWO, identity("evaluator", "eve", profile=PROFILES["aggregator"])]
)
def test_another_nodes_certificate_does_not_make_an_aggregator(impostor, tmp_path):
    """A collaborator's lacks the usage; a role that may listen still is not the aggregator."""
    with tls_server(impostor, tmp_path) as port:
        error = refusal(port, ONE)
    assert error.code == "C23"
    assert repr(impostor.peer.name) in error.message


def test_a_collaborators_certificate_is_refused_as_a_server_without_the_probe_too(tmp_path):
    async def main(port):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await greet_without_probe(port, ONE)
        assert "unsupported certificate purpose" in caught.value.details()

    with tls_server(TWO, tmp_path) as port:
        asyncio.run(main(port))


def test_a_server_of_tls_1_2_is_refused_by_probe_and_channel(tmp_path):
    async def main(port):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await greet_without_probe(port, ONE)
        assert "HANDSHAKE_FAILURE" in caught.value.details()

    with tls_server(AGGREGATOR, tmp_path, maximum_version=ssl.TLSVersion.TLSv1_2) as port:
        error = refusal(port, ONE)
        asyncio.run(main(port))
    assert (error.code, error.permanent) == ("T08", True)


@pytest.mark.parametrize(
    "words",
    [bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"],
    ids=["http/2", "http/1", "ssh"],
)
def test_a_plaintext_server_is_named(words):
    def talk(connection):
        connection.sendall(words)
        connection.recv(4096)

    with raw_server(talk) as port:
        error = refusal(port, ONE)
    assert (error.code, error.permanent) == ("T07", True)


def test_a_tls_server_of_something_else_is_named(tmp_path):
    context = context_of(AGGREGATOR, tmp_path, ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])

    def talk(connection):
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(10)

    with raw_server(talk) as port:
        error = refusal(port, ONE)
    assert (error.code, error.permanent) == ("T10", True)


def test_a_server_that_only_hangs_up_may_come_back():
    with raw_server(lambda connection: None) as port:
        error = refusal(port, ONE)
    assert (error.code, error.permanent) == ("T09", False)


def test_an_aggregator_that_is_going_down_is_not_one_that_refuses_us(tmp_path):
    """Both hang up after the handshake; only one of them is still there a moment later."""
    context = context_of(AGGREGATOR, tmp_path, ssl.PROTOCOL_TLS_SERVER)
    calls = []

    def talk(connection):
        calls.append(connection)
        if len(calls) == 1:
            context.wrap_socket(connection, server_side=True).close()

    with raw_server(talk) as port:
        error = refusal(port, ONE)
    assert (error.code, error.permanent, len(calls)) == ("T09", False, 2)


def test_a_silent_server_is_given_up(monkeypatch):
    monkeypatch.setattr(probe, "PATIENCE_S", 0.2)
    with raw_server(lambda connection: connection.recv(1 << 20) and connection.recv(1)) as port:
        error = refusal(port, ONE)
    assert (error.code, error.permanent) == ("T06", False)


def test_a_closed_port_and_a_name_that_is_none_may_come_back():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = diagnose(f"localhost:{port}", ONE, time.time())
    assert isinstance(error, TransportError)
    assert (error.code, error.permanent) == ("T05", False)
    error = diagnose("nobody.invalid:50051", ONE, time.time())
    assert isinstance(error, TransportError)
    assert (error.code, error.permanent) == ("T04", False)


def test_proxies_of_the_environment_are_ignored(monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def main():
        async with aggregator() as port:
            assert (await greet(port, ONE)).state is RunState.RUNNING

    asyncio.run(main())
