"""compose.yaml: its exact text, what it says, and what it is refused for."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from openfed.cli.main import main
from openfed.errors import CertificateError, PolicyError, UsageError
from openfed.launch.compose import (
    AS_ROOT,
    NO_DATA,
    aggregator_text,
    collaborator_text,
    compose_aggregator,
    compose_collaborator,
    data_mounts,
)
from openfed.launch.images import node_image, task_image
from openfed.launch.initial import initialize
from openfed.launch.processes import Processes
from openfed.launch.sites import create_site
from openfed.pki.files import create_keys
from openfed.plan.load import load_plan
from openfed.plan.site import Container, Site
from openfed.workspace import Workspace, create

CODE = ("src", "requirements.txt")

AGGREGATOR = """\
# Written by fx workspace compose --role aggregator
# The same command writes it anew. Your own changes belong in compose.override.yaml: Compose reads
# it after this file, and openfed never writes it.
#
#   docker compose up -d       start, also after a reboot; it ends when the plan's run has ended
#   docker compose logs -f     what happens
#   docker compose down        stop; the next start resumes the run
#
# The service sees of cert/ what is public and its own keys, never the authority's. Connections are
# limited all together, by `nofile`. By address Compose cannot limit them: that takes a firewall.

services:
  aggregator:
    image: "openfed-node:1.2.3"
    command: ["python", "-P", "-m", "openfed", "aggregator", "start", "--listen", "0.0.0.0:50051"]
    init: true
    working_dir: "/workspace"
    user: "1000:100"
    restart: "on-failure"
    stop_grace_period: "30s"
    read_only: true
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    mem_limit: "4g"
    memswap_limit: "4g"
    cpus: 1.0
    pids_limit: 512
    logging:
      driver: "json-file"
      options:
        max-size: "10m"
        max-file: "5"
    ports: ["50051:50051"]
    volumes:
      - {type: "bind", source: "./plan", target: "/workspace/plan", read_only: true}
      - {type: "bind", source: "./src", target: "/workspace/src", read_only: true}
      - {type: "bind", source: "./requirements.txt", target: "/workspace/requirements.txt", read_only: true}
      - {type: "bind", source: "./cert", target: "/workspace/cert"}
      - {type: "bind", source: "./save", target: "/workspace/save"}
      - {type: "bind", source: "./runs", target: "/workspace/runs"}
      - {type: "bind", source: "./logs", target: "/workspace/logs"}
    tmpfs: ["/tmp:size=1g,mode=1777", "/workspace/cert/authority:ro,size=4k,mode=0555"]
    ulimits:
      nofile: 4096
    healthcheck:
      test: ["CMD", "python", "-P", "-m", "openfed.launch.health", "--port", "50051"]
      interval: "30s"
      timeout: "10s"
      retries: 3
      start_period: "60s"
    networks: ["aggregator"]
networks:
  aggregator:
    driver: "bridge"
    driver_opts:
      com.docker.network.bridge.enable_ip_masquerade: "false"
"""  # noqa: E501

COLLABORATOR = """\
# Written by fx workspace compose --role collaborator -n mill
# The same command writes it anew. Your own changes belong in compose.override.yaml: Compose reads
# it after this file, and openfed never writes it.
#
#   docker compose up -d       start, also after a reboot; it ends when the plan's run has ended
#   docker compose logs -f     what happens
#   docker compose down        stop; the next start resumes the run
#
# The task service sees the data and has no network. The agent has the network and the keys, and
# sees no data; nobody else is on its network. Compose cannot let it reach the aggregator's address
# alone: that takes a firewall, such as a rule in Docker's chain DOCKER-USER.

services:
  mill:
    image: "openfed-node:1.2.3"
    command: ["python", "-P", "-m", "openfed", "collaborator", "start", "-n", "mill", "--without-task"]
    init: true
    working_dir: "/workspace"
    user: "12345:0"
    restart: "on-failure"
    stop_grace_period: "30s"
    read_only: true
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    mem_limit: "1572864000b"
    memswap_limit: "1572864000b"
    cpus: 3.0
    pids_limit: 512
    logging:
      driver: "json-file"
      options:
        max-size: "10m"
        max-file: "5"
    depends_on: ["mill-task"]
    volumes:
      - {type: "bind", source: "./plan", target: "/workspace/plan", read_only: true}
      - {type: "bind", source: "./src", target: "/workspace/src", read_only: true}
      - {type: "bind", source: "./requirements.txt", target: "/workspace/requirements.txt", read_only: true}
      - {type: "bind", source: "./site.yaml", target: "/workspace/site.yaml", read_only: true}
      - {type: "bind", source: "./approved", target: "/workspace/approved", read_only: true}
      - {type: "bind", source: "./cert", target: "/workspace/cert"}
      - {type: "bind", source: "./runs", target: "/workspace/runs"}
      - {type: "bind", source: "./logs", target: "/workspace/logs"}
    tmpfs: ["/tmp:size=1g,mode=1777"]
    healthcheck:
      test: ["CMD", "python", "-P", "-m", "openfed.launch.health", "--agent"]
      interval: "30s"
      timeout: "10s"
      retries: 3
      start_period: "60s"
    networks: ["mill"]
  mill-task:
    image: "openfed-task:0123456789ab"
    command: ["python", "-P", "-m", "openfed.launch.keeper", "--exchange", "/workspace/runs/exchange/mill"]
    init: true
    working_dir: "/workspace"
    user: "12345:0"
    restart: "on-failure"
    stop_grace_period: "30s"
    read_only: true
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    mem_limit: "1572864000b"
    memswap_limit: "1572864000b"
    cpus: 3.0
    pids_limit: 512
    logging:
      driver: "json-file"
      options:
        max-size: "10m"
        max-file: "5"
    volumes:
      - {type: "bind", source: "./src", target: "/workspace/src", read_only: true}
      - {type: "bind", source: "./requirements.txt", target: "/workspace/requirements.txt", read_only: true}
      - {type: "bind", source: "/mnt/a$$b", target: "/mnt/a$$b", read_only: true}
      - {type: "bind", source: "./runs/exchange/mill", target: "/workspace/runs/exchange/mill"}
    tmpfs: ["/tmp:size=1g,mode=1777"]
    shm_size: "1g"
    healthcheck:
      test: ["CMD", "python", "-P", "-m", "openfed.launch.health", "--task"]
      interval: "30s"
      timeout: "10s"
      retries: 3
      start_period: "60s"
    network_mode: "none"
    deploy:
      resources:
        reservations:
          devices:
            - {driver: "nvidia", count: "all", capabilities: ["gpu"]}
networks:
  mill:
    driver: "bridge"
    driver_opts:
      com.docker.network.bridge.enable_icc: "false"
"""  # noqa: E501


def site(**settings) -> Site:
    return Site.model_validate({"name": "mill", "data": "/mnt/a$b", **settings})


def of_mill(about: Site) -> str:
    images = ("openfed-node:1.2.3", "openfed-task:0123456789ab")
    return collaborator_text(about, "12345:0", images, CODE, (), {"/mnt/a$b": "/mnt/a$b"})


def of_aggregator(listen: str) -> str:
    limits = Container(user="1000:100", cpus=1.0)
    return aggregator_text("openfed-node:1.2.3", listen, CODE, ("authority",), limits)


def test_the_file_of_an_aggregator_is_exactly_this() -> None:
    assert of_aggregator("0.0.0.0:50051") == AGGREGATOR


def test_the_file_of_a_collaborator_is_exactly_this() -> None:
    about = site(device="cuda:1", threads=3, container={"memory": "1500MiB"})
    assert of_mill(about) == COLLABORATOR


def test_every_service_has_every_wall_and_the_task_has_neither_network_nor_keys() -> None:
    parsed = yaml.safe_load(of_mill(site()))
    assert set(parsed["services"]) == {"mill", "mill-task"}
    both = [*parsed["services"].values(), yaml.safe_load(AGGREGATOR)["services"]["aggregator"]]
    for service in both:
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "on-failure" and service["init"] is True
        for limit in ("mem_limit", "memswap_limit", "cpus", "pids_limit", "logging"):
            assert service[limit]
        assert service["healthcheck"]["test"][0] == "CMD"
        assert "privileged" not in service and "environment" not in service
    agent, task = parsed["services"]["mill"], parsed["services"]["mill-task"]
    assert task["network_mode"] == "none" and "networks" not in task and "ports" not in task
    assert agent["networks"] == ["mill"] and "ports" not in agent
    seen = {
        service: [each["target"] for each in service_["volumes"]]
        for service, service_ in parsed["services"].items()
    }
    assert not any("cert" in path or "site.yaml" in path for path in seen["mill-task"])
    assert "/mnt/a$$b" in seen["mill-task"] and "/mnt/a$$b" not in seen["mill"]
    written = [each["source"] for each in task["volumes"] if not each.get("read_only")]
    assert written == ["./runs/exchange/mill"]
    assert "deploy" not in task  # `device: auto` is no GPU in a container


@pytest.mark.parametrize(
    ("listen", "published", "inside"),
    [
        ("0.0.0.0:50051", "50051:50051", "0.0.0.0:50051"),
        ("[::]:50051", "50051:50051", "[::]:50051"),
        ("10.0.0.5:7000", "10.0.0.5:7000:7000", "0.0.0.0:7000"),
        ("127.0.0.1:7000", "127.0.0.1:7000:7000", "0.0.0.0:7000"),
        ("[2001:db8::7]:7000", "[2001:db8::7]:7000:7000", "[::]:7000"),
    ],
)
def test_the_port_is_published_where_the_plan_says(listen, published, inside) -> None:
    service = yaml.safe_load(of_aggregator(listen))["services"]["aggregator"]
    assert (service["ports"], service["command"][-1]) == ([published], inside)


# -- the data -------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path) -> Path:
    for folder in ("w/data/one", "w/cert", "w/src", "shared", "w/plain"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "w/link").symlink_to(tmp_path / "w/cert")
    return tmp_path / "w"


def test_what_a_source_names_is_mounted_where_the_loader_looks_for_it(root) -> None:
    shared = str(root.parent / "shared")
    assert data_mounts(root, "data/one") == {"./data/one": "/workspace/data/one"}
    assert data_mounts(root, "../shared/") == {"../shared": "/shared"}
    assert data_mounts(root, shared) == {shared: shared}
    assert data_mounts(root, "data/*/x.csv") == {"./data": "/workspace/data"}
    nested = {"images": "data/one", "of": [3, "../shared"], "split": "absent", "table": None}
    assert data_mounts(root, nested) == {
        "./data/one": "/workspace/data/one",
        "../shared": "/shared",
    }


def test_what_is_no_path_is_not_mounted(root) -> None:
    for source in ("cifar10", "s3://x/y", "", 7, None, {"split": "absent"}, "x" * 5000):
        assert data_mounts(root, source) == {}


@pytest.mark.parametrize("source", [".", "..", "/", "cert", "data/../cert", "link", ["cert"]])
def test_a_source_that_holds_more_than_data_is_refused(root, source) -> None:
    with pytest.raises(PolicyError) as error:
        data_mounts(root, source)
    assert error.value.code == "R37"


# -- in a workspace -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("compose") / "w"
    create(root, "numpy_linear")
    plan = root / "plan" / "plan.yaml"
    plan.write_text(plan.read_text().replace("127.0.0.1:0 ", "0.0.0.0:50051 "))
    workspace = Workspace(root)
    initialize(workspace, load_plan(workspace.plan), Processes(), lambda text: None)
    for name in ("aggregator", "mill"):
        create_keys(workspace.cert, name)
    (workspace.cert / "authority").mkdir(mode=0o700)
    create_site(workspace, "mill", "data/mill.csv")
    return root


@pytest.fixture
def workspace(frozen, tmp_path) -> Workspace:
    return Workspace(Path(shutil.copytree(frozen, tmp_path / "w")))


def test_both_files_are_written_with_the_folders_that_they_mount(workspace) -> None:
    made = compose_aggregator(workspace)
    assert made.paths == (workspace.root / "compose.yaml",)
    service = yaml.safe_load(made.paths[0].read_text())["services"]["aggregator"]
    assert service["image"] == node_image()
    assert service["user"] == f"{os.getuid()}:{os.getgid()}"
    hidden = [each.partition(":")[0] for each in service["tmpfs"]]
    assert hidden == ["/tmp", "/workspace/cert/authority", "/workspace/cert/mill"]
    assert (AS_ROOT in made.notes) == (os.getuid() == 0)
    made = compose_collaborator(workspace, "mill")
    services = yaml.safe_load(made.paths[0].read_text())["services"]
    assert services["mill-task"]["image"] == task_image(workspace)
    assert NO_DATA not in made.notes
    for service in services.values():
        for each in service["volumes"]:
            assert (workspace.root / each["source"]).exists()
    assert (workspace.root / "runs").stat().st_mode & 0o777 == 0o700
    hidden = [each.partition(":")[0] for each in services["mill"]["tmpfs"]]
    assert hidden == ["/tmp", "/workspace/cert/aggregator", "/workspace/cert/authority"]


def test_it_is_written_anew_but_never_over_a_file_of_somebody_else(workspace) -> None:
    (path,) = compose_collaborator(workspace, "mill").paths
    path.write_text(path.read_text() + "# old")
    compose_collaborator(workspace, "mill")
    assert "# old" not in path.read_text()
    path.write_text("services: {}\n")
    with pytest.raises(UsageError) as error:
        compose_aggregator(workspace)
    assert error.value.code == "U88" and path.read_text() == "services: {}\n"


def test_a_user_who_cannot_read_the_keys_is_refused_before_anything_is_written(workspace) -> None:
    for user in (f"{os.getuid() + 1}:0", "bob", "1000"):
        with pytest.raises(UsageError) as error:
            compose_aggregator(workspace, user)
        assert error.value.code == "U89"
    text = (workspace.root / "site.yaml").read_text()
    (workspace.root / "site.yaml").write_text(text + f'  user: "{os.getuid() + 1}:7"\n')
    with pytest.raises(UsageError) as error:
        compose_collaborator(workspace, "mill")
    assert f"chown -R {os.getuid() + 1}:7" in error.value.message
    assert not (workspace.root / "compose.yaml").exists()
    compose_collaborator(workspace, "mill", f"{os.getuid()}:{os.getgid()}")


def test_without_keys_or_site_yaml_or_for_another_name_it_says_what_comes_first(
    workspace, capsys
) -> None:
    (workspace.cert / "aggregator" / "node.key").unlink()
    with pytest.raises(CertificateError) as missing:
        compose_aggregator(workspace)
    assert missing.value.code == "C12"
    for name in ("farm", "nobody"):
        with pytest.raises(UsageError) as error:
            compose_collaborator(workspace, name)
        assert error.value.code == "U16"
    (workspace.root / "site.yaml").unlink()
    with pytest.raises(UsageError) as error:
        compose_collaborator(workspace, "mill")
    assert "fx collaborator create -n mill" in error.value.message


def test_the_command_lists_the_file_and_says_what_is_next(workspace, capsys, monkeypatch) -> None:
    monkeypatch.chdir(workspace.root)
    for line in ("--role collaborator -n mill", "--role aggregator"):
        with pytest.raises(SystemExit) as ended:
            main(["workspace", "compose", *line.split()])
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        assert "compose.yaml" in said.out and "docker compose up -d" in said.out
    for line in ("--role collaborator", "--role aggregator -n mill"):
        with pytest.raises(SystemExit) as ended:
            main(["workspace", "compose", *line.split()])
        assert ended.value.code == 2
