"""The files of `fx workspace compose`, run: an aggregator and two sites, each in its own folder."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openfed.workspace import Workspace

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

DATA = Path(__file__).parents[2] / "workspace_templates" / "numpy_linear" / "data"
FX = (sys.executable, "-m", "openfed")
USER = "12345:12345" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"


def fx(folder, line):
    done = subprocess.run([*FX, *line.split()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"fx {line}: {done.stdout}{done.stderr}"
    return done.stdout


def compose_command():
    """Compose v2 or, where that is not here, docker-compose 1.29."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ("docker", "compose")
    found = shutil.which("docker-compose")
    assert found, "expected docker compose, or docker-compose 1.29 (apt-get install it), found none"
    return (found,)


class Stack:
    """The services of one folder."""

    def __init__(self, engine, folder: Path, project: str) -> None:
        self.engine, self.folder, self.project = engine, folder, project
        self.command = (*compose_command(), "-p", project)

    def compose(self, *words):
        done = subprocess.run(
            [*self.command, *words], cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def container(self, service):
        label = "com.docker.compose"
        labels = [f"{label}.project={self.project}", f"{label}.service={service}"]
        (found,) = self.engine.containers.list(all=True, filters={"label": labels})
        return found

    def asked(self, service, code):
        """What a line of Python prints in the service."""
        code, said = self.container(service).exec_run(["python", "-c", code])
        assert code == 0, said.decode()
        return said.decode().strip()

    def killed(self, service):
        os.kill(self.container(service).attrs["State"]["Pid"], signal.SIGKILL)

    def until(self, service, state, seconds=120):
        """Wait for a health, or for the end with exit code 0."""
        end = time.monotonic() + seconds
        while True:
            found = self.container(service)
            about = found.attrs["State"]
            if state == "ended" and about["Status"] == "exited" and not about["ExitCode"]:
                return found
            if about.get("Health", {}).get("Status") == state and about["Status"] == "running":
                return found
            said = found.logs(tail=30).decode()
            assert time.monotonic() < end, f"{service} is {about}, not {state}: {said}"
            time.sleep(0.2)


@pytest.fixture
def folders(tmp_path, engine) -> dict[str, Path]:
    """OpenFL's sequence up to `start`, at an address of this machine that containers reach."""
    host = engine.networks.get("bridge").attrs["IPAM"]["Config"][0].get("Gateway", "172.17.0.1")
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    fx(tmp_path, "workspace create --prefix line --template numpy_linear")
    here = tmp_path / "line"
    plan = here / "plan" / "plan.yaml"
    plan.write_text(plan.read_text().replace("127.0.0.1:0 ", f"0.0.0.0:{port} "))
    fx(here, f"plan initialize -a {host}")
    fx(here, "workspace certify")
    fx(here, "workspace export")
    fx(here, f"aggregator generate-cert-request --fqdn {host}")
    fx(here, f"aggregator certify --fqdn {host} --silent")
    sites = {name: _site(tmp_path / name, here, name) for name in ("mill", "farm")}
    return {"aggregator": here, **sites}


def _site(folder: Path, authority: Path, name: str) -> Path:
    folder.mkdir()
    shutil.copy(DATA / f"{name}.csv", folder / "points.csv")
    fx(folder, f"workspace import --archive {authority / 'line.zip'}")
    site = folder / "line"
    fx(site, f"collaborator create -d ../points.csv -n {name} --silent")
    with (site / "site.yaml").open("a") as file:
        file.write("  memory: 1GiB\n  pids: 100\n  cpus: 0.5\n")  # of `container:`
    fx(site, f"collaborator generate-cert-request -n {name} --silent")
    package = site / f"col_{name}_to_agg_cert_request.zip"
    fx(authority, f"collaborator certify --request-pkg {package} --silent")
    package = authority / f"agg_to_col_{name}_signed_cert.zip"
    fx(site, f"collaborator certify --import {package}")
    fx(site, "collaborator approve --silent")
    return site


def of_the_user(folders):
    """Give every folder to the user that the services run as."""
    for folder in folders.values():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, *map(int, USER.split(":")), follow_symlinks=False)


@pytest.fixture
def stacks(folders, engine, images):
    of_the_user(folders)
    fx(folders["aggregator"], "workspace compose --role aggregator")
    for name in ("mill", "farm"):
        fx(folders[name], f"workspace compose --role collaborator -n {name}")
    launch = secrets.token_hex(4)
    made = {n: Stack(engine, f, f"openfed-test-{launch}-{n}") for n, f in folders.items()}
    yield made
    for each in made.values():
        each.compose("down", "--volumes", "--timeout", "2")


def test_three_folders_with_a_compose_file_each_train_a_model_and_survive_kills(stacks) -> None:
    aggregator, mill, farm = (stacks[name] for name in ("aggregator", "mill", "farm"))
    aggregator.compose("up", "-d")
    aggregator.until("aggregator", "healthy")
    mill.compose("up", "-d")
    mill.until("mill", "healthy")
    mill.until("mill-task", "healthy")
    check_walls(aggregator, mill)
    for service in ("mill", "mill-task"):  # the run waits for the other site
        before = mill.container(service).attrs["RestartCount"]
        mill.killed(service)
        while mill.container(service).attrs["RestartCount"] == before:
            time.sleep(0.1)
    farm.compose("up", "-d")
    for stack, service in (
        (aggregator, "aggregator"),
        *((mill, name) for name in ("mill", "mill-task")),
        *((farm, name) for name in ("farm", "farm-task")),
    ):
        stack.until(service, "ended")
    said = json.loads(fx(aggregator.folder, "status --json").splitlines()[-1])
    assert (said["status"], said["rounds"]) == ("completed", 20)
    model = Workspace(aggregator.folder).model("line", "last")
    assert model.stat().st_uid == int(USER.partition(":")[0])


def check_walls(aggregator, mill):
    """What each container is, by the engine, and what it sees, from inside."""
    for stack, service in ((aggregator, "aggregator"), (mill, "mill"), (mill, "mill-task")):
        found = stack.container(service).attrs
        host = found["HostConfig"]
        assert found["Config"]["User"] == USER
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["RestartPolicy"]["Name"] == "on-failure"
        assert host["LogConfig"]["Config"] == {"max-file": "5", "max-size": "10m"}
    limits = mill.container("mill-task").attrs["HostConfig"]
    assert (limits["Memory"], limits["PidsLimit"], limits["NanoCpus"]) == (1 << 30, 100, 5 * 10**8)
    assert limits["NetworkMode"] == "none"
    listed = "import os; print(*sorted(os.listdir('/workspace')))"
    assert mill.asked("mill-task", listed) == "requirements.txt runs src"
    assert mill.asked("mill-task", "print(len(open('/points.csv').readlines()) > 1)") == "True"
    assert mill.asked("mill", "import os; print(os.path.exists('/points.csv'))") == "False"
    hidden = "import os; print(os.path.exists('/workspace/cert/authority/authority.key'))"
    assert aggregator.asked("aggregator", hidden) == "False"
    assert "authority.key" in os.listdir(aggregator.folder / "cert" / "authority")
    writes = (
        "import os\n"
        "for path in ('/x', '/workspace/x', '/workspace/src/x', '/points.csv'):\n"
        "    try: open(path, 'a')\n"
        "    except OSError as error: print(error.errno)\n"
        "    else: print('written', path)"
    )
    assert "written" not in mill.asked("mill-task", writes)
    assert len(mill.asked("mill-task", writes).split()) == 4
