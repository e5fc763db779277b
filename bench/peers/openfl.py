"""OpenFL 1.9: a workspace with its own authority, gRPC over mTLS, one task a round.

As shipped, a collaborator that waits for the others sleeps 10 s, and every result is stored in a
database; that needs a task which reports a score, so a validation that moves nothing is added.
Tuned: the sleep is at most 0.1 s, and nothing is stored. numpy below 2.4: it stops at start with
a newer one.
"""

import shutil
from pathlib import Path

from bench.peers.place import Place, listening

PACKAGES = ("openfl==1.9", "numpy<2.4")
PORT = 50051
HOST = "localhost"

PLAN = """
aggregator:
  defaults: plan/defaults/aggregator.yaml
  template: openfl.component.Aggregator
  settings: {{rounds_to_train: {rounds}, persist_checkpoint: {stored}}}
collaborator: {{defaults: plan/defaults/collaborator.yaml, template: openfl.component.Collaborator}}
data_loader: {{defaults: plan/defaults/data_loader.yaml, template: src.openfl_site.Nothing}}
task_runner:
  defaults: plan/defaults/task_runner.yaml
  template: src.openfl_site.Adder
  settings: {{mb: {mb}}}
network:
  defaults: plan/defaults/network.yaml
  settings: {{agg_addr: localhost, agg_port: 50051}}
assigner:
  template: openfl.component.RandomGroupedAssigner
  settings: {{task_groups: [{{name: all, percentage: 1.0, tasks: {tasks}}}]}}
tasks:
  score: {{function: score, kwargs: {{}}}}
  train: {{function: train, kwargs: {{}}}}
compression_pipeline: {{defaults: plan/defaults/compression_pipeline.yaml}}
"""


def classify(command: str) -> str:
    found = {"aggregator start": "server", "collaborator start": "client"}
    return next((kind for words, kind in found.items() if words in command), "")


def prepare(place: Place) -> None:
    workspace = place.folder / "workspace"
    shutil.copytree(certified(place), workspace)
    shutil.rmtree(workspace / "src")
    place.copy("openfl_site.py", into=workspace / "src")
    (workspace / "src" / "__init__.py").touch()
    names = [f"col{number}" for number in range(1, place.n + 1)]
    tasks = "[train]" if place.tuned else "[score, train]"
    given = {"rounds": place.rounds, "mb": place.mb, "stored": not place.tuned, "tasks": tasks}
    plan = workspace / "plan"
    (plan / "plan.yaml").write_text(PLAN.format(**given))
    (plan / "cols.yaml").write_text(f"collaborators: [{', '.join(names)}]\n")
    (plan / "data.yaml").write_text("".join(f"{name},1\n" for name in names))
    fx(place, workspace, "plan", "initialize", "-a", HOST)


def certified(place: Place) -> Path:
    """A workspace with the certificates of so many collaborators, made once."""
    base = place.kept / f"certified-{place.n}"
    if not (base / "done").exists():
        shutil.rmtree(base, ignore_errors=True)
        fx(place, place.kept, "workspace", "create", "--prefix", str(base), "--template", "no-op")
        fx(place, base, "workspace", "certify")
        fx(place, base, "aggregator", "generate-cert-request", "--fqdn", HOST)
        fx(place, base, "aggregator", "certify", "--fqdn", HOST, "--silent")
        for name in (f"col{number}" for number in range(1, place.n + 1)):
            fx(place, base, "collaborator", "create", "-n", name, "-d", "1", "--silent")
            fx(place, base, "collaborator", "generate-cert-request", "-n", name, "--silent")
            fx(place, base, "collaborator", "certify", "-n", name, "--silent")
        (base / "done").touch()
    return base


def fx(place: Place, cwd: Path, *words: str) -> None:
    place.do([place.bin("fx"), *words], cwd)


def launch(place: Place) -> None:
    workspace, cap = place.folder / "workspace", "0.1" if place.tuned else ""
    given = {"cwd": workspace, "BENCH_SLEEP_CAP": cap}
    place.start([place.bin("fx"), "aggregator", "start"], "server", **given)
    listening(PORT)
    for name in (f"col{number}" for number in range(1, place.n + 1)):
        place.start([place.bin("fx"), "collaborator", "start", "-n", name], name, **given)
