"""NVFlare 2.9: a provisioned project, gRPC over mTLS, federated averaging, a script at each site.

Each side is a process that stays and, during a job, one of the job. As shipped, sites ask for
work every 2 s. Tuned: that, and the controller's own interval, are 0.05 s.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.place import Place, listening

PACKAGES = ("nvflare==2.9.0",)
PORT = 8002
ADMIN = "admin@nvidia.com"


def classify(command: str) -> str:
    if "nvflare_submit" in command:
        return ""
    kinds = {"server_train": "server", "runner_process": "server", "/localhost/": "server",
             "client_train": "client", "worker_process": "client", "/site-": "client"}  # fmt: skip
    return next((kind for words, kind in kinds.items() if words in command), "")


def project(n: int) -> dict[str, Any]:
    build = "nvflare.lighter.impl"
    sites = [{"name": f"site-{i}", "type": "client", "org": "bench"} for i in range(1, n + 1)]
    ports = {"fed_learn_port": PORT, "admin_port": PORT + 1}
    return {
        "api_version": 3,
        "name": "bench",
        "description": "bench",
        "participants": [
            {"name": "localhost", "type": "server", "org": "bench", **ports},
            *sites,
            {"name": ADMIN, "type": "admin", "org": "bench", "role": "project_admin"},
        ],
        "builders": [
            {"path": f"{build}.workspace.WorkspaceBuilder",
             "args": {"template_file": ["master_template.yml"]}},
            {"path": f"{build}.static_file.StaticFileBuilder",
             "args": {"config_folder": "config", "scheme": "grpc"}},
            {"path": f"{build}.cert.CertBuilder"},
            {"path": f"{build}.signature.SignatureBuilder"},
        ],
    }  # fmt: skip


def prepare(place: Place) -> None:
    shutil.copytree(provisioned(place), place.folder / "kits")
    app, job = place.folder / "app", place.folder / "job"
    names = ("nvflare_client.py", "nvflare_model.py", "nvflare_job.py", "nvflare_submit.py")
    place.copy(*names, into=app)
    given = [str(job), str(place.n), str(place.rounds), str(place.mb)]
    place.do([place.bin("python"), "nvflare_job.py", *given], app)
    if place.tuned:
        config = job / "bench" / "app" / "config"
        edit(config / "config_fed_server.json", faster_server)
        edit(
            config / "config_fed_client.json", lambda c: c.update(default_task_fetch_interval=0.05)
        )


def provisioned(place: Place) -> Path:
    base = place.kept / f"provisioned-{place.n}"
    if not (base / "done").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        (base / "project.yml").write_text(json.dumps(project(place.n)))  # JSON is YAML
        words = ["provision", "-p", "project.yml", "-w", "made", "--force"]
        place.do([place.bin("nvflare"), *words], base)
        (base / "done").touch()
    return base / "made" / "bench" / "prod_00"


def faster_server(config: dict[str, Any]) -> None:
    config["server"] = {"task_request_interval": 0.05}
    config["workflows"][0]["args"]["task_check_period"] = 0.05


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def launch(place: Place) -> None:
    def site(name: str) -> None:
        script = place.folder / "kits" / name / "startup" / "sub_start.sh"
        place.start(["bash", str(script)], name, place.folder)

    site("localhost")
    listening(PORT)
    for number in range(1, place.n + 1):
        site(f"site-{number}")
    kit, job = str(place.folder / "kits" / ADMIN), str(place.folder / "job" / "bench")
    words = [place.bin("python"), "nvflare_submit.py", kit, job, str(place.n)]
    place.start(words, "submit", place.folder / "app")
