"""scripts/bench peers, without the frameworks: what sites tell, and what is made of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import task
from bench.meter import tree_cpu_seconds
from bench.peers import drive, flower, nvflare, openfl
from bench.peers.place import APPS, Place, listening

ROUND = "import numpy as np, told; first = told.first(1); assert told.trained(first, 'site-3', 2)"


@pytest.fixture
def place(tmp_path):
    return Place(
        n=2, mb=1, rounds=3, tuned=True, folder=tmp_path, venv=Path(sys.prefix), kept=tmp_path,
        certs=tmp_path, told=tmp_path / "told",
    )  # fmt: skip


def test_a_site_tells_its_round_and_its_moved_weight(place):
    place.copy("told.py", into=place.site)
    (place.site / "task.py").write_bytes(Path(task.__file__).read_bytes())
    code = f"import os, sys; sys.path.insert(0, os.environ['BENCH_SITE']); {ROUND}"
    with drive.listening_to(place.told) as told:
        place.do([sys.executable, "-c", code], place.folder)
        message = json.loads(told.recv(4096))
    first = float(task.init({"mb": 1, "content": "gaussian"})["layer0.weight"][0])
    assert message == {"round": 2, "who": 3, "weight": first + 3 * task.STEP}


def told_by(path, rounds, move):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        for number in range(1, rounds + 1):
            for who in (1, 2):
                weight = 1 + who * task.STEP + (number - 1) * move
                text = json.dumps({"round": number, "who": who, "weight": weight})
                out.sendto(text.encode(), str(path))


def test_a_round_ends_when_the_last_site_has_trained(tmp_path):
    seen = drive.Seen(2, 3, openfl)
    with drive.listening_to(tmp_path / "told") as told:
        told_by(tmp_path / "told", 3, 1.5 * task.STEP)
        seen.listen(told)
    assert len(seen.found()["rounds"]) == 2
    assert all(used["wall"] > 0 for used in seen.found()["rounds"])


def test_a_framework_that_does_not_average_is_found_out(tmp_path):
    seen = drive.Seen(2, 3, openfl)
    with drive.listening_to(tmp_path / "told") as told:
        told_by(tmp_path / "told", 3, 2 * task.STEP)
        with pytest.raises(RuntimeError, match="round 2, site 1"):
            seen.listen(told)


def test_memory_is_summed_over_server_processes_and_the_largest_of_clients():
    seen = drive.Seen(1, 2, openfl)
    seen.peaks = {1: ("server", 5.0), 2: ("server", 7.0), 3: ("client", 2.0), 4: ("client", 3.0)}
    assert seen.found()["peak_mb"] == {"server": 12.0, "client": 3.0}


@pytest.mark.parametrize(
    ("peer", "command", "kind"),
    [
        (openfl, "python fx aggregator start", "server"),
        (openfl, "python fx collaborator start -n col1", "client"),
        (flower, "python flwr-serverapp --token x", "server"),
        (flower, "python flwr-clientapp --token x", "client"),
        (nvflare, "python -m nvflare.private.fed.app.server.server_train -m /kits/x", "server"),
        (nvflare, "bash /kits/site-1/startup/sub_start.sh", "client"),
        (nvflare, "python nvflare_submit.py /kits/admin /kits/site-1", ""),
        (nvflare, "python other", ""),
    ],
)
def test_processes_are_told_apart(peer, command, kind):
    assert peer.classify(command) == kind


def test_cpu_time_of_a_child_that_has_ended_is_its_parents():
    before = tree_cpu_seconds(os.getpid())
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert tree_cpu_seconds(os.getpid()) - before >= 0.2


def test_a_command_that_fails_is_raised_with_its_words(place):
    code = "raise SystemExit('no such project')"
    with pytest.raises(RuntimeError, match="no such project"):
        place.do([sys.executable, "-c", code], place.folder)


def test_a_port_that_nobody_listens_on_is_given_up():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(RuntimeError, match="nothing listens"):
            listening(unused.getsockname()[1], within_s=0.15)


def test_no_secret_of_the_environment_reaches_a_framework(place, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert "SECRET_TOKEN" not in place.environment({})
    assert place.environment({"A": "1"})["A"] == "1"


def test_every_app_is_there():
    assert {path.name for path in APPS.glob("*.py")} >= {"told.py", "openfl_site.py"}
