"""What is in the images, what is not, and how they get to a site without a network."""

import io
import os
import secrets
import shutil
import socketserver
import subprocess
import sys
import tarfile
import threading

import docker
import pytest

from openfed import __version__
from openfed.errors import OpenFedError
from openfed.launch.dockerize import dockerize, saved
from openfed.launch.images import node_image, task_image
from openfed.workspace import create, open_workspace

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

FX = (sys.executable, "-m", "openfed")


def made(folder, template="numpy_linear"):
    create(folder, template)
    return open_workspace(folder)


def inside(engine, image, *command, **options):
    """What a command printed in a container that can write nowhere but /tmp, and has no network."""
    sealed = {"network_mode": "none", "read_only": True, "tmpfs": {"/tmp": "mode=1777"}}
    return engine.containers.run(image, command, remove=True, **{**sealed, **options}).decode()


EVERY_MODULE = """
import importlib, pkgutil, openfed
missing = set()
for found in pkgutil.walk_packages(openfed.__path__, "openfed."):
    if "._" in found.name: continue
    try: importlib.import_module(found.name)
    except ModuleNotFoundError as error: missing.add(error.name.split(".")[0])
print(*sorted(missing))
"""


def test_a_node_has_all_of_openfed_and_no_framework(engine, images):
    assert inside(engine, node_image(), "python", "-c", EVERY_MODULE).split() == [
        "docker",
        "sklearn",
        "torch",
    ]


def test_a_task_has_what_the_runner_and_the_requirements_ask_for(engine, images):
    _, task = images["torch_digits"]
    says = "import torch, sklearn, openfed.tasks.torch, openfed.tasks.child; print(torch.ones(2))"
    assert "tensor([1., 1.])" in inside(engine, task.image.tag, "python", "-c", says)


@pytest.mark.parametrize("which", [0, 1], ids=["node", "task"])
def test_an_image_has_nothing_left_of_its_build(engine, images, which):
    tag = images["torch_digits"][which].image.tag
    look = "find / -xdev ( -path /proc -prune ) -o ( -name *.whl -o -name .cache ) -print"
    found = inside(engine, tag, *look.split(), "-o", "-name", "pip", "-print", user="0").split()
    assert not [path for path in found if not path.startswith("/usr/")]
    assert inside(engine, tag, "ls", "/opt", user="0").split() == ["openfed"]
    compilers = "import shutil; print(*map(shutil.which, ('gcc', 'cc', 'make', 'pip', 'git')))"
    assert set(inside(engine, tag, "python", "-c", compilers).split()) == {"None"}


def test_a_node_is_less_than_150_megabytes_over_its_base(engine, images, base, capsys):
    under = engine.images.get(base).attrs["Size"]
    with capsys.disabled():
        for built in dict.fromkeys(each for pair in images.values() for each in pair):
            print(
                f"\n{built.image.tag}: {built.size / 1e6:.0f} MB, over base {built.added / 1e6:.0f}"
            )
            assert built.added == engine.images.get(built.image.tag).attrs["Size"] - under
    node, _ = images["numpy_linear"]
    assert 0 < node.added < 150e6


def test_images_say_what_they_are_and_run_as_nobody(engine, images):
    for role, built in zip(("node", "task"), images["torch_digits"], strict=True):
        config = engine.images.get(built.image.tag).attrs["Config"]
        labels = {"org.openfed.role": role, "org.openfed.version": __version__}
        assert labels.items() <= config["Labels"].items()
        assert config["User"] == "10001:10001"
        assert config["WorkingDir"] == "/tmp"
        assert not config["Entrypoint"]
    assert inside(engine, node_image(), "id", "-u").strip() == "10001"


@pytest.mark.parametrize("user", ["0", "1000", "12345:54321"])
def test_any_user_runs_openfed(engine, images, user):
    for built in images["torch_digits"]:
        said = inside(engine, built.image.tag, "python", "-m", "openfed", "--version", user=user)
        assert said.strip().endswith(__version__)
    who = "import getpass, pathlib; print(getpass.getuser(), pathlib.Path.home())"
    assert inside(engine, node_image(), "python", "-c", who, user=user).split() == [
        "openfed",
        "/tmp",
    ]


def test_nothing_of_a_workspace_is_in_any_layer(engine, images, base, wheelhouse, tmp_path):
    workspace, planted = made(tmp_path / "ward"), f"planted-{secrets.token_hex(8)}"
    for name in ("cert/one/node.key", "data/one.csv", "src/more.py", "wheelhouse.txt", ".env"):
        path = workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(planted)
        (path.parent / f"{planted}.txt").write_text("by its name")
    node, task = dockerize(workspace, base, wheelhouse, print)
    seen, rest = 0, b""
    for chunk in saved(engine, [node.image.tag, task.image.tag]):
        seen += len(chunk)
        assert planted.encode() not in rest + chunk
        rest = chunk[-len(planted) :]
    assert seen > node.size


class Seen(socketserver.BaseRequestHandler):
    def handle(self):
        self.server.calls += 1


def test_with_a_wheelhouse_no_step_of_a_build_reaches_a_live_server(
    engine, base, wheelhouse, tmp_path
):
    host = engine.networks.get("bridge").attrs["IPAM"]["Config"][0].get("Gateway", "172.17.0.1")
    with socketserver.ThreadingTCPServer((host, 0), Seen) as server:
        server.calls = 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        workspace = made(tmp_path / "ward")
        asked = workspace.root / "requirements.txt"
        asked.write_text(f"gauze @ http://{host}:{port}/gauze-1-py3-none-any.whl\n")
        with pytest.raises(OpenFedError) as refused:
            dockerize(workspace, base, wheelhouse, print)
        server.shutdown()
    assert refused.value.code == "L06" and "gauze" in str(refused.value)
    assert server.calls == 0


def test_what_pip_says_last_is_in_the_error(engine, base, wheelhouse, tmp_path):
    workspace = made(tmp_path / "ward")
    (workspace.root / "requirements.txt").write_text("bandages==7\n")
    with pytest.raises(OpenFedError) as refused:
        dockerize(workspace, base, wheelhouse, print)
    assert refused.value.code == "L06"
    assert "No matching distribution found for bandages==7" in str(refused.value)
    with pytest.raises(docker.errors.ImageNotFound):
        engine.images.get(task_image(workspace))


def test_a_base_without_python_is_named(engine, wheelhouse, tmp_path):
    empty, tag = io.BytesIO(), "openfed-test-empty:1"
    with tarfile.open(fileobj=empty, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"))
    engine.api.import_image_from_data(empty.getvalue(), repository="openfed-test-empty", tag="1")
    try:
        with pytest.raises(OpenFedError) as refused:
            dockerize(made(tmp_path / "ward"), tag, wheelhouse, print)
    finally:
        engine.images.remove(tag, force=True)
    assert refused.value.code == "L05" and tag in str(refused.value)


@pytest.mark.parametrize("base", ["openfed.invalid/nowhere:1", "No Name"])
def test_a_base_that_is_nowhere_is_named(engine, wheelhouse, tmp_path, base):
    with pytest.raises(OpenFedError) as refused:
        dockerize(made(tmp_path / "ward"), base, wheelhouse, print)
    assert refused.value.code == "L04" and base in str(refused.value)


def test_dockerfiles_that_are_written_build_and_see_only_what_they_need(
    engine, images, base, wheelhouse, tmp_path
):
    root = made(tmp_path / "ward").root
    shutil.copytree(wheelhouse, root / "wheelhouse")
    for name in ("cert/one/node.key", "data/one.csv", "wheelhouse/key.pem"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("planted")
    files = ("--files", "--base", base, "--wheelhouse", "wheelhouse")
    said = subprocess.run(
        [*FX, "workspace", "dockerize", *files], cwd=root, check=True, stdout=subprocess.PIPE
    ).stdout.decode()
    lines = [line for line in said.splitlines() if "docker build" in line]
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    for line in lines:
        _, _, command = line.partition("  ")
        subprocess.run(command.split(), cwd=root, check=True, env=environment)
    assert len(lines) == 2
    (root / "all.Dockerfile").write_text(f"FROM {base}\nCOPY . /seen\n")
    look = ["docker", "build", "-f", "all.Dockerfile", "-t", "openfed-test-seen", "."]
    subprocess.run(look, cwd=root, check=True, env=environment)
    try:
        seen = inside(engine, "openfed-test-seen", "find", "/seen", "-type", "f").split()
    finally:
        engine.images.remove("openfed-test-seen", force=True)
    wheels = {f"/seen/wheelhouse/{path.name}" for path in wheelhouse.glob("*.whl")}
    assert {path for path in seen if "Dockerfile" not in path} - {"/seen/.dockerignore"} == {
        "/seen/requirements.txt",
        *wheels,
    }


def test_one_file_brings_images_and_workspace_to_an_engine_without_a_network(
    images, base, wheelhouse, tmp_path, island
):
    root = made(tmp_path / "ward").root
    subprocess.run([*FX, "plan", "initialize"], cwd=root, check=True)
    options = ("--base", base, "--wheelhouse", wheelhouse, "--save", "../ward.tar")
    told = subprocess.run([*FX, "workspace", "dockerize", *options], cwd=root, capture_output=True)
    assert told.returncode == 0, told.stderr
    assert b"node: Step 1/" in told.stderr and b"Step" not in told.stdout
    assert node_image() in told.stdout.decode()

    def at_the_site(*command):
        done = subprocess.run(
            command, cwd=site, env=island.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    site = tmp_path / "site"
    site.mkdir()
    shutil.move(tmp_path / "ward.tar", site / "ward.tar")
    assert at_the_site("docker", "images", "-q") == ""
    at_the_site("docker", "load", "-i", "ward.tar")
    task = task_image(open_workspace(root))
    at_the_site(
        "docker",
        "run",
        "--rm",
        "--network=none",
        task,
        "python",
        "-m",
        "openfed.tasks.child",
        "--help",
    )
    at_the_site("tar", "-xf", "ward.tar", "LOAD.md", "ward.zip")
    assert len((site / "LOAD.md").read_text().splitlines()) == 5
    fx = next(x for x in (site / "LOAD.md").read_text().split("`") if x.startswith("fx() {"))
    at_the_site("sh", "-c", f"{fx}; fx workspace import --archive ward.zip --prefix here")
    there = open_workspace(site / "here")
    assert task_image(there) == task
    assert (site / "here" / "plan" / "plan.lock").read_bytes() == (
        root / "plan" / "plan.lock"
    ).read_bytes()
