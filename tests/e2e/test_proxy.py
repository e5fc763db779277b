"""A site whose only way out is an HTTP proxy: it enrols, looks, and trains through it."""

import asyncio
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from base64 import b64encode
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from openfed.errors import CertificateError, TransportError
from openfed.launch.sites import dial_of
from openfed.pki.enrolment import enroll
from openfed.pki.files import load_identity
from openfed.pki.listener import keep_enrolment
from openfed.pki.office import create_office, open_office
from openfed.pki.token import mint
from openfed.pki.token_book import add_token
from openfed.workspace import Workspace

FX = (sys.executable, "-m", "openfed")
TEMPLATES = Path(__file__).parents[2] / "workspace_templates"
HOST = "aggregator.invalid"  # only the proxy knows where it is
PASSWORD = "vErYsEcReT"
KNOWN = f"Basic {b64encode(f'mill:{PASSWORD}'.encode()).decode()}"
DEAD = {name: "http://127.0.0.1:1" for name in ("https_proxy", "http_proxy", "grpc_proxy")}


def url(proxy, known=""):
    return f"http://{known}127.0.0.1:{proxy.port}"


def site_yaml(root, proxy):
    (root / "site.yaml").write_text(f"name: mill\ndata: points.csv\nproxy: {proxy}\n")
    (root / "site.yaml").chmod(0o600)


# -- enrolment -------------------------------------------------------------------------------------


def enrolled(root, office, proxy, end=lambda token: token):
    """What comes of enrolling at a real listener through the proxy of `root`'s site.yaml."""
    site_yaml(root, proxy)

    async def main():
        said = asyncio.Queue()
        opener = partial(open_office, office.cert_dir)
        token = mint("fed", "collaborator", "mill", time.time() + 3600, "127.0.0.1:1")
        add_token(office, token, time.time())
        serving = asyncio.create_task(
            keep_enrolment(office.cert_dir, opener, "127.0.0.1:0", said.put_nowait, time.time)
        )
        try:
            while "enrolment is open at" not in (line := await said.get()):
                pass
            port = line.rpartition(":")[2]
            there = dataclasses.replace(token, address=f"{HOST}:{port}")
            work = partial(enroll, root / "cert", end(there), office.fingerprint(), "fed")
            await asyncio.to_thread(work, dial=dial_of(Workspace(root)))
            return there.address
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    return asyncio.run(main())


@pytest.fixture
def office(tmp_path):
    create_office(tmp_path / "cert", "fed", time.time())
    return open_office(tmp_path / "cert")


@pytest.fixture
def site(tmp_path):
    (tmp_path / "mill" / "cert").mkdir(parents=True)
    return tmp_path / "mill"


def test_a_site_enrols_through_its_proxy_and_not_through_the_environments(
    office, site, http_proxy, monkeypatch
):
    for name, value in DEAD.items():
        monkeypatch.setenv(name, value)
    with http_proxy(known=KNOWN) as proxy:
        address = enrolled(site, office, url(proxy, f"mill:{PASSWORD}@"))
    assert proxy.targets == [address] * 2  # whose authority is it? then the application
    assert load_identity(site / "cert", "mill").peer.name == "mill"
    assert b"CERTIFICATE" not in proxy.seen and b"/enrol" not in proxy.seen


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", TransportError, "T16"),
        (b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", TransportError, "T17"),
        (b"HTTP/1.1 503 Unavailable\r\n\r\n", TransportError, "C60"),
        (b"", TransportError, "T15"),
    ],
)
def test_a_proxy_that_keeps_a_site_from_enrolling_is_named(
    office, site, http_proxy, answer, error, code
):
    with http_proxy(answer=answer) as proxy, pytest.raises(error, match=f"^{code} ") as caught:
        enrolled(site, office, url(proxy, f"mill:{PASSWORD}@"))
    assert url(proxy) in str(caught.value) and PASSWORD not in str(caught.value)
    assert not list((site / "cert").iterdir())


def test_a_token_that_has_expired_is_told_before_what_the_proxy_says(office, site, http_proxy):
    def late(token):
        return dataclasses.replace(token, ends=int(time.time()) - 7200)

    with (
        http_proxy(answer=b"HTTP/1.1 503 Unavailable\r\n\r\n") as proxy,
        pytest.raises(CertificateError, match="^C52 .*2.0 h ago"),
    ):
        enrolled(site, office, url(proxy), late)


# -- the whole of it -------------------------------------------------------------------------------


def fx(root, *words, code=0, **settings):
    done = subprocess.run(
        [*FX, *map(str, words)], cwd=root, capture_output=True, text=True, timeout=60, **settings
    )
    assert done.returncode == code, f"fx {' '.join(map(str, words))}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def by_token(here, site, **settings):
    told = json.loads(fx(here, "pki", "token", "-n", "mill", "--json").splitlines()[0])
    with subprocess.Popen(
        [*FX, "pki", "serve"], cwd=here, stderr=subprocess.PIPE, text=True
    ) as served:
        try:
            for line in served.stderr:
                if "enrolment is open at" in line:
                    break
            words = ("--token-file", "-", "--ca", told["pin"])
            return fx(site, "collaborator", "enroll", *words, input=told["token"], **settings)
        finally:
            served.terminate()
            served.communicate()


def federation(root, port):
    """The aggregator's folder, and what a site gets of it."""
    here = root / "here"
    shutil.copytree(TEMPLATES / "numpy_linear", here)
    plan = (here / "plan" / "plan.yaml").read_text()
    for old, new in (
        ("listen: 127.0.0.1:0", f"listen: 0.0.0.0:{port}"),
        ("collaborators: [mill, farm]", "collaborators: [mill]"),
        ("rounds: 20", "rounds: 2"),
    ):
        assert old in plan
        plan = plan.replace(old, new)
    (here / "plan" / "plan.yaml").write_text(plan)
    fx(here, "plan", "initialize", "-a", HOST)
    fx(here, "workspace", "certify")
    fx(here, "aggregator", "generate-cert-request", "--fqdn", HOST)
    fx(here, "aggregator", "certify", "--fqdn", HOST, "--silent")
    fx(here, "workspace", "export")
    fx(root, "workspace", "import", "--archive", here / "here.zip", "--prefix", root / "mill")
    shutil.copy(TEMPLATES / "numpy_linear" / "data" / "mill.csv", root / "mill" / "points.csv")
    return here, root / "mill"


def free_ports():
    """A port that is free, and so is the next one, where the authority enrols."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("", 0))
            port = one.getsockname()[1]
            with suppress(OSError):
                two.bind(("", port + 1))
                return port


def doctor(mill, env, code=0):
    """What it says of the network, and all that it says."""
    done = mill.fx("doctor", "--json", env=env, timeout=30)
    assert done.returncode == code, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])["findings"]
    return [each for each in told if each["what"] == "network of mill"], done.stdout + done.stderr


def listening(here):
    return here.wait_until(lambda: here.events("listening"), "the aggregator to listen")


@pytest.mark.slow
def test_a_site_joins_looks_and_trains_through_its_proxy_alone(workspace, tmp_path, http_proxy):
    port, env = free_ports(), {**os.environ, **DEAD, "no_proxy": "*"}
    with http_proxy(known=KNOWN) as proxy:
        here, mill = map(workspace.copy, federation(tmp_path, port))
        site_yaml(mill.root, url(proxy, f"mill:{PASSWORD}@"))
        told = [by_token(here.root, mill.root, env=env)]
        told.append(fx(mill.root, "collaborator", "approve", "-n", "mill", "--silent", env=env))
        assert f"through the proxy {url(proxy)}\n" in told[-1]

        (wrong,), said = doctor(mill, env, code=4)
        assert wrong["code"] == "T06" and "503" in wrong["found"], "nothing listens yet"
        assert wrong["remedy"].endswith("fx collaborator start waits for it.")
        serving = here.start("aggregator", "start", env=env)
        listening(here)
        (way, same), more = doctor(mill, env)
        assert f"{HOST}:{port} connects through the proxy {url(proxy)}, speaks TLS" in way["found"]
        assert "the same plan" in same["found"]
        told += [said, more]

        taking_part = mill.start("collaborator", "start", "-n", "mill", env=env)
        assert taking_part.wait(60) == 0, mill.said(taking_part)
        assert serving.wait(60) == 0, here.said(serving)
        assert (here.root / "save" / "line_last.safetensors").is_file()
        told += [mill.said(taking_part), here.said(serving)]
    assert set(proxy.targets) == {f"{HOST}:{port}", f"{HOST}:{port + 1}"}
    assert b"openfed.v1" not in proxy.seen and b"slope" not in proxy.seen
    for path in [*mill.root.rglob("*"), *here.root.rglob("*")]:
        if path.is_file() and path.name != "site.yaml":
            told.append(path.read_bytes().decode(errors="replace"))
    secrets = (PASSWORD, KNOWN.removeprefix("Basic "))
    assert not [each for each in told if any(secret in each for secret in secrets)]


@pytest.mark.slow
def test_start_says_what_is_wrong_with_the_proxy(workspace, tmp_path, http_proxy):
    """A refusal ends it with its code; a proxy that is down is waited for, and then used."""
    here, mill = map(workspace.copy, federation(tmp_path, free_ports()))
    with http_proxy() as proxy:
        site_yaml(mill.root, url(proxy))
        by_token(here.root, mill.root)
        fx(mill.root, "collaborator", "approve", "-n", "mill", "--silent")
    with http_proxy(proxy.port, answer=b"HTTP/1.1 403 Forbidden\r\n\r\n"):
        (wrong,), _ = doctor(mill, None, code=4)
        assert wrong["code"] == "T16" and url(proxy) in wrong["found"]
        assert "T16  " in fx(mill.root, "collaborator", "start", "-n", "mill", code=4)
    waiting = mill.start("collaborator", "start", "-n", "mill")
    mill.wait_until(lambda: "T15" in mill.said(waiting), "its patience")
    serving = here.start("aggregator", "start")
    listening(here)
    with http_proxy(proxy.port):
        assert waiting.wait(60) == 0, mill.said(waiting)
        assert serving.wait(60) == 0, here.said(serving)
