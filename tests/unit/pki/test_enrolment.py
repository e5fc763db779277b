"""Enrolment by token over real TLS on loopback: the whole way, every refusal, and bad company."""

import asyncio
import contextlib
import dataclasses
import http.client
import itertools
import json
import queue
import socket
import ssl
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509

from openfed.errors import CertificateError, OpenFedError, TransportError
from openfed.pki import listener
from openfed.pki.authority import Enrolment, issue_listener
from openfed.pki.disk import load_profiles
from openfed.pki.enrolment import enroll
from openfed.pki.files import create_keys, install, load_identity, load_roster, make_request
from openfed.pki.keys import create_key, load_key
from openfed.pki.leaf import fingerprint, read_certificates
from openfed.pki.listener import keep_enrolment
from openfed.pki.office import create_office, open_office
from openfed.pki.token import mint, token_text
from openfed.pki.token_book import GRACE_S, add_token, withdraw_token

DAY = 86400.0


def refused(code, kind=CertificateError):
    return pytest.raises(kind, match=f"^{code} ")


class Running:
    """The listener in a thread of its own: what it said, where it is, and its clock."""

    def __init__(self, office, listen="127.0.0.1:0", passphrase=None):
        self.office, self.listen, self.ahead = office, listen, 0.0
        self.address = ""
        self._opener = lambda: open_office(office.cert_dir, passphrase)
        self._said, self._loop = queue.Queue(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def now(self):
        return time.time() + self.ahead

    def _run(self):
        with (
            asyncio.Runner(loop_factory=lambda: self._loop) as runner,
            contextlib.suppress(asyncio.CancelledError),
        ):
            runner.run(self._keep())

    async def _keep(self):
        self._task = asyncio.current_task()
        await keep_enrolment(
            self.office.cert_dir, self._opener, self.listen, self._said.put, self.now
        )

    def heard(self, what):
        """Waits until the listener says a line with `what` in it."""
        while what not in (line := self._said.get(timeout=20)):
            pass
        return line

    def open(self):
        self.address = self.heard("enrolment is open at").rpartition(" ")[2]
        return self.address

    def mint(self, name="one", life_s=DAY, address=None, **change):
        token = mint("fed", "collaborator", name, time.time() + life_s, "127.0.0.1:1")
        add_token(self.office, token, self.now())
        where = address or self.address or self.open()
        return dataclasses.replace(token, address=where, **change)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(lambda: self._task.cancel())
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def office(tmp_path):
    create_office(tmp_path / "cert", "fed", time.time())
    return open_office(tmp_path / "cert")


@pytest.fixture
def running(office):
    with Running(office) as running:
        yield running


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def connection_to(address, version=ssl.TLSVersion.TLSv1_3):
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    raw = socket.create_connection((host, int(port)), 20)
    try:
        return context.wrap_socket(raw)
    except BaseException:
        raw.close()
        raise


def asked(address, data):
    """The status and body of the answer to these bytes; None if there is none."""
    with connection_to(address) as tls:
        tls.sendall(data)
        answer = http.client.HTTPResponse(tls)
        try:
            answer.begin()
            return answer.status, answer.read()
        except http.client.RemoteDisconnected:
            return None


def at(server):
    return f"127.0.0.1:{server.getsockname()[1]}"


def refuses_connections(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except ConnectionRefusedError:
        return True
    return False


# -- the whole way -----------------------------------------------------------------------------


def test_a_token_and_a_pin_make_a_certified_node(tmp_path, office, running):
    site, token = tmp_path / "site", running.mint()
    written = enroll(site, token, office.fingerprint(), "fed")
    identity = load_identity(site, "one", federation="fed", role="collaborator")
    assert identity.peer.name == "one"
    assert identity.authority_pem == office.anchors()
    assert load_roster(site).identity("one") == office.nodes()[0].identity
    assert {str(path.relative_to(site)) for path in written} == set(contents(site))
    assert stat.S_IMODE((site / "one" / "node.key").stat().st_mode) == 0o600
    assert "collaborator 'one' of 127.0.0.1" in running.heard("enrolled")


def test_no_secret_is_sent_and_proxies_of_the_environment_are_not_used(
    tmp_path, office, running, monkeypatch
):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sent, token = [], running.mint()
    monkeypatch.setattr(
        http.client.HTTPConnection,
        "send",
        lambda self, data, send=http.client.HTTPConnection.send: (
            sent.append(data),
            send(self, data),
        ),
    )
    enroll(tmp_path / "site", token, office.fingerprint(), "fed")
    sent = b"".join(sent)
    assert b"csr" in sent
    secret = (tmp_path / "site" / "one" / "node.key").read_bytes()
    for each in (token.secret.hex().encode(), token.key.hex().encode(), secret):
        assert each not in sent


def test_an_encrypted_authority_enrols_too(tmp_path):
    create_office(tmp_path / "cert", "fed", time.time(), passphrase=b"correct horse")
    office = open_office(tmp_path / "cert")
    with Running(office, passphrase=b"correct horse") as running:
        enroll(tmp_path / "site", running.mint(), office.fingerprint(), "fed")
    assert load_identity(tmp_path / "site", "one").peer.role == "collaborator"


def test_after_a_lost_answer_the_same_command_gets_the_same_certificate(
    tmp_path, office, running, monkeypatch
):
    site, token, pin = tmp_path / "site", running.mint(), office.fingerprint()
    answered, numbers = http.client.HTTPConnection.getresponse, itertools.count()

    def cut_off(self):
        response = answered(self)
        if next(numbers) == 1:  # the answer to the application
            response.close()
            raise ConnectionResetError("the line was cut")
        return response

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", cut_off)
    with refused("C60", TransportError):
        enroll(site, token, pin, "fed")
    keys = contents(site)
    assert set(keys) == {"one/node.key", "one/identity.key"}, "no half of an answer is kept"
    enroll(site, token, pin, "fed")
    assert keys.items() <= contents(site).items()
    running.heard("answered again collaborator 'one'")
    first = office.nodes()[0].issued
    assert [each.serial for each in first] == [load_identity(site, "one").peer.serial]


def test_two_sites_with_the_same_token_at_the_same_moment_are_one_enrolment(
    tmp_path, office, running
):
    token, pin, begin = running.mint(), office.fingerprint(), threading.Barrier(6)

    def go(number):
        begin.wait()
        try:
            return enroll(tmp_path / str(number), token, pin, "fed") and "enrolled"
        except OpenFedError as error:
            return error.code

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(go, range(6))) == ["C51"] * 5 + ["enrolled"]
    assert len(office.nodes()[0].issued) == 1


@pytest.mark.parametrize("pinned", ["old", "new"])
def test_during_a_roll_over_either_root_is_a_good_pin(tmp_path, office, running, pinned):
    pins = {"old": office.fingerprint()}
    running.mint("zero")  # the port is open with the old root when the new one comes
    office.roll_over(time.time())
    pins["new"] = office.fingerprint()
    deadline, token = time.monotonic() + 20, running.mint("one")
    while True:  # the listener looks twice a second
        try:
            enroll(tmp_path / "site", token, pins[pinned], "fed")
            break
        except CertificateError as error:
            assert error.code == "C59" and time.monotonic() < deadline
    assert len(read_certificates(load_identity(tmp_path / "site", "one").authority_pem)) == 2


# -- refusals ----------------------------------------------------------------------------------


def test_a_wrong_pin_is_refused_before_anything_is_sent_or_written(tmp_path, running, office):
    token = running.mint()
    with refused("C58"):
        enroll(tmp_path / "site", token, "sha256:" + "0" * 64, "fed")
    assert not (tmp_path / "site").exists()
    running.mint("two")
    enroll(tmp_path / "site", token, office.fingerprint(), "fed")
    assert "enrolled" in running.heard("collaborator"), "the first that it heard of the node"


@pytest.mark.parametrize("pin", ["", "sha256:", "0" * 64, "sha256:" + "0" * 63, "sha1:" + "0" * 40])
def test_what_is_no_pin_is_said_to_be_none(tmp_path, pin):
    with refused("C67"):
        enroll(tmp_path, mint("fed", "collaborator", "one", 2e9, "127.0.0.1:1"), pin, "fed")


def test_a_token_of_another_federation_is_refused_here(tmp_path, office, running):
    with refused("C53"):
        enroll(tmp_path / "site", running.mint(), office.fingerprint(), "elsewhere")


def test_what_the_authority_refuses_is_said_to_the_site_and_to_the_operator(
    tmp_path, office, running
):
    pin = office.fingerprint()
    used, withdrawn, brief = running.mint("a"), running.mint("b"), running.mint("c", life_s=100)
    running.mint("open")
    enroll(tmp_path / "first", used, pin, "fed")
    withdraw_token(office, "b", time.time())
    running.ahead = 200.0
    strange = mint("fed", "collaborator", "d", time.time() + DAY, used.address)
    for code, token in {
        "C51": used,
        "C52": brief,
        "C53": dataclasses.replace(used, name="other"),
        "C54": dataclasses.replace(used, ends=used.ends + 9999),
        "C55": withdrawn,
        "C56": strange,
    }.items():
        with refused(code):
            enroll(tmp_path / code, token, pin, "fed")
        assert code in running.heard("refused 127.0.0.1")
        assert set(contents(tmp_path / code)) == {
            f"{token.name}/node.key",
            f"{token.name}/identity.key",
        }


def test_a_site_that_trusts_another_authority_is_left_as_it_is(tmp_path, office, running):
    site = tmp_path / "site"
    create_office(tmp_path / "others", "fed", time.time())
    other = open_office(tmp_path / "others")
    create_keys(site, "one")
    enrolment = Enrolment("fed", "collaborator", "one")
    chain = other.certify(make_request(site, "one"), enrolment, time.time())
    install(site, "one", chain, other.anchors())
    before = contents(site)
    with refused("C38"):
        enroll(site, running.mint(), office.fingerprint(), "fed")
    assert contents(site) == before and not office.nodes()


def test_nobody_there_is_a_fault_of_the_network_unless_the_token_is_over(tmp_path, office):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = at(server)
    token = mint("fed", "collaborator", "one", time.time() + DAY, address)
    with refused("C60", TransportError):
        enroll(tmp_path / "site", token, office.fingerprint(), "fed")
    with refused("C52"):
        enroll(tmp_path / "site", token, office.fingerprint(), "fed", time.time() + 2 * DAY)


# -- who answers -------------------------------------------------------------------------------


@contextlib.contextmanager
def server_with(chain, key, roots, said=b""):
    """A TLS server that hands out `roots` to all, and keeps what else it is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with listener.readable(chain) as chain_path, listener.readable(key) as key_path:
        context.load_cert_chain(chain_path, key_path)
    got, stop = [], threading.Event()

    def talk(tls):
        with tls.makefile("rb") as reader:
            got.append(reader.readline())
            length = http.client.parse_headers(reader).get("Content-Length", "0")
            reader.read(int(length))
        body = roots if got[-1].startswith(b"GET") else said
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def serve():
        while not stop.is_set():
            raw, _ = server.accept()
            raw.settimeout(20)
            with contextlib.suppress(OSError), raw, context.wrap_socket(raw, True) as tls:
                talk(tls)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield at(server), got
        finally:
            stop.set()
            socket.create_connection(server.getsockname(), 5).close()
            thread.join(30)


def leaf_of(office, role, name, folder):
    """A certificate that the authority gave to a node, with serverAuth where roles have it."""
    create_keys(folder, name)
    hosts = ("127.0.0.1",) if role == "aggregator" else ()
    request = make_request(folder, name)
    chain = office.certify(request, Enrolment("fed", role, name, hosts), time.time())
    return chain, (folder / name / "node.key").read_bytes()


@pytest.mark.parametrize("role", ["aggregator", "collaborator"])
def test_a_node_of_the_federation_cannot_pose_as_the_authority(tmp_path, office, role):
    chain, key = leaf_of(office, role, "rogue", tmp_path / "rogue")
    with server_with(chain, key, office.anchors()) as (address, got):
        token = mint("fed", "collaborator", "one", time.time() + DAY, address)
        with refused("C59"):
            enroll(tmp_path / "site", token, office.fingerprint(), "fed")
    assert not any(data.startswith(b"POST") for data in got)


def test_somebody_with_a_copy_of_the_roots_and_an_authority_of_his_own_is_refused(tmp_path, office):
    create_office(tmp_path / "his", "fed", time.time())
    his, key = open_office(tmp_path / "his"), create_key()
    leaf = issue_listener(his.authority, load_key(key).public_key(), time.time())
    with server_with(leaf, key, office.anchors()) as (address, got):
        token = mint("fed", "collaborator", "one", time.time() + DAY, address)
        with refused("C59"):
            enroll(tmp_path / "site", token, office.fingerprint(), "fed")
    assert not any(data.startswith(b"POST") for data in got)


@pytest.mark.parametrize("answer", [b"", b"{}", b"[1]", b'{"code": "C51"}', b"\xff" * 100])
def test_an_authority_that_answers_nonsense_leaves_nothing_behind(tmp_path, office, answer):
    key = create_key()
    leaf = issue_listener(office.authority, load_key(key).public_key(), time.time())
    with server_with(leaf, key, office.anchors(), answer) as (address, _):
        token = mint("fed", "collaborator", "one", time.time() + DAY, address)
        with refused("C64"):
            enroll(tmp_path / "site", token, office.fingerprint(), "fed")
    assert set(contents(tmp_path / "site")) == {"one/node.key", "one/identity.key"}


def test_a_certificate_for_other_keys_or_roots_of_others_are_not_installed(tmp_path, office):
    create_office(tmp_path / "his", "fed", time.time())
    his, key = open_office(tmp_path / "his"), create_key()
    chain, _ = leaf_of(office, "collaborator", "one", tmp_path / "another")
    leaf = issue_listener(office.authority, load_key(key).public_key(), time.time())
    roster = (office.cert_dir / "roster.json").read_text()

    def answer(anchors):
        parts = {"chain": chain.decode(), "anchors": anchors.decode(), "roster": roster}
        return json.dumps(parts).encode()

    for code, anchors in (("C10", office.anchors()), ("C64", his.anchors())):
        with server_with(leaf, key, office.anchors(), answer(anchors)) as (address, _):
            token = mint("fed", "collaborator", "one", time.time() + DAY, address)
            with refused(code):
                enroll(tmp_path / "site", token, office.fingerprint(), "fed")
    assert set(contents(tmp_path / "site")) == {"one/node.key", "one/identity.key"}


def test_the_listeners_certificate_is_short_lived_and_names_no_host(office, running):
    running.mint()
    with connection_to(running.address) as tls:
        assert tls.version() == "TLSv1.3"
        pem = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)).encode()
    leaf = read_certificates(pem)[0]
    assert (leaf.not_valid_after_utc.timestamp() - time.time()) < 3 * DAY
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["openfed://fed/authority/enrolment"]
    assert "authority" not in load_profiles()


# -- the port ----------------------------------------------------------------------------------


def test_an_older_tls_is_refused(running):
    running.mint()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        connection_to(running.address, ssl.TLSVersion.TLSv1_2)


def test_the_roots_are_there_for_all(office, running):
    running.mint()
    status, body = asked(running.address, b"GET /authority HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == (200, office.anchors())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /authority/../authority.key HTTP/1.1\r\n\r\n", 404),
        (b"POST /authority HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 404),
        (b"DELETE /authority HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/authority HTTP/1.1\r\n\r\n", 400),
        (b"GET /authority HTTP/2\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\0" * 20 + b"\r\n\r\n", 400),
        (b"GET /authority HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 400),
        (b"GET /authority HTTP/1.1\r\n" + b"a:b:c:d:e:f\r\n" * 500 + b"\0\r\n\r\n", 400),
        (b"POST /enrol HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /enrol HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 403),
        (b"POST /enrol HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /enrol HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /enrol HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 403),
    ],
)
def test_what_is_no_request_or_too_much_is_refused(running, data, status):
    running.mint()
    begun = time.monotonic()
    assert asked(running.address, data)[0] == status
    assert time.monotonic() - begun < 2 * 5


def test_clients_that_say_nothing_hold_nobody_up_and_are_sent_away(
    tmp_path, office, running, monkeypatch
):
    monkeypatch.setattr(listener, "PATIENCE_S", 1.0)
    token = running.mint()
    host, _, port = running.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((host, int(port)), 20))
        slow = stack.enter_context(connection_to(running.address))
        slow.sendall(b"GET /autho")
        halfway = stack.enter_context(connection_to(running.address))
        halfway.sendall(b"POST /enrol HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        enroll(tmp_path / "site", token, office.fingerprint(), "fed")
        for each in (slow, halfway):
            with contextlib.suppress(ssl.SSLError, OSError):
                assert each.recv(1) == b""


def test_more_connections_than_are_served_at_once_wait_for_their_turn(
    tmp_path, office, monkeypatch
):
    monkeypatch.setattr(listener, "PATIENCE_S", 1.0)
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 4)
    with Running(office) as running, contextlib.ExitStack() as stack:
        token = running.mint()
        host, _, port = running.address.rpartition(":")
        for _ in range(9):
            stack.enter_context(socket.create_connection((host, int(port)), 20))
        enroll(tmp_path / "site", token, office.fingerprint(), "fed")


def test_the_port_is_open_only_while_a_token_is_outstanding(tmp_path, office):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = at(server)
    with Running(office, address) as running:
        assert refuses_connections(address)
        running.mint("one", life_s=500)
        assert not refuses_connections(address)
        running.ahead = 1000.0
        running.heard("enrolment is closed")
        assert refuses_connections(address), "the token expired"
        running.ahead = 0.0
        running.open()
        withdraw_token(office, "one", time.time())
        running.heard("enrolment is closed")
        assert refuses_connections(address), "the token was withdrawn"
        token = running.mint("two", address=address)
        running.open()
        enroll(tmp_path / "site", token, office.fingerprint(), "fed")
        running.ahead = GRACE_S + 1
        running.heard("enrolment is closed")
        assert refuses_connections(address), "the token was used"


def test_a_port_that_is_taken_is_said_once_and_used_when_it_is_free(office):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = at(server)
        with Running(office, address) as running:
            running.mint(address=address)
            assert "trying again" in running.heard("cannot listen")
            server.close()
            assert running.open() == address


def test_the_fingerprint_that_is_pinned_is_that_of_the_root(office):
    assert office.fingerprint() == fingerprint(office.anchors())
    assert token_text(mint("fed", "collaborator", "one", 2e9, "a:1")).startswith("openfed1.")
