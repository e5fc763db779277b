"""A real engine, and the images of the templates that the tests run, built once."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from openfed.errors import OpenFedError
from openfed.launch.containers import connected
from openfed.launch.dockerize import dockerize
from openfed.workspace import create, open_workspace

BASE = "openfed-test-base:bookworm"
WHEELHOUSE = Path(__file__).parents[2] / ".cache" / "wheelhouse"
TEMPLATES = ("torch_digits", "numpy_linear")


@pytest.fixture(scope="session")
def engine():
    """A client of the engine; without one, and without what it needs, a test fails."""
    try:
        client = connected()
    except OpenFedError as error:
        pytest.fail(f"{error}: scripts/docker-engine starts one", pytrace=False)
    if not client.images.list(BASE) or not (WHEELHOUSE / "stamp").exists():
        pytest.fail(f"no {BASE}, or no {WHEELHOUSE}: scripts/docker-engine makes both")
    yield client
    client.close()


@pytest.fixture(scope="session")
def wheelhouse(engine):
    return WHEELHOUSE


@pytest.fixture(scope="session")
def base(engine):
    return BASE


@pytest.fixture(scope="session")
def images(engine, tmp_path_factory):
    """Template -> (of a node, of its task), as `dockerize` told them."""
    built = {}
    for name in TEMPLATES:
        root = tmp_path_factory.mktemp("images") / name
        create(root, name)
        built[name] = dockerize(open_workspace(root), BASE, WHEELHOUSE, print)
    return built


class Island:
    """A second engine: empty, without any network. `environment`: of a `docker` that asks it."""

    def __init__(self, home: Path):
        self.home, socket = home, home / "d.sock"
        options = {"data-root": home / "engine", "exec-root": home / "x", "pidfile": home / "pid"}
        alone = ["unshare", "--net", "dockerd", "--bridge=none", "--iptables=false", "-H"]
        flags = [f"--{name}={value}" for name, value in options.items()]
        self._command = [*alone, f"unix://{socket}", *flags]
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}"}

    def start(self):
        with (self.home / "engine.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        asked = ["docker", "version"]
        while subprocess.run(asked, env=self.environment, capture_output=True).returncode:
            lives = self._process.poll() is None and time.monotonic() < end
            assert lives, (self.home / "engine.log").read_text()[-4000:]
            time.sleep(0.1)

    def stop(self):
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def island(engine):
    home = Path(tempfile.mkdtemp())  # not tmp_path: containerd takes socket paths up to 104 bytes
    own = Island(home)
    own.start()
    yield own
    own.stop()
    shutil.rmtree(home)
