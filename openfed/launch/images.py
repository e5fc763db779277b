"""What is in the images of a node and of a task, and what they are called.

A node (aggregator, agent) is openfed without a framework. A task has the extra of the plan's runner
and what requirements.txt asks for; the site's own verified copy of src/ is mounted when it runs, so
that what was approved is what runs. A build sees nothing but a list of files that is made here:
no key and no data can get into an image. `dockerize` has the engine build them.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from openfed import __version__
from openfed.errors import UsageError
from openfed.files import write_whole
from openfed.plan.load import load_plan
from openfed.workspace import Workspace

BASE = "python:3.11-slim-bookworm"
USER = "10001:10001"
LABEL = "org.openfed."
REQUIREMENTS = "requirements.txt"
WHEELHOUSE = "wheelhouse"
"""A folder of wheels, as it is called in a build."""

EXTRAS = {"torch": "[torch]", "sklearn": "[sklearn]"}
"""Runner of the plan -> what openfed is installed with."""

PROBE = 'python3 -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"'
"""Whether a base can be used."""

PATH = "/opt/openfed/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

IGNORED = f"""\
# Written by fx workspace dockerize: a build gets these files and nothing else, above all neither
# cert/ nor data.
*
!{REQUIREMENTS}
!{WHEELHOUSE}/*.whl
"""

_COMPILE = "python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/openfed/lib"
"""Containers cannot write what they compile, and would compile at every start."""

_PRUNE = """\
    find /opt/openfed/lib -type d -name tests -prune -exec rm -r {} + && \\
    find /opt/openfed/lib \\( -name '*.pyi' -o -name '*.h' -o -name '*.a' \\) -delete && \\
    rm -f /opt/openfed/lib/python*/site-packages/zstandard/_cffi.*.so && \\
"""
"""Of a node, whose packages are known: tests, headers, and a second zstd for other Pythons. A
workspace's requirements are left whole."""


@dataclass(frozen=True)
class Image:
    role: str  # node or task
    tag: str
    dockerfile: str


def node_image() -> str:
    """The name of the image of aggregators and agents of this version."""
    return f"openfed-node:{__version__}"


def task_image(workspace: Workspace) -> str:
    """The name of the image that runs this workspace's code.

    Raises: PlanError: the plan does not load.
    """
    asked = _requirements(workspace)
    digest = hashlib.sha256(asked).hexdigest() if asked is not None else None
    made_of = json.dumps([__version__, digest, load_plan(workspace.plan).task_runner.name])
    return f"openfed-task:{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def images(workspace: Workspace, base: str, wheels: bool) -> tuple[Image, Image]:
    """The node's and the task's. `wheels`: from a folder of wheels, not from a package index.

    Raises: PlanError: the plan does not load.
    """
    node, task = node_image(), task_image(workspace)
    runner = load_plan(workspace.plan).task_runner.name
    asked = _requirements(workspace) is not None
    return (
        Image("node", node, _dockerfile("node", base, "", wheels)),
        Image("task", task, _dockerfile("task", base, EXTRAS.get(runner, ""), wheels, asked)),
    )


def _requirements(workspace: Workspace) -> bytes | None:
    path = workspace.root / REQUIREMENTS
    return path.read_bytes() if path.is_file() else None


def _dockerfile(role: str, base: str, extra: str, wheels: bool, asked: bool = False) -> str:
    """Steps before the first that differs are the same for both, and built once."""
    source = f"--no-index --find-links /{WHEELHOUSE} " if wheels else ""
    copied = f"COPY {WHEELHOUSE} /{WHEELHOUSE}\n" if wheels else ""
    listed = f"COPY {REQUIREMENTS} /{REQUIREMENTS}\n" if asked else ""
    also = f" -r /{REQUIREMENTS}" if asked else ""
    return f"""\
# {role} image of openfed {__version__}, written by fx workspace dockerize
FROM {base} AS build
USER 0:0
RUN {PROBE}
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/openfed
{copied}{listed}RUN /opt/pip/bin/python -m pip --python /opt/openfed/bin/python install \\
    --no-input --no-cache-dir --no-compile --disable-pip-version-check --progress-bar off \\
    --root-user-action ignore {source}"openfed-fx{extra}=={__version__}"{also} && \\
{_PRUNE if role == "node" else ""}    ({_COMPILE} || true)

FROM {base}
LABEL {LABEL}role={role} {LABEL}version={__version__}
COPY --from=build /opt/openfed /opt/openfed
ENV PATH={PATH} HOME=/tmp USER=openfed LOGNAME=openfed PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
ENTRYPOINT []
USER {USER}
"""


# -- what a build gets -----------------------------------------------------------------------------


def wheels_in(folder: Path | None) -> tuple[Path, ...]:
    """The wheels of a folder. Raises: UsageError L07: this openfed's is not among them."""
    if folder is None:
        return ()
    found = tuple(sorted(path for path in folder.glob("*.whl") if path.is_file()))
    own = f"openfed_fx-{__version__}-"
    if not any(path.name.startswith(own) for path in found):
        message = f"{folder} has {len(found)} wheels and not {own}py3-none-any.whl among them"
        raise UsageError("L07", f"{message}: {_FILL.format(folder=folder)}")
    return found


_FILL = "fill it where there is a network: pip wheel -w {folder} openfed-fx[torch]==" + (
    f"{__version__} -r {REQUIREMENTS}"
)


def context(workspace: Workspace, image: Image, wheels: tuple[Path, ...], into: IO[bytes]) -> None:
    """Write the archive that the engine builds from: exactly these files, by no pattern."""
    asked = _requirements(workspace)
    with tarfile.open(fileobj=into, mode="w") as archive:
        add(archive, "Dockerfile", image.dockerfile.encode())
        if asked is not None:
            add(archive, REQUIREMENTS, asked)
        for path in wheels:
            with path.open("rb") as file:
                about = _member(f"{WHEELHOUSE}/{path.name}", os.fstat(file.fileno()).st_size)
                archive.addfile(about, file)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(_member(name, len(data)), io.BytesIO(data))


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Without times and owners: the same files make the same archive."""
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, 0o644
    return about


def write_files(workspace: Workspace, base: str, wheels: bool) -> tuple[Path, ...]:
    """Write the Dockerfiles, for people who build themselves, and the .dockerignore to go with
    them; the workspace's folder is what they build in.

    Raises: UsageError U18: another file is there; nothing is written then. PlanError.
    """
    texts = {f"docker/{each.role}.Dockerfile": each for each in images(workspace, base, wheels)}
    files = {".dockerignore": IGNORED} | {name: each.dockerfile for name, each in texts.items()}
    for path in _others(workspace.root, files):
        message = f"{path} is there and is another file: move it away, or build without --files"
        raise UsageError("U18", message)
    (workspace.root / "docker").mkdir(exist_ok=True)
    return tuple(write_whole(workspace.root / name, text.encode()) for name, text in files.items())


def _others(root: Path, files: dict[str, str]) -> Iterator[Path]:
    for name, text in files.items():
        path = root / name
        if os.path.lexists(path) and (not path.is_file() or path.read_bytes() != text.encode()):
            yield path
