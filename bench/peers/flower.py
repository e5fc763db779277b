"""Flower 1.42: SuperLink and SuperNodes over HTTP and TLS; only the server has a certificate.

Every task of a site runs in a process of its own that ends with it, as it ships. Tuned: every
sleep is at most 0.1 s (`apps/sitecustomize.py`), since its intervals are not settings.
"""

from bench.peers.place import APPS, Place, listening

PACKAGES = ("flwr==1.42.0",)
UNBOUND = "certifi"
PORT = 8000

PROJECT = """
[project]
name = "benchapp"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "bench"
[tool.flwr.app.components]
serverapp = "benchapp.flower_server:app"
clientapp = "benchapp.flower_client:app"
[tool.flwr.app.config]
rounds = {rounds}
nodes = {n}
mb = {mb}
"""
CONFIG = """
[superlink]
default = "bench"
[superlink.bench]
address = "127.0.0.1:{port}"
root-certificates = "{authority}"
"""


def classify(command: str) -> str:
    found = {"flower-superlink": "server", "flwr-serverapp": "server",
             "flower-supernode": "client", "flwr-clientapp": "client"}  # fmt: skip
    return next((kind for words, kind in found.items() if words in command), "")


def prepare(place: Place) -> None:
    app, home = place.folder / "app", place.folder / "flwr"
    place.copy("flower_server.py", "flower_client.py", into=app / "benchapp")
    (app / "benchapp" / "__init__.py").touch()
    about = {"rounds": place.rounds, "n": place.n, "mb": place.mb}
    (app / "pyproject.toml").write_text(PROJECT.format(**about))
    home.mkdir()
    authority = place.certs / "authority.pem"
    (home / "config.toml").write_text(CONFIG.format(port=PORT, authority=authority))


def launch(place: Place) -> None:
    more = {"FLWR_HOME": str(place.folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}  # fmt: skip
    if place.tuned:
        more["PYTHONPATH"] = str(APPS / "flower_tuned")
    authority, mine = str(place.certs / "authority.pem"), place.certs / "aggregator"
    keys = ["--ssl-certfile", str(mine / "chain.pem"), "--ssl-keyfile", str(mine / "node.key")]
    where = ["--host", "0.0.0.0", "--port", str(PORT), "--ssl-ca-certfile", authority]
    link = [
        place.bin("flower-superlink"),
        *where,
        *keys,
        "--disable-runtime-dependency-installation",
    ]
    place.start(link, "server", place.folder, **more)
    listening(PORT)
    for number in range(1, place.n + 1):
        node = [place.bin("flower-supernode"), "--superlink", f"127.0.0.1:{PORT}"]
        node += ["--root-certificates", authority, "--host", "127.0.0.1"]
        node += ["--port", str(9100 + number), "--node-config", f'name="site{number}"']
        place.start(node, f"site{number}", place.folder, **more)
    place.do([place.bin("flwr"), "run", str(place.folder / "app"), "bench"], place.folder, **more)
