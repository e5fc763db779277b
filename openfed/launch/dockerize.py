"""Images made by the engine from what `images` says, and the one file that carries them to a site
without a network."""

import hashlib
import io
import re
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import docker
from urllib3.exceptions import HTTPError

from openfed import __version__
from openfed.errors import OpenFedError, UsageError
from openfed.files import write_whole
from openfed.launch.containers import AWAY, connected
from openfed.launch.images import Image, add, context, images, wheels_in
from openfed.travel import Exported, export
from openfed.workspace import Workspace

Tell = Callable[[str], None]

TAIL = 15
"""Lines of a failed build that are shown."""

_STEP = re.compile(r"Step (\d+)/\d+ : ")
_FROM, _PROBE = 1, 3  # steps that fail for one reason only


@dataclass(frozen=True)
class Built:
    image: Image
    size: int  # bytes
    added: int  # of them, what lies over the base


@dataclass(frozen=True)
class Bundle:
    path: Path
    sha256: str
    size: int


def dockerize(
    workspace: Workspace, base: str, wheelhouse: Path | None, tell: Tell
) -> tuple[Built, Built]:
    """Build the node's and the task's image. With a wheelhouse, nothing of the build has a network.

    `tell` is given the lines of the builds as they come.
    Raises: OpenFedError: L01 no engine, L04 no such base, L05 the base has no Python, L06 a step
    failed. UsageError L07: the wheelhouse. PlanError: the plan does not load.
    """
    wheels = wheels_in(wheelhouse)
    node, task = images(workspace, base, bool(wheels))
    with closing(connected()) as engine:
        first = _build(engine, workspace, base, node, wheels, tell)
        return first, _build(engine, workspace, base, task, wheels, tell)


def save(workspace: Workspace, built: tuple[Built, Built], path: Path) -> Bundle:
    """Write both images and the workspace's export into one file that `docker load` takes.

    Raises: OpenFedError L01: no engine. What `export` raises.
    """
    tags = [each.image.tag for each in built]
    digest, size = hashlib.sha256(), 0

    def told(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    with tempfile.TemporaryDirectory() as folder:
        exported = export(workspace, Path(folder) / f"{workspace.root.name}.zip")
        first = _first(path.name, tags, exported)
    with closing(connected()) as engine:
        write_whole(path, told(chain((first,), saved(engine, tags))))
    return Bundle(path, digest.hexdigest(), size)


def saved(engine: Any, tags: Sequence[str]) -> Iterator[bytes]:
    """The engine's archive of several images, what they share once; the SDK has it for one only."""
    api = engine.api
    asked = f"{api.base_url}/v{api.api_version}/images/get"
    with api.get(asked, params={"names": tags}, stream=True) as answer:
        answer.raise_for_status()
        yield from answer.iter_content(1 << 20)


def check_saving(workspace: Workspace, path: Path) -> None:
    """Before a long build. Raises: UsageError U18: a file is there. What `export` raises."""
    if path.exists():
        raise UsageError("U18", f"{path} is there: remove it, or give another --save")
    with tempfile.TemporaryDirectory() as folder:
        export(workspace, Path(folder) / "workspace.zip")


# -- building --------------------------------------------------------------------------------------


def _build(
    engine: Any,
    workspace: Workspace,
    base: str,
    image: Image,
    wheels: tuple[Path, ...],
    tell: Tell,
) -> Built:
    _follow(_events(engine, workspace, image, wheels), image, base, tell)
    size = engine.images.get(image.tag).attrs["Size"]
    return Built(image, size, size - engine.images.get(base).attrs["Size"])


def _events(
    engine: Any, workspace: Workspace, image: Image, wheels: tuple[Path, ...]
) -> Iterator[dict[str, Any]]:
    """What the engine says while it builds."""
    with tempfile.TemporaryFile() as sent:  # not in memory: wheels of torch have gigabytes
        context(workspace, image, wheels, sent)
        sent.seek(0)
        yield from engine.api.build(
            fileobj=sent,
            custom_context=True,
            tag=image.tag,
            network_mode="none" if wheels else None,
            rm=True,
            forcerm=True,
            decode=True,
        )


def _follow(events: Iterator[dict[str, Any]], image: Image, base: str, tell: Tell) -> None:
    step, last = 0, deque[str](maxlen=TAIL)
    try:
        for event in events:
            for line in str(event.get("stream", "")).splitlines():
                if found := _STEP.match(line):
                    step = int(found[1])
                if line.strip():
                    last.append(line)
                    tell(f"{image.role}: {line}")
            if (said := event.get("error") or event.get("message")) is not None:
                raise _failed(image, base, step, str(said), last)
    except docker.errors.APIError as error:
        raise _failed(image, base, step, str(error.explanation or error), last) from None
    except (*AWAY, HTTPError) as error:
        raise OpenFedError("L01", f"the Docker engine has gone: {error}") from None


def _failed(image: Image, base: str, step: int, message: str, last: deque[str]) -> OpenFedError:
    if step <= _FROM:
        return OpenFedError("L04", f"the base image {base} cannot be had: {message}")
    if step == _PROBE:
        what = f"{base} has no Python 3.11 or newer with venv and ensurepip as python3"
        return OpenFedError("L05", f"{what}: give another --base")
    said = "\n".join(f"  {line}" for line in last)
    return OpenFedError("L06", f"the {image.role} image was not built: {message}\n{said}")


# -- the file for a site without a network ---------------------------------------------------------

_LOAD = """\
# openfed {version}: images and workspace for a site without a network
1. Compare the SHA-256 of this file with its sender's; `docker load -i {file}` gives {tags}.
2. `tar -xf {file} {archive}` takes the workspace out; its SHA-256 is {sha256}.
3. Where openfed is not installed: `fx() {{ {fx} "$@"; }}`.
4. `fx workspace import --archive {archive} --prefix NAME`: plan {digest}. `fx` says what is next.
"""

_FX = 'docker run --rm -i --user "$(id -u):$(id -g)" -v "$PWD:$PWD" -w "$PWD"'
"""How people run openfed from an image, in the folder where they are."""


def _first(file: str, tags: list[str], exported: Exported) -> bytes:
    """What stands in front of the images: LOAD.md and the workspace. `docker load` passes over
    members that it does not know."""
    about = _LOAD.format(
        version=__version__,
        file=file,
        tags=" and ".join(tags),
        archive=exported.path.name,
        sha256=exported.sha256,
        fx=f"{_FX} {tags[0]} fx",
        digest=exported.digest,
    )
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as archive:
        add(archive, "LOAD.md", about.encode())
        add(archive, exported.path.name, exported.path.read_bytes())
        end = into.tell()  # what closing adds would be the end of the whole file
    return into.getvalue()[:end]
