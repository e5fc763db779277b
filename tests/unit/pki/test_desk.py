"""Renewal at the authority's desk: who may ask, what is answered, what a bad asker can do."""

import asyncio
import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from openfed.errors import CertificateError
from openfed.pki import desk
from openfed.pki.authority import Enrolment
from openfed.pki.desk import renew_at_desk, serve_desk
from openfed.pki.files import create_keys, install, load_identity, make_request
from openfed.pki.leaf import inspect, leaf_hosts
from openfed.pki.office import create_office, open_office


def refused(code):
    return pytest.raises(CertificateError, match=f"^{code} ")


@pytest.fixture
def office(tmp_path):
    create_office(tmp_path / "cert", "fed", time.time())
    return open_office(tmp_path / "cert")


@pytest.fixture
def path(tmp_path):
    return tmp_path / ("deep" * 40) / "authority.sock"  # longer than a socket's address may be


def certified(office, folder, name="one", role="collaborator", hosts=()):
    create_keys(folder, name)
    enrolment = Enrolment("fed", role, name, hosts)
    chain = office.certify(make_request(folder, name), enrolment, time.time())
    install(folder, name, chain, office.anchors())
    return load_identity(folder, name).peer


def with_desk(office, path, work, **options):
    """Runs the coroutine `work()` while the desk is served; its result, and what the desk said."""
    said = []

    async def main():
        async with serve_desk(
            lambda: open_office(office.cert_dir), path, said=said.append, **options
        ):
            return await work()

    return asyncio.run(main()), said


async def sent(path, data):
    """What the desk answers to these bytes."""
    connection = await desk._connect(path)
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def test_a_collaborator_is_renewed_for_the_same_name_and_trusts_the_same_roots(
    office, path, tmp_path
):
    site = tmp_path / "site"
    peer = certified(office, site)
    renewed, said = with_desk(
        office, path, lambda: renew_at_desk(path, make_request(site, "one"), peer)
    )
    found = inspect(renewed.chain)
    assert (found.name, found.role) == ("one", "collaborator") and found.serial != peer.serial
    assert renewed.anchors == office.anchors()
    install(site, "one", renewed.chain, renewed.anchors)
    assert load_identity(site, "one").peer == found
    assert said == ["renewed collaborator 'one'"]
    assert [each.how for each in office.nodes()[0].issued] == ["hand", "renewal"]


def test_the_aggregator_renews_its_own_leaf_with_its_hosts(office, path, tmp_path):
    peer = certified(office, tmp_path / "cert", "aggregator", "aggregator", ("localhost", "::1"))
    request = make_request(tmp_path / "cert", "aggregator")
    renewed, _ = with_desk(office, path, lambda: renew_at_desk(path, request, peer))
    assert inspect(renewed.chain).role == "aggregator"
    assert leaf_hosts(renewed.chain) == {"localhost", "::1"}


def test_after_a_roll_over_a_renewal_brings_both_roots(office, path, tmp_path):
    site = tmp_path / "site"
    peer = certified(office, site)
    office.roll_over(time.time())
    renewed, _ = with_desk(
        office, path, lambda: renew_at_desk(path, make_request(site, "one"), peer)
    )
    install(site, "one", renewed.chain, renewed.anchors)
    assert renewed.anchors == office.anchors() and renewed.anchors.count(b"BEGIN") == 2


@pytest.mark.parametrize(
    "change",
    [{"name": "two"}, {"role": "aggregator"}, {"federation": "other"}, {"serial": 5}],
)
def test_what_the_office_refuses_is_answered_with_its_code_and_said(office, path, tmp_path, change):
    site = tmp_path / "site"
    peer = dataclasses.replace(certified(office, site), **change)
    certified(office, tmp_path / "second", "two")

    async def work():
        with refused(r"C\d\d"):
            await renew_at_desk(path, make_request(site, "one"), peer)

    _, said = with_desk(office, path, work)
    assert len(said) == 1 and said[0].startswith("refused to renew: C")
    assert all(len(node.issued) == 1 for node in office.nodes())


def test_a_revoked_node_and_another_identity_are_not_renewed(office, path, tmp_path):
    site, other = tmp_path / "site", tmp_path / "other"
    peer = certified(office, site)
    create_keys(other, "one")

    async def work():
        with refused("C3."):
            await renew_at_desk(path, make_request(other, "one"), peer)
        office.revoke("one", "", time.time())
        with refused("C.."):
            await renew_at_desk(path, make_request(site, "one"), peer)

    with_desk(office, path, work)
    assert len(office.nodes()[0].issued) == 1


def test_an_authority_that_is_away_is_said_to_be_offline(office, path, tmp_path):
    peer = certified(office, tmp_path / "site")
    request = make_request(tmp_path / "site", "one")
    with refused("C57"):  # nobody was ever there
        asyncio.run(renew_at_desk(path, request, peer))
    with_desk(office, path, lambda: renew_at_desk(path, request, peer))
    with refused("C57"):  # it went
        asyncio.run(renew_at_desk(path, request, peer))
    leave_socket_behind(path)
    with refused("C57"):  # it was killed
        asyncio.run(renew_at_desk(path, request, peer))
    with_desk(office, path, lambda: renew_at_desk(path, request, peer))


def leave_socket_behind(path):
    with socket.socket(socket.AF_UNIX) as left, desk._address(path) as address:
        left.bind(address)
    assert path.exists()


def test_the_socket_is_ours_alone_and_goes_with_the_desk(office, path):
    async def work():
        return stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)

    before = os.umask(0)
    try:
        modes, _ = with_desk(office, path, work)
    finally:
        os.umask(before)
    assert modes == (0o600, 0o700)
    assert not path.exists()


def test_a_folder_that_others_can_enter_is_refused(office, path):
    path.parent.mkdir(mode=0o755)
    with refused("C11"):
        with_desk(office, path, lambda: asyncio.sleep(0))


def test_two_desks_do_not_share_a_socket(office, path, tmp_path):
    peer = certified(office, tmp_path / "site")
    request = make_request(tmp_path / "site", "one")

    async def work():
        with refused("C66"):
            async with serve_desk(lambda: office, path):
                pass
        return await renew_at_desk(path, request, peer)

    assert with_desk(office, path, work)[0].chain


PEER = {"federation": "fed", "role": "collaborator", "name": "one", "serial": "5", "not_after": 1}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"\xff\n",
        b"[]\n",
        b"{}\n",
        b"[" * 30000 + b"\n",
        b"x" * 40000 + b"\n",
        json.dumps({"csr": "x", "identity": "x", "signature": "x", "peer": PEER}).encode() + b"\n",
        *(
            json.dumps(
                {"csr": "x", "identity": "0" * 64, "signature": "0" * 128, "peer": PEER | change}
            ).encode()
            + b"\n"
            for change in (
                {"name": "../x"},
                {"serial": "x"},
                {"serial": 5},
                {"serial": "1" * 100},
                {"not_after": "now"},
                {"not_after": True},
                {"more": 1},
            )
        ),
    ],
)
def test_what_is_no_request_is_refused_and_the_desk_goes_on(office, path, tmp_path, line):
    peer = certified(office, tmp_path / "site")

    async def work():
        answer = json.loads(await sent(path, line))
        await renew_at_desk(path, make_request(tmp_path / "site", "one"), peer)
        return answer

    answer, _ = with_desk(office, path, work)
    assert answer["code"] == "C61"


def test_an_asker_who_never_ends_his_line_holds_nobody_up(office, path, tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "PATIENCE_S", 1.0)
    peer = certified(office, tmp_path / "site")

    async def work():
        slow = asyncio.create_task(sent(path, b"{"))
        gone = await desk._connect(path)
        gone.close()
        await renew_at_desk(path, make_request(tmp_path / "site", "one"), peer)
        return await slow

    assert with_desk(office, path, work)[0] == b""


ASK = """
import asyncio, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3].split(os.pathsep)
from openfed.pki import desk
os.setuid(int(sys.argv[2]))
async def main():
    connection = await desk._connect(Path(sys.argv[1]))
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(b"{}\\n")
    print((await reader.read()).decode())
    writer.close()
asyncio.run(main())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("allowed", "code"), [(None, "C65"), (12345, "C61"), (54321, "C65")])
def test_another_user_is_refused_unless_the_desk_was_told_of_him(office, allowed, code):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        assert asked_by_another_user(office, Path(folder), allowed)["code"] == code


def asked_by_another_user(office, folder, allowed):
    path = folder / "authority.sock"

    async def work():
        folder.chmod(0o755)  # a careless operator: the kernel's word is what is left
        path.chmod(0o666)
        asking = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            ASK,
            str(path),
            "12345",
            os.pathsep.join(sys.path),
            stdout=subprocess.PIPE,
        )
        return json.loads((await asking.communicate())[0])

    return with_desk(office, path, work, uid=allowed)[0]
