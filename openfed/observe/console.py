"""Progress for people: a live table in a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from openfed.observe.text import has_news, lines, number, one_line, size
from openfed.observe.view import Event, Observe, Row, View, fold

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

ABOVE = frozenset({"note", "run.started", "task.failed", "run.ended"})
"""Kinds that say what no table shows: in a terminal they are printed above the tables."""


@contextmanager
def console(stream: TextIO | None = None) -> Iterator[Observe]:
    """Shows events on `stream` (standard error) until the block ends."""
    stream = stream or sys.stderr
    with (_live if stream.isatty() else _plain)(stream) as show:
        yield show


@contextmanager
def _plain(stream: TextIO) -> Iterator[Observe]:
    view = View()

    def show(event: Event) -> None:
        nonlocal view
        view = fold(view, event)
        for line in lines(view, event):
            print(line, file=stream, flush=True)

    yield show


@contextmanager
def _live(stream: TextIO) -> Iterator[Observe]:
    from rich.console import Console  # noqa: PLC0415  (only a terminal pays for rich)
    from rich.live import Live  # noqa: PLC0415

    view = View()
    terminal = Console(file=stream, highlight=False, markup=False, emoji=False)

    def tables() -> "RenderableType":
        return render(view, terminal.height - 1)

    with Live(console=terminal, get_renderable=tables, refresh_per_second=4) as live:

        def show(event: Event) -> None:
            nonlocal view
            view = fold(view, event)
            if event.get("event") in ABOVE:
                for line in lines(view, event):
                    if not line.startswith(("round", "initial model")):  # those are in the table
                        terminal.print(line, soft_wrap=True)

        yield show
        live.refresh()


def render(view: View, height: int = 1000) -> "RenderableType":
    """The tables of a view, with as many of the latest rounds as fit in `height` lines."""
    from rich.console import Group  # noqa: PLC0415

    if not view.run:
        return ""
    rows = [row for _, row in sorted(view.rows.items()) if has_news(row)]
    room = max(3, height - len(view.sites) - 9)
    return Group(_rounds(rows[-room:], view.rounds), _sites(view))


def _rounds(rows: "list[Row]", rounds: int) -> "Table":
    table = _table("round", caption=None)
    names = sorted({name for row in rows for name in row.scores})
    for name in names + ["n", "seconds", "up", "down"]:
        table.add_column(one_line(name, 24), justify="right", no_wrap=True)
    for row in rows:
        label = f"{row.model}/{rounds}" if row.model else "initial"
        scores = [number(row.scores[name]) if name in row.scores else "" for name in names]
        cost = [str(sum(row.n.values())), f"{row.seconds:.1f}", size(row.up), size(row.down)]
        table.add_row(label, *scores, *(cost if row.seconds else [""] * 4))
    return table


def _sites(view: View) -> "Table":
    here = f"round {view.round} of {view.rounds}" if view.round else view.name
    table = _table("collaborator", caption=f"{here}: {one_line(view.phase, 60)}")
    table.add_column("state")
    table.add_column("n", justify="right")
    table.add_column("seconds", justify="right")
    for name, site in view.sites.items():
        n, seconds = (str(site.n or ""), f"{site.seconds:.1f}" if site.seconds else "")
        table.add_row(one_line(name, 40), one_line(site.state, 60), n, seconds)
    return table


def _table(first: str, caption: str | None) -> "Table":
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table
