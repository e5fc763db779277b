"""What a running node trusts: who is on the roster now, who approved, certificates that live."""

import asyncio
import shutil
import time
from functools import partial

import pytest

from openfed.errors import CertificateError, PolicyError
from openfed.launch import trust
from openfed.launch.trust import LiveRoster, consent, keep_renewed, renewed
from openfed.pki.authority import Enrolment
from openfed.pki.files import (
    create_keys,
    ensure_federation,
    install,
    load_identity,
    load_identity_key,
    make_request,
)
from openfed.pki.office import create_office, open_office
from openfed.plan.approval import sign_digest
from openfed.workspace import Workspace

DIGEST = "d" * 64


class Frozen:
    """As much of a lock as consent looks at."""

    digest = DIGEST


@pytest.fixture
def workspace(tmp_path):
    """An authority that an operator made, and site one of it."""
    workspace = Workspace(tmp_path)
    create_office(workspace.cert, "fed", time.time())
    certify(workspace, "one")
    return workspace


def certify(workspace, name):
    office = open_office(workspace.cert)
    create_keys(workspace.cert, name)
    request = make_request(workspace.cert, name)
    chain = office.certify(request, Enrolment("fed", "collaborator", name), time.time())
    install(workspace.cert, name, chain, office.anchors())
    return load_identity(workspace.cert, name)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(trust, "LOOK_S", 0.0)


def test_whoever_is_revoked_is_denied_while_the_roster_is_being_watched(workspace, at_once):
    roster = LiveRoster(workspace.cert, pytest.fail)
    one = load_identity(workspace.cert, "one").peer
    assert not roster.denied(one)
    open_office(workspace.cert).revoke("one", "left", time.time())
    assert roster.denied(one)


def test_a_site_that_is_enrolled_meanwhile_is_admitted(workspace, at_once):
    roster = LiveRoster(workspace.cert, pytest.fail)
    assert roster.now().identity("two") is None
    two = certify(workspace, "two")
    assert not roster.denied(two.peer) and roster.now().identity("two")


def test_a_damaged_roster_changes_nothing_and_is_said_once(workspace, at_once):
    said = []
    roster = LiveRoster(workspace.cert, said.append)
    open_office(workspace.cert).revoke("one", "left", time.time())
    one = load_identity(workspace.cert, "one").peer
    assert roster.denied(one)
    (workspace.cert / "roster.json").write_text("{}")
    assert roster.denied(one) and roster.denied(one)
    assert len(said) == 1 and "roster" in said[0]


def test_without_a_roster_nobody_is_denied(tmp_path, workspace):
    one = load_identity(workspace.cert, "one").peer
    roster = LiveRoster(tmp_path / "elsewhere", pytest.fail)
    assert roster.now() is None and not roster.denied(one)


def approved(workspace, name, digest=DIGEST):
    key = load_identity_key(workspace.cert, name)
    return sign_digest("approval", digest, "fed", name, key, time.time()).data()


def test_only_a_site_that_approved_this_plan_takes_part(workspace, at_once):
    check = consent(workspace, Frozen, LiveRoster(workspace.cert, pytest.fail))
    one = load_identity(workspace.cert, "one").peer
    check(one, approved(workspace, "one"))
    for approval, code in (
        (b"", "R23"),
        (b"{}", "R22"),
        (approved(workspace, "one", "e" * 64), "R22"),
        (approved(workspace, "one").replace(b'"one"', b'"two"'), "R22"),
    ):
        with pytest.raises(PolicyError, match=f"^{code} "):
            check(one, approval)
    certify(workspace, "two")
    with pytest.raises(PolicyError, match="^R22 "):
        check(one, approved(workspace, "two"))


def test_an_approval_that_cannot_be_verified_does_not_count(workspace, tmp_path):
    elsewhere = Workspace(tmp_path / "elsewhere")
    shutil.copytree(workspace.cert / "one", elsewhere.cert / "one")
    shutil.copy(workspace.cert / "authority.pem", elsewhere.cert)
    check = consent(elsewhere, Frozen, LiveRoster(elsewhere.cert, pytest.fail))
    with pytest.raises(PolicyError, match="^R27 "):
        check(load_identity(workspace.cert, "one").peer, approved(workspace, "one"))


def test_a_trial_on_one_machine_needs_no_approval(tmp_path):
    workspace = Workspace(tmp_path)
    ensure_federation(workspace.cert, "fed", ("localhost",), ("one",), time.time())
    assert consent(workspace, Frozen, LiveRoster(workspace.cert, pytest.fail)) is None
    assert trust.approval(workspace, Frozen, "one") == b""


def short_lived(workspace):
    """Leaves that live a minute."""
    text = "{role}: {{key: P-256, lifetime: 1m, backdate: 0m, usages: [{usage}]}}\n"
    profile = text.format(role="collaborator", usage="client_auth")
    profile += text.format(role="aggregator", usage="server_auth")
    (workspace.cert / "authority" / "profile.yaml").write_text(profile)


def test_a_certificate_is_renewed_at_half_its_life_again_and_again(workspace, monkeypatch):
    """With the clock running sixty times as fast."""
    short_lived(workspace)
    begun, clock = time.time(), time.time
    monkeypatch.setattr(time, "time", lambda: begun + (clock() - begun) * 60)
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real(seconds / 60))
    first = certify(workspace, "one")
    shown, said = [first], []

    async def main():
        enough = asyncio.Event()

        def show(identity):
            shown.append(identity)
            if len(shown) == 4:
                enough.set()

        async def renew(request):
            return await renewed(workspace, workspace.root / "no.sock", request, shown[-1].peer)

        async with trust.beside(
            partial(keep_renewed, workspace.cert, first, renew, show, said.append)
        ):
            await asyncio.wait_for(enough.wait(), 20)

    asyncio.run(main())
    assert len({identity.peer.serial for identity in shown}) == 4
    for before, after in zip(shown, shown[1:], strict=False):
        assert before.peer.not_after > after.peer.not_after - 60  # renewed while it lived
    assert all("renewed" in each for each in said)


def test_a_renewal_that_fails_is_tried_again_and_said_once(workspace, monkeypatch):
    monkeypatch.setattr(trust, "half_life", lambda chain: 0.0)
    monkeypatch.setattr(trust, "LONGEST_S", 0.01)
    identity, said, tries = load_identity(workspace.cert, "one"), [], []

    async def main():
        done = asyncio.Event()

        async def renew(request):
            tries.append(request)
            if len(tries) < 4:
                raise CertificateError("C57", "the authority is offline")
            return await renewed(workspace, workspace.root / "no.sock", request, identity.peer)

        def show(identity):
            done.set()

        async with trust.beside(
            partial(keep_renewed, workspace.cert, identity, renew, show, said.append)
        ):
            await asyncio.wait_for(done.wait(), 20)

    asyncio.run(main())
    assert len(tries) >= 4
    assert ["C57" in each for each in said[:2]] == [True, False]


def test_an_encrypted_authority_renews_at_its_desk_only(tmp_path):
    workspace = Workspace(tmp_path)
    create_office(workspace.cert, "fed", time.time(), passphrase=b"secret")
    office = open_office(workspace.cert, b"secret")
    create_keys(workspace.cert, "one")
    request = make_request(workspace.cert, "one")
    chain = office.certify(request, Enrolment("fed", "collaborator", "one"), time.time())
    install(workspace.cert, "one", chain, office.anchors())
    peer = load_identity(workspace.cert, "one").peer
    with pytest.raises(CertificateError, match="^C57 .*fx pki serve"):
        asyncio.run(renewed(workspace, tmp_path / "no.sock", request, peer))
