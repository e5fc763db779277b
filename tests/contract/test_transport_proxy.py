"""Through the site's own proxy: all calls, nothing else, and every way in which a proxy fails."""

import asyncio
import socket
import threading
import time
from base64 import b64encode
from contextlib import asynccontextmanager, contextmanager

import pytest

from openfed.errors import CODES, TransportError
from openfed.parse import Proxy, parse_proxy
from openfed.pki.files import ensure_federation, load_identity
from openfed.transport import probe
from openfed.transport import proxy as way
from openfed.transport.grpc import GrpcLink, serve
from openfed.transport.retry import Policy, retrying
from openfed.wire.messages import (
    Hello,
    Next,
    Orders,
    Pull,
    Push,
    Report,
    Ruling,
    RunState,
    Stamp,
    Verdict,
    Welcome,
)

STAMP = Stamp("fed", "run-1", "d" * 64, "op-1")
DIGEST = "e" * 64
NAME = "aggregator.invalid"
SECRET, BLOCK = b"this is what nobody on the way may read ", 1 << 20
PASSWORD = "o:p@n/se%same"


class Service:
    def __init__(self):
        self.stored = bytearray()

    async def hello(self, peer, hello):
        return Welcome(STAMP, RunState.RUNNING, 1.0)

    async def next(self, peer, next):
        return Orders(STAMP, RunState.RUNNING, "", 1.0)

    async def pull(self, peer, pull):
        for _ in range(2):
            yield SECRET * (BLOCK // len(SECRET))

    async def push_offset(self, peer, push):
        return 0

    async def push_blocks(self, peer, push, offset, blocks):
        async for block in blocks:
            self.stored += block

    async def report(self, peer, report):
        return Verdict(STAMP, Ruling.ACCEPTED)

    async def renew(self, peer, renew):
        raise NotImplementedError


@pytest.fixture(scope="module")
def cert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxied")
    ensure_federation(folder, "fed", (NAME, "127.0.0.1"), ("one", "two"), time.time())
    return folder


@asynccontextmanager
async def aggregator(cert, port=0):
    service = Service()
    identity = load_identity(cert, "aggregator")
    async with serve(service, identity, f"127.0.0.1:{port}") as server:
        yield service, server.port


@asynccontextmanager
async def linked(cert, address, proxy):
    link = GrpcLink(address, load_identity(cert, "one"), proxy=proxy)
    try:
        yield link
    finally:
        await link.close()


def settings(proxy, user="", password=""):
    return Proxy("localhost", proxy.port, user, password)


async def everything(link, service):
    """Each kind of call once."""

    async def blocks(offset):
        yield SECRET * (BLOCK // len(SECRET))

    async def said():
        return Report(STAMP, "ask", DIGEST, BLOCK)

    async with asyncio.timeout(30):
        assert (await link.hello(Hello(STAMP))).state is RunState.RUNNING
        assert (await link.next(Next(STAMP, 1.0))).state is RunState.RUNNING
        pulled = [bytes(block) async for block in link.pull(Pull(STAMP, DIGEST))]
        assert b"".join(pulled) == 2 * (SECRET * (BLOCK // len(SECRET)))
        verdict = await link.push(Push(STAMP, "ask", "upload"), blocks, said)
        assert verdict.ruling is Ruling.ACCEPTED
        assert service.stored == SECRET * (BLOCK // len(SECRET))
        assert (await link.report(await said())).ruling is Ruling.ACCEPTED


@pytest.mark.parametrize("host", [NAME, "127.0.0.1"])
def test_every_call_goes_through_the_proxy_which_cannot_read_it(cert, http_proxy, host):
    async def main():
        async with aggregator(cert) as (service, port):
            async with linked(cert, f"{host}:{port}", settings(proxy)) as link:
                await everything(link, service)
            return f"{host}:{port}"

    with http_proxy() as proxy:
        target = asyncio.run(main())
    assert proxy.targets == [target] * 2  # the probe, then the one connection for all calls
    assert all(head.startswith(b"CONNECT ") for head in proxy.asked)
    assert len(proxy.seen) > 3 * BLOCK
    assert SECRET not in proxy.seen and b"openfed.v1.Federation" not in proxy.seen


def test_a_renewed_certificate_goes_the_same_way(cert, http_proxy):
    async def main():
        async with (
            aggregator(cert) as (_, port),
            linked(cert, f"{NAME}:{port}", settings(proxy)) as link,
        ):
            await link.hello(Hello(STAMP))
            link.show(load_identity(cert, "two"))
            await link.hello(Hello(STAMP))

    with http_proxy() as proxy:
        asyncio.run(main())
    assert len(proxy.asked) == 3


def test_a_user_and_a_password_are_shown_to_the_proxy_alone(cert, http_proxy):
    async def main():
        async with aggregator(cert) as (service, port):
            known = settings(proxy, "mill", PASSWORD)
            async with linked(cert, f"{NAME}:{port}", known) as link:
                await everything(link, service)

    basic = b64encode(f"mill:{PASSWORD}".encode()).decode()
    with http_proxy(known=f"Basic {basic}") as proxy:
        asyncio.run(main())
    assert len(proxy.asked) == 2
    assert basic.encode() not in proxy.seen and PASSWORD.encode() not in proxy.seen


def test_what_the_environment_says_changes_nothing(cert, http_proxy, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, f"*,{NAME},127.0.0.1,localhost")

    async def main():
        async with aggregator(cert) as (service, port):
            for host in (NAME, "127.0.0.1"):
                service.stored.clear()
                async with linked(cert, f"{host}:{port}", settings(proxy)) as link:
                    await everything(link, service)

    with http_proxy() as proxy:
        asyncio.run(main())
    assert len(proxy.asked) == 4


def test_without_a_proxy_in_site_yaml_none_is_asked(cert, http_proxy, monkeypatch):
    async def main():
        async with (
            aggregator(cert) as (service, port),
            linked(cert, f"127.0.0.1:{port}", None) as link,
        ):
            await everything(link, service)

    with http_proxy() as proxy:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        asyncio.run(main())
    assert not proxy.asked


def test_a_proxy_that_is_restarted_is_found_again(cert, http_proxy):
    told = []

    async def main():
        async with aggregator(cert) as (_, port):
            with http_proxy() as first:
                link = GrpcLink(f"{NAME}:{port}", load_identity(cert, "one"), proxy=settings(first))
                await link.hello(Hello(STAMP))
            with pytest.raises(TransportError, match="^T15 .*nothing listens there") as caught:
                await link.hello(Hello(STAMP))
            assert not caught.value.permanent
            with http_proxy(first.port) as second:

                async def pause(seconds):
                    told.append(seconds)
                    await asyncio.sleep(min(seconds, 0.2))

                patient = retrying(link, Policy(), sleep=pause)
                await patient.hello(Hello(STAMP))
                await link.close()
            assert second.asked

    asyncio.run(main())


# -- faults ----------------------------------------------------------------------------------------

WAYS = b"HTTP/1.1 407 no\r\nProxy-Authenticate: %b\r\n\r\n"
ANSWERS = {
    # fault: (what the proxy answers, user and password, code, permanent, words)
    "hangs up": (b"", (), "T15", False, "closed the connection without an answer"),
    "a refusal": (b"HTTP/1.1 403 Forbidden\r\n\r\n", (), "T16", True, "403 'Forbidden'"),
    "no CONNECT": (b"HTTP/1.0 405 \r\n\r\n", (), "T16", True, f"refuses to connect to {NAME}:"),
    "no method": (b"HTTP/1.1 501 Not Implemented\r\n\r\n", (), "T16", True, "501"),
    "elsewhere": (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n", (), "T16", True, "302"),
    "nobody given": (WAYS % b"Basic", (), "T17", True, "and site.yaml has none"),
    "another given": (WAYS % b"basic", ("me", "wrong"), "T17", True, "does not accept"),
    "other ways": (WAYS % b"NTLM", ("me", "wrong"), "T17", True, "by 'NTLM'; openfed can only"),
    "too many headers": (WAYS % (b"x\r\n" + b"a: b\r\n" * 200), (), "T17", True, "has none"),
    "no target": (b"HTTP/1.1 503 Down\r\n\r\n", (), "T06", False, "cannot reach it (503 'Down')"),
    "bad gateway": (b"HTTP/1.1 502 Bad\x1b[1m\r\n\r\n", (), "T06", False, "'Bad\\x1b[1m'"),
    "a mail server": (b"220 mail.example ESMTP\r\n", (), "T18", True, "'220 mail.example"),
    "a line without end": (b"HTTP/1.1 200 OK" + b"x" * (1 << 17), (), "T18", True, "no HTTP proxy"),
    "cut short": (b"HTTP/1.1 200 OK\r\nVia: x", (), "T18", True, "no HTTP proxy"),
    "another protocol": (b"\x15\x03\x03\x00\x02\x02\x46", (), "T18", True, "\\x15\\x03"),
    "not a status": (b"HTTP/1.1 2000 OK\r\n\r\n", (), "T18", True, "2000"),
}


def refusal(cert, proxy, address=f"{NAME}:50051"):
    """What a first call ends with: within seconds, and without a word of the password."""

    async def main():
        async with linked(cert, address, proxy) as link:
            with pytest.raises(TransportError) as caught:
                await link.hello(Hello(STAMP))
            return caught.value

    begun = time.monotonic()
    error = asyncio.run(main())
    assert time.monotonic() - begun < 2 * 10
    assert "wrong" not in f"{error!r} {error}" and "Authorization" not in str(error)
    return error


@pytest.mark.parametrize("fault", ANSWERS)
def test_what_a_proxy_answers_is_named(cert, http_proxy, fault):
    answer, known, code, permanent, words = ANSWERS[fault]
    with http_proxy(answer=answer) as proxy:
        error = refusal(cert, settings(proxy, *known))
    assert (error.code, error.permanent) == (code, permanent), error
    assert words in error.message and f"http://localhost:{proxy.port}" in error.message
    assert len(proxy.asked) == 1
    assert CODES[code].remedy


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_a_proxy_that_is_not_there_may_come_back(cert):
    error = refusal(cert, Proxy("localhost", free_port(), "me", "wrong"))
    assert (error.code, error.permanent) == ("T15", False)
    error = refusal(cert, Proxy("nobody.invalid", 3128))
    assert (error.code, error.permanent) == ("T15", False)
    assert "'nobody.invalid' does not resolve" in error.message


@contextmanager
def slow_server(*pieces):
    """Says these, then nothing more, and never hangs up by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk():
            with listener.accept()[0] as connection:
                for piece in pieces:
                    connection.sendall(piece)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=talk, daemon=True)  # whoever fails to hang up
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("pieces", [(), (b"HTTP/1.1 200", b" OK\r\n")])
def test_a_proxy_that_does_not_come_to_an_end_is_given_up(cert, monkeypatch, pieces):
    monkeypatch.setattr(probe, "PATIENCE_S", 0.2)
    with slow_server(*pieces) as port:
        error = refusal(cert, Proxy("127.0.0.1", port))
    assert (error.code, error.permanent) == ("T06", False)
    assert "has not connected to it in time" in error.message


def test_an_aggregator_that_is_not_up_is_waited_for(cert, http_proxy):
    with http_proxy() as proxy:
        error = refusal(cert, settings(proxy), f"{NAME}:{free_port()}")
    assert (error.code, error.permanent) == ("T06", False)


def test_a_proxy_that_opens_tls_is_not_taken_for_the_aggregator(cert, http_proxy, tmp_path):
    ensure_federation(tmp_path, "fed", (NAME,), ("one",), time.time())

    async def main():
        async with aggregator(tmp_path) as (_, port):
            proxy.instead = port
            async with linked(cert, f"{NAME}:50051", settings(proxy)) as link:
                with pytest.raises(Exception, match="^C21 .*not issued by our authority"):
                    await link.hello(Hello(STAMP))

    with http_proxy() as proxy:
        asyncio.run(main())


def test_the_channel_itself_insists_on_the_dialled_name(cert, http_proxy, monkeypatch):
    """Without the probe: the certificate must name the aggregator, not the proxy."""

    async def main():
        async with aggregator(cert) as (_, port):
            proxy.instead = port
            for host, works in ((NAME, True), ("other.invalid", False)):
                async with linked(cert, f"{host}:{port}", settings(proxy)) as link:
                    link._verified = True
                    if works:
                        await link.hello(Hello(STAMP))
                    else:
                        with pytest.raises(Exception, match="^C22 .*'other.invalid'"):
                            await link.hello(Hello(STAMP))

    with http_proxy() as proxy:
        asyncio.run(main())
    assert {target.partition(":")[0] for target in proxy.targets} == {NAME, "other.invalid"}


def test_a_straight_connection_is_one():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = way.connect("127.0.0.1", listener.getsockname()[1], 5.0)
        there, _ = listener.accept()
        with here, there:
            assert here.getpeername() == there.getsockname()
            assert here.gettimeout() == 5.0


def test_what_comes_with_the_proxys_answer_is_left_to_be_read(http_proxy):
    with (
        http_proxy(answer=b"HTTP/1.1 200 OK\r\nVia: ward\r\n\r\nfirst") as proxy,
        way.connect("x.invalid", 1, 5.0, proxy=settings(proxy)) as here,
    ):
        assert here.recv(9) == b"first" and here.gettimeout() == 5.0


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://p.example:3128", ("p.example", 3128, "", "")),
        ("http://[2001:DB8::7]:80/", ("2001:db8::7", 80, "", "")),
        ("http://me:secret@p:1", ("p", 1, "me", "secret")),
        ("http://me@p:1", ("p", 1, "me", "")),
        ("http://ward%5Cme:o%3Ap%40n%2Fse%25same@p:1", ("p", 1, "ward\\me", PASSWORD)),
        ("http://me:a@b@p:1", ("p", 1, "me", "a@b")),
        ("http://m%C3%BCller:gr%C3%BCn@p:1", ("p", 1, "müller", "grün")),
    ],
)
def test_urls_of_proxies_are_read(url, told):
    found = parse_proxy(url)
    assert (found.host, found.port, found.user, found.password) == told
    shown = f"{found} {found!r}"
    assert not found.password or found.password not in shown
    assert str(found) in ("http://p.example:3128", "http://[2001:db8::7]:80", "http://p:1")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "env",
        "p:3128",
        "https://me:secret@p:3128",
        "socks5://p:1080",
        "http://me:secret@p",
        "http://me:secret@p:0",
        "http://me:secret@p:3128/path",
        "http://me:secret@0.0.0.0:3128",
        "http://me:secret@[::]:3128",
        "http://:secret@p:1",
        "http://me:secret%0d%0aX-Other:%201@p:1",
        "http://me%3A:secret@p:1",
        "http://me:secret%ff@p:1",
        "HTTP://me:secret@p:1",
    ],
)
def test_what_is_no_proxys_url_is_refused_without_quoting_it(url):
    with pytest.raises(ValueError) as caught:
        parse_proxy(url)
    assert "secret" not in str(caught.value) and "expected" in str(caught.value)
