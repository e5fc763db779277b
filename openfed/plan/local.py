"""What sites say by themselves, never part of the plan: `local.yaml`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from openfed.errors import PlanError
from openfed.plan.check import checked, finding
from openfed.plan.load import problems, read_file, workspace_of
from openfed.plan.values import Text, Value, refuse, shown, suggest

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def _device(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise refuse("P09", f"expected auto | cpu | cuda | cuda:N | mps, got {shown(text)}")
    return text


Device = Annotated[Text, AfterValidator(_device)]
Threads = Annotated[int, Field(strict=True, ge=1, le=1024)]


class Local(Value):
    """`local.yaml`: every site of a federation on this machine. A site's value is handed to its
    loader as it stands."""

    sites: Mapping[str, JsonValue] = Field(examples=["{one: data/one, two: data/two}"])
    device: Device = "auto"
    threads: Threads = 1


def read_local(path: Path, collaborators: Sequence[str]) -> Local:
    """Raises: PlanError: also where the sites are not the plan's collaborators."""
    tree, found = read_file(path, workspace_of(path))
    local = None
    if tree is not None:
        local, more = checked(tree, Local)
        found += more
    if local is not None and tree is not None:
        for name, message in _mismatches(local.sites, collaborators):
            found.append(finding(tree, ("sites", name), "P21", message, key=True))
    if found or local is None:
        raise PlanError(problems(found))
    return local


def _mismatches(
    sites: Mapping[str, JsonValue], collaborators: Sequence[str]
) -> Iterator[tuple[str, str]]:
    missing = [name for name in collaborators if name not in sites]
    known = set(collaborators)
    for name in sites:
        if name not in known:
            hint = suggest(name, missing)
            listed = ", ".join(collaborators)
            yield name, f"is no collaborator of the plan. {hint}the plan has: {listed}"[:200]
    for name in missing:
        yield name, f"is missing: add {name}: and where its data is"
