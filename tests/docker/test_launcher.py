"""`fx run --launcher docker`, with a real engine: the same model, and nothing left over."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.redteam.prey import Prey

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

TEMPLATES = Path(__file__).parents[2] / "workspace_templates"
FX = (sys.executable, "-m", "openfed")
LABEL = "org.openfed.launch"

SLOW = """

_train = train

def train(record, data, settings):
    import time
    time.sleep(0.2)
    return _train(record, data, settings)
"""


def fx(root, *words, **settings):
    return subprocess.run(
        [*FX, *words], cwd=root, capture_output=True, text=True, timeout=300, **settings
    )


def made(tmp_path, template, extra=""):
    root = tmp_path / "w"
    shutil.copytree(TEMPLATES / template, root)
    if extra:
        with (root / "src" / "linear.py").open("a") as code:
            code.write(extra)
    return root


def digest(root):
    manifest = json.loads((root / "save" / "manifest.json").read_text())
    return manifest["models"]["last"]["digest"]


def events(root, kind):
    path = root / "logs" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in found if event["event"] == kind]


def until(happened, what, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.05)


def nodes(engine):
    """Running containers of launches, by node."""
    found = engine.containers.list(filters={"label": LABEL})
    return {each.labels[f"{LABEL}.node"]: each for each in found}


def nothing_left(engine):
    left = engine.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
    return not left and not engine.networks.list(filters={"label": LABEL})


@pytest.fixture
def clean(engine):
    assert nothing_left(engine)
    yield engine
    until(lambda: nothing_left(engine), "the end of every container and network", 30)


@pytest.fixture
def slow(tmp_path, images, clean):
    """A run in containers that takes 20 x 0.2 s, started; killed if it is still there."""
    root = made(tmp_path, "numpy_linear", SLOW)
    with (root / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            [*FX, "run", "--launcher", "docker"], cwd=root, stdout=out, stderr=out
        )
    process.root = root
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def training(slow, round=3):
    until(lambda: len(events(slow.root, "round.ended")) >= round, f"round {round}")


def test_torch_digits_trains_in_containers_to_the_digest_of_processes(tmp_path, images, clean):
    root = made(tmp_path, "torch_digits")
    inside = fx(root, "run", "--launcher", "docker", "-s", "rounds=3")
    assert inside.returncode == 0, inside.stderr
    in_containers = digest(root)
    outside = fx(root, "run", "--new", "-s", "rounds=3")
    assert outside.returncode == 0, outside.stderr
    assert digest(root) == in_containers
    sites = json.loads((root / "save" / "manifest.json").read_text())["sites"]
    assert {told["isolation"] for told in sites.values()} != {"container"}, "the last was outside"


def test_what_a_container_may_is_what_docker_says(slow, clean):
    training(slow)
    here = nodes(clean)
    assert sorted(here) == ["aggregator", "farm", "farm.task", "mill", "mill.task"]
    networks = {}
    for name, container in here.items():
        told = container.attrs
        config, host = told["Config"], told["HostConfig"]
        assert config["User"] == f"{os.getuid()}:{os.getgid()}" and config["Healthcheck"]["Test"]
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"] and not host["Privileged"]
        assert host["ReadonlyRootfs"] and host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["PidsLimit"] == 512 and host["PidMode"] == "" and host["IpcMode"] == "private"
        assert not host["PortBindings"] and not host["Devices"]
        assert config["OpenStdin"] and config["StdinOnce"], "it ends with who holds its input"
        mounted = {each["Destination"]: each["RW"] for each in told["Mounts"]}
        seen = {str(Path(path).relative_to(slow.root)): rw for path, rw in mounted.items()}
        networks[name] = sorted(told["NetworkSettings"]["Networks"])
        assert "/var/run/docker.sock" not in mounted
        if name.endswith(".task"):
            site = name.removesuffix(".task")
            (out,) = (path for path, rw in seen.items() if rw)
            assert out.endswith(f"/exchange/{site}/out")
            reads = {"src", "requirements.txt", f"data/{site}.csv", str(Path(out).parent)}
            assert set(seen) - {out} == reads
            assert networks[name] == ["none"]
        elif name == "aggregator":
            assert not any(path.startswith(("data", "local")) for path in seen)
            assert len(networks[name]) == 2
        else:
            writable = sorted(path.split("/")[-2:] for path, rw in seen.items() if rw)
            assert writable == [["agents", name], ["cert", name], ["exchange", name]]
            assert not any(path.startswith(("data", "local", "save")) for path in seen)
            assert networks[name] == [f"openfed-{container.labels[LABEL]}-{name}"]
            hidden = {Path(path).name for path in host["Tmpfs"]} - {"tmp"}
            assert {"authority", "aggregator"} < hidden and name not in hidden
    for name in ("farm", "mill"):
        (network,) = networks[name]
        assert clean.networks.get(network).attrs["Internal"]
    assert slow.wait(200) == 0, (slow.root / "out.txt").read_text()


def test_after_ctrl_c_nothing_is_left_and_the_run_resumes(slow, clean):
    training(slow)
    slow.send_signal(signal.SIGINT)
    assert slow.wait(60) == 130
    until(lambda: nothing_left(clean), "the end", 30)
    done = fx(slow.root, "run", "--launcher", "docker", "--resume")
    assert done.returncode == 0, done.stderr
    resumed = digest(slow.root)
    whole = fx(slow.root, "run", "--new")
    assert whole.returncode == 0 and digest(slow.root) == resumed


def test_killing_fx_leaves_neither_container_nor_network(slow, clean):
    training(slow)
    slow.kill()
    slow.wait()
    until(lambda: nothing_left(clean), "the end of everything", 60)


@pytest.mark.parametrize("victim", ["aggregator", "farm", "farm.task"])
def test_a_killed_container_is_started_again_and_the_model_is_the_same(slow, clean, victim):
    training(slow)
    nodes(clean)[victim].kill()
    assert slow.wait(200) == 0, (slow.root / "out.txt").read_text()
    killed = digest(slow.root)
    assert "is started again" in (slow.root / "out.txt").read_text()
    again = fx(slow.root, "run", "--new")
    assert again.returncode == 0 and digest(slow.root) == killed


def test_without_an_image_the_error_says_how_to_build_it(tmp_path, clean):
    root = made(tmp_path, "numpy_linear")
    (root / "requirements.txt").write_text("numpy>=2.0,<3\n# another image\n")
    done = fx(root, "run", "--launcher", "docker")
    assert done.returncode != 0
    assert "L02" in done.stderr and "fx workspace dockerize" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_an_engine_the_error_says_so(tmp_path):
    root = made(tmp_path, "numpy_linear")
    env = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = fx(root, "run", "--launcher", "docker", env=env)
    assert done.returncode != 0 and "L01" in done.stderr and "Traceback" not in done.stderr
    assert not (root / "cert").exists()


def test_an_engine_that_is_restarted_costs_no_round_and_the_model_is_the_same(
    tmp_path, images, engine, island
):
    tags = [image.tag for image in (each.image for each in images["numpy_linear"])]
    with subprocess.Popen(["docker", "save", *tags], stdout=subprocess.PIPE) as saved:
        load = ["docker", "load"]
        subprocess.run(load, stdin=saved.stdout, env=island.environment, check=True)
    root = made(tmp_path, "numpy_linear", SLOW)
    with (root / "out.txt").open("wb") as out:
        command = [*FX, "run", "--launcher", "docker"]
        process = subprocess.Popen(
            command, cwd=root, stdout=out, stderr=out, env=island.environment
        )
    try:
        until(lambda: len(events(root, "round.ended")) >= 3, "round 3")
        island.stop()
        island.start()
        assert process.wait(200) == 0, (root / "out.txt").read_text()
    finally:
        process.kill()
        process.wait()
    restarted = digest(root)
    again = fx(root, "run", "--new")
    assert again.returncode == 0 and digest(root) == restarted
    listed = ["docker", "ps", "-a", "--format", "{{.Names}}"]
    left = subprocess.run(listed, env=island.environment, capture_output=True, text=True)
    assert left.stdout == ""


TRY = """
import json, os, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reached(target):
    try:
        socket.create_connection(target, 2).close()
        return True
    except OSError:
        return False
targets, paths = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(targets)) as pool:  # the run does not wait for us
    found = [t for t, yes in zip(targets, pool.map(reached, map(tuple, targets))) if yes]
print(json.dumps([found, [path for path in paths if os.path.lexists(path) and os.listdir(path)]]))
"""


def test_an_agent_reaches_the_aggregator_and_nobody_else_and_sees_no_data(slow, clean, tmp_path):
    training(slow)
    here, prey = nodes(clean), Prey(tmp_path)
    mine = [each["Gateway"] for each in networks_of(here["farm"])]
    others = [each["IPAddress"] for each in networks_of(here["mill"])]
    with prey.closing, socket.socket() as everywhere:
        everywhere.bind(("0.0.0.0", 0))  # a service of this machine, at every address it has
        everywhere.listen()
        port = everywhere.getsockname()[1]
        socket.create_connection((prey.tcp[-1][0], port), 2).close()  # it is there
        hosts = {"172.17.0.1", *(host for host, _ in prey.tcp), *filter(None, mine)} - {"127.0.0.1"}
        forbidden = [(host, port) for host in sorted(hosts)] + [(each, 50051) for each in others]
        targets = [("aggregator", 50051), *forbidden, ("192.0.2.1", 443)]
        paths = [str(slow.root / name) for name in ("data", "save", "cert/mill", "cert/authority")]
        asked = ["python", "-c", TRY, json.dumps([targets, paths])]
        told = here["farm"].exec_run(asked)
    assert told.exit_code == 0, told.output
    assert json.loads(told.output) == [[["aggregator", 50051]], []]
    assert slow.wait(300) == 0


def networks_of(container):
    return container.attrs["NetworkSettings"]["Networks"].values()
