"""The authority as a process, and the commands around it: what is typed, what is read."""

import asyncio
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from openfed.cli.main import main
from openfed.errors import CertificateError
from openfed.launch.authority import is_served, mint_token
from openfed.pki.desk import renew_at_desk
from openfed.pki.files import create_keys, load_identity, make_request
from openfed.pki.leaf import inspect
from openfed.pki.office import open_office
from openfed.pki.token import parse_token
from openfed.workspace import Workspace, create

CHILD = (sys.executable, "-m", "openfed.launch.authority", "--workspace")
FX = (sys.executable, "-m", "openfed", "pki", "serve")


@pytest.fixture
def agg(tmp_path):
    create(tmp_path / "agg", "torch_digits")
    plan = tmp_path / "agg" / "plan" / "plan.yaml"
    text = plan.read_text().replace("listen: 127.0.0.1:0", "listen: 0.0.0.0:7000")
    plan.write_text(text.replace("advertise: [localhost]", "advertise: [agg.example]"))
    shutil.copytree(tmp_path / "agg", tmp_path / "site")
    return Workspace(tmp_path / "agg")


@pytest.fixture
def fx(agg, monkeypatch, capsys):
    """Runs `fx` in a workspace: (stdout, stderr)."""

    def call(where, *arguments, code=0):
        monkeypatch.chdir(agg.root.parent / where)
        with pytest.raises(SystemExit) as left:
            main(arguments)
        said = capsys.readouterr()
        assert left.value.code == code, said.err
        return said

    call("agg", "workspace", "certify")
    return call


@contextmanager
def running(*command, cwd=None):
    """A child that serves; `heard(text)` waits for a line of it."""
    child = subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    limit = threading.Timer(60, child.kill)
    limit.start()
    child.lines = []

    def heard(what):
        for line in child.stderr:
            child.lines.append(line)
            if what in line:
                return line.strip()
        raise AssertionError(f"it ended without {what!r}: {child.lines}")

    child.heard = heard
    try:
        yield child
    finally:
        limit.cancel()
        child.kill()
        child.wait()
        child.stdin.close()
        child.stderr.close()


def test_a_site_enrols_with_the_command_that_the_token_prints(agg, fx):
    with running(*CHILD, agg.root, "--listen", "127.0.0.1:0") as child:
        child.heard("renewing at")
        fx("agg", "pki", "token", "-n", "one")
        address = child.heard("enrolment is open at").rpartition(" ")[2]
        made = fx("agg", "pki", "token", "-n", "one", "--address", address)
        assert "the token for one that was not used is withdrawn" in made.err
        assert "fx pki serve" not in made.err
        command = made.out.splitlines()[-1].split()
        assert command[:3] == ["fx", "collaborator", "enroll"]
        said = fx("site", *command[1:])
        assert "cert/one/node.key" in said.out and "fx collaborator start -n one" in said.out
        assert "enrolled collaborator 'one'" in child.heard("enrolled")
        fx("site", *command[1:])  # once more: nothing changes
        child.heard("answered again")
        child.stdin.close()  # its launcher is gone
        child.heard("stopped")
        assert child.wait(30) == 0
    assert load_identity(agg.root.parent / "site" / "cert", "one").peer.federation == "digits"
    listed = json.loads(fx("agg", "pki", "list", "--json").out)
    assert [node["name"] for node in listed["nodes"]] == ["one"]


async def renewed(agg, name):
    peer = load_identity(agg.cert, name).peer
    return await renew_at_desk(agg.runs / "authority.sock", make_request(agg.cert, name), peer)


def test_the_command_serves_the_desk_until_it_is_told_to_stop(agg, fx):
    fx("agg", "aggregator", "generate-cert-request")
    fx("agg", "aggregator", "certify", "--silent")
    agg.runs.mkdir(mode=0o755)  # as the umask gave it to an aggregator
    with running(*FX, "--listen", "127.0.0.1:0", cwd=agg.root) as child:
        child.heard("renewing at")
        assert is_served(agg.cert)
        assert inspect(asyncio.run(renewed(agg, "aggregator")).chain).role == "aggregator"
        child.heard("renewed aggregator 'aggregator'")
        again = subprocess.run(FX, cwd=agg.root, capture_output=True, text=True, timeout=60)
        assert again.returncode == 3 and again.stderr.startswith("C66 ")
        child.send_signal(signal.SIGTERM)
        child.heard("stopped")
        assert child.wait(30) == 0
    assert not is_served(agg.cert) and not (agg.runs / "authority.sock").exists()
    with pytest.raises(CertificateError, match="^C57 "):
        asyncio.run(renewed(agg, "aggregator"))


def test_a_killed_authority_leaves_nothing_that_keeps_the_next_from_serving(agg, fx):
    for how in ("kill", "terminate"):
        with running(*CHILD, agg.root, "--listen", "127.0.0.1:0") as child:
            child.heard("renewing at")
            getattr(child, how)()
            child.wait(30)


def test_an_encrypted_authority_asks_for_its_passphrase_at_once(agg, fx, tmp_path):
    shutil.rmtree(agg.cert)
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    fx("agg", "workspace", "certify", "--passphrase-file", str(secret))
    fx("agg", "pki", "token", "-n", "one")  # needs no key
    with running(*CHILD, agg.root) as child:
        assert "C15" in child.heard("C15")
        assert child.wait(30) == 3
    with running(*CHILD, agg.root, "--passphrase-file", secret, "--listen", "127.0.0.1:0") as child:
        child.heard("enrolment is open")


def test_a_token_says_what_a_site_needs_and_when_nobody_serves_it(agg, fx):
    said = fx("agg", "pki", "token", "--name", "one", "--hours", "0.5", "--json")
    told = json.loads(said.out)
    token = parse_token(told["token"])
    assert (token.federation, token.role, token.name) == ("digits", "collaborator", "one")
    assert 0 < token.ends - time.time() <= 1800
    assert told["pin"] == fx("agg", "pki", "fingerprint").out.strip()
    assert "start it here: fx pki serve" in said.err and not told["served"]
    assert token.address == "agg.example:7001"


def test_without_a_fixed_port_the_address_has_to_be_given(agg, fx):
    agg.plan.write_text(agg.plan.read_text().replace("0.0.0.0:7000", "0.0.0.0:0"))
    assert "--address" in fx("agg", "pki", "token", "-n", "one", code=2).err
    fx("agg", "pki", "token", "-n", "one", "--address", "agg.example:5")


def test_a_withdrawn_token_is_gone_and_none_is_said_to_be_none(agg, fx):
    fx("agg", "pki", "token", "-n", "one")
    fx("agg", "pki", "token", "-n", "one", "--withdraw")
    assert "C63" in fx("agg", "pki", "token", "-n", "one", "--withdraw", code=3).err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--name", "../one"], 3, "C04"),
        (["--name", "one", "--hours", "0"], 2, "--hours"),
        (["--name", "one", "--address", "nonsense"], 2, "host:port"),
        (["--name", "one", "--role", "aggregator"], 2, "--role"),
    ],
)
def test_what_no_token_can_be_made_of_is_said(agg, fx, arguments, code, said):
    assert said in fx("agg", "pki", "token", *arguments, code=code).err
    assert not (agg.cert / "authority" / "tokens.jsonl").exists()


def test_a_token_can_come_from_a_file_or_standard_input(agg, fx, tmp_path, monkeypatch):
    told = json.loads(
        fx("agg", "pki", "token", "-n", "one", "--address", "localhost:1", "--json").out
    )
    (tmp_path / "token").write_text(told["token"] + "\n")
    enroll = ("collaborator", "enroll", "--ca", told["pin"])
    assert "C60" in fx("site", *enroll, "--token-file", str(tmp_path / "token"), code=4).err
    monkeypatch.setattr(sys, "stdin", io.StringIO(told["token"]))
    assert "C60" in fx("site", *enroll, "--token-file", "-", code=4).err
    assert "C50" in fx("site", *enroll, "--token", told["token"][:-9], code=3).err
    assert "expected one of" in fx("site", *enroll, code=2).err
    assert not (tmp_path / "site" / "cert").exists()


def test_the_authority_of_another_federation_gives_no_tokens(agg, fx):
    agg.plan.write_text(agg.plan.read_text().replace("federation: digits", "federation: other"))
    assert "C16" in fx("agg", "pki", "token", "-n", "one", code=3).err


def test_the_process_loads_no_framework_and_no_grpc():
    code = "import openfed.launch.authority, sys; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "grpc", "google", "rich", "click"} & set(done.stdout.split())


def test_keys_that_are_there_are_used_and_not_replaced(agg, fx):
    create_keys(agg.root.parent / "site" / "cert", "one")
    before = make_request(agg.root.parent / "site" / "cert", "one").identity
    with running(*CHILD, agg.root, "--listen", "127.0.0.1:0") as child:
        fx("agg", "pki", "token", "-n", "one")
        address = child.heard("enrolment is open at").rpartition(" ")[2]
        made = mint_token(agg, "one", "collaborator", 60.0, address, time.time())
        fx("site", *made.command.split()[1:])
    assert open_office(agg.cert).nodes()[0].identity == before
