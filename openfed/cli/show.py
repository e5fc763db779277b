"""How results look on standard output; everything that is not a result goes to standard error."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openfed.errors import OpenFedError
from openfed.launch.result import Result
from openfed.observe.text import clean, number, one_line, plural, transferred
from openfed.observe.view import Moved
from openfed.workspace import purpose

if TYPE_CHECKING:
    from openfed.launch.authority import Minted


def as_json(value: Mapping[str, Any]) -> None:
    """One object on one line, the last of standard output."""
    click.echo(json.dumps(value, allow_nan=False))


def written(root: Path, paths: Iterable[Path]) -> None:
    """The files that a command wrote, and who gets each."""
    names = [path.relative_to(root) for path in paths]
    width = max((len(str(name)) for name in names), default=0)
    for name in names:
        click.echo(f"  {name!s:<{width}}  {purpose(name)}".rstrip())


def result(ended: Result) -> None:
    """What a run came to, and where everything lies."""
    for line in result_lines(ended.json, ended.workspace):
        click.echo(line)


def result_lines(told: Mapping[str, Any], root: Path) -> Iterator[str]:
    reason = f": {clean(told['reason'])}" if told["reason"] else ""
    yield f"{told['status']} after {plural(told['rounds'], 'round')}{reason}"
    yield f"  run       {told['run']}, plan {told['plan_digest'][:16]}"
    yield from _scores(told["metrics"], told["best"])
    for way in ("up", "down"):
        yield f"  {way:<9} {transferred(_moved(told, way), raw=True)}"
    yield f"  seconds   {_seconds(told['seconds'])}"
    if model := told["model"]:
        yield f"  model     {root / model['path']}, digest {model['digest'][:16]}"
    yield f"  metrics   {root / 'logs' / 'metrics.jsonl'}"
    yield f"  logs      {root / 'logs'}"


def _moved(told: Mapping[str, Any], way: str) -> Moved:
    seconds = sum(site[way]["seconds"] for site in told["transfers"].values())
    return Moved(told["bytes"][way], told["bytes"][f"{way}_raw"], seconds)


def _scores(metrics: Mapping[str, float], best: Mapping[str, Any] | None) -> Iterator[str]:
    if metrics:
        each = (f"{one_line(name, 40)} {number(value)}" for name, value in metrics.items())
        yield f"  scores    {', '.join(each)}"
    if best:
        what = f"{one_line(best['metric'], 40)} {number(best['value'])}"
        yield f"  best      model {best['model']}, {what}"


def _seconds(spent: Mapping[str, float]) -> str:
    parts = f"training {spent['training']:.1f}, imports {spent['imports']:.1f}"
    own = f"openfed {spent['openfed']:.1f} ({spent['per_round']:.3f} a round)"
    return f"{spent['total']:.1f} in all: {parts}, {own}"


def minted(made: "Minted", *, as_object: bool) -> None:
    """A token, and what has to be known to use it."""
    if made.replaced:
        click.echo(f"note: the token for {made.name} that was not used is withdrawn", err=True)
    if not made.served:
        click.echo("note: no authority is served now; start it here: fx pki serve", err=True)
    if as_object:
        return as_json(made.json)
    ends = time.strftime("%F %H:%M UTC", time.gmtime(made.ends))
    for about, text in (
        ("token", made.text),
        ("pin", made.pin),
        ("for", f"collaborator {made.name}, once, until {ends}, at {made.address}"),
        ("Next:", f"in the workspace of {made.name}"),
    ):
        click.echo(f"{about:<8}{text}")
    click.echo(made.command)


@contextmanager
def docker_needed() -> Iterator[None]:
    """Raises: OpenFedError L03: the package that speaks to Docker is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"the Python package {error.name} is missing: pip install 'openfed-fx[docker]'"
        raise OpenFedError("L03", message) from None
