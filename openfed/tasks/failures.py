"""What a person is told when user code failed: a code, one line, and the lines of their own."""

import importlib
import traceback
from pathlib import Path

import openfed
from openfed.errors import OpenFedError

LONGEST = 16_000
"""Characters of a message or a traceback that are kept, from its end."""

_OPENFED = f"{Path(openfed.__file__).parent}/"
_IMPORTLIB = f"{Path(importlib.__file__).parent}/"


def failure(error: BaseException, workspace: Path) -> dict[str, str]:
    """`code`, `message` and `traceback` of what user code raised."""
    if isinstance(error, OpenFedError):
        code, message = error.code, error.message
        told = own_lines(error.__cause__, workspace) if error.__cause__ else ""
    else:
        told = own_lines(error, workspace)
        if isinstance(error, SystemExit):
            code, message = "K03", f"user code called exit({error.code!r})"
        else:
            code, message = "K02", f"user code raised {_summary(error)}"
    return {"code": code, "message": _plain(message), "traceback": _plain(told)}


def _plain(text: str) -> str:
    """The end of it, without what no UTF-8 file can hold."""
    cut = text if len(text) <= LONGEST else f"...\n{text[-LONGEST:]}"
    return cut.encode(errors="backslashreplace").decode()


def _summary(error: BaseException) -> str:
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__)[:2000]


def own_lines(error: BaseException, workspace: Path) -> str:
    """The traceback without openfed's frames; of files in the workspace alone, if there are any."""
    told = traceback.TracebackException.from_exception(error, limit=-200)
    told.stack = _cut(told.stack, workspace)
    links = [told]
    for link in links:
        for other in (link.__cause__, link.__context__, *(link.exceptions or ())):
            if other is not None and other not in links:
                other.stack = _cut(other.stack, workspace)
                links.append(other)
    return "".join(told.format()).replace(f"{workspace}/", "")


def _cut(stack: traceback.StackSummary, workspace: Path) -> traceback.StackSummary:
    foreign = [
        frame
        for frame in stack
        if not frame.filename.startswith((_OPENFED, "<frozen importlib", _IMPORTLIB))
    ]
    own = [frame for frame in foreign if frame.filename.startswith(f"{workspace}/")]
    return traceback.StackSummary.from_list(own or foreign)
