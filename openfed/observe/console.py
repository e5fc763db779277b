"""Progress for people: a live table in a terminal, plain lines elsewhere."""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO

from openfed.observe.text import (
    failed_handshakes,
    has_news,
    lines,
    number,
    one_line,
    short,
    size,
    times,
)
from openfed.observe.view import Event, Moved, Observe, Row, View, fold

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

ABOVE = frozenset(
    {"note", "listening", "run.started", "node.refused", "task.failed", "ask.waiting", "run.ended"}
)
"""Kinds that say what no table shows: in a terminal they are printed above the tables."""


@contextmanager
def console(stream: TextIO | None = None, quiet: Collection[str] = ()) -> Iterator[Observe]:
    """Shows events on `stream` (standard error) until the block ends.

    Nothing is said of the kinds in `quiet`: the caller says it.
    """
    stream = stream or sys.stderr
    with (_live if stream.isatty() else _plain)(stream, quiet) as show:
        yield show


@contextmanager
def _plain(stream: TextIO, quiet: Collection[str]) -> Iterator[Observe]:
    view = View()

    def show(event: Event) -> None:
        nonlocal view
        view = fold(view, event)
        for line in lines(view, event, quiet):
            print(line, file=stream, flush=True)

    yield show


@contextmanager
def _live(stream: TextIO, quiet: Collection[str]) -> Iterator[Observe]:
    from rich.console import Console  # noqa: PLC0415  (only a terminal pays for rich)
    from rich.live import Live  # noqa: PLC0415

    view = View()
    terminal = Console(file=stream, highlight=False, markup=False, emoji=False)

    def tables() -> "RenderableType":
        return render(view, terminal.height - 1, terminal.width)

    with Live(console=terminal, get_renderable=tables, refresh_per_second=4) as live:

        def show(event: Event) -> None:
            nonlocal view
            view = fold(view, event)
            if event.get("event") in ABOVE:
                for line in lines(view, event, quiet):
                    if not line.startswith(("round", "initial model")):  # those are in the table
                        terminal.print(line, soft_wrap=True)

        yield show
        live.refresh()


def render(view: View, height: int = 1000, width: int = 1000) -> "RenderableType":
    """The tables of a view: as many of the latest rounds as fit in `height` lines, and as many
    columns as fit in `width`, whole ones."""
    from rich.console import Group  # noqa: PLC0415

    if not view.run:
        return ""
    rows = [row for _, row in sorted(view.rows.items()) if has_news(row)]
    failed = view.failed_handshakes
    room = max(3, height - len(view.sites) - 9 - bool(failed))
    here = f"round {view.round} of {view.rounds}" if view.round else view.name
    since = ", bytes since resumed" if view.partial else ""
    caption = f"{here}: {one_line(view.phase, 60)}{since}"
    if failed:
        caption += f"\n{failed_handshakes(failed)}"
    return Group(_table(_rounds(rows[-room:], view.rounds), width), _sites(view, width, caption))


Column = tuple[str, list[str]]
"""A heading, and the cells below it."""


def _rounds(rows: list[Row], rounds: int) -> list[Column]:
    """What matters most comes first: the last columns are the first to go."""
    labels = [f"{row.model}/{rounds}" if row.model else "initial" for row in rows]
    scores = sorted({name for row in rows for name in row.scores})
    others = sorted({name for row in rows for name in row.others})
    return [
        ("round", labels),
        *(_numbers(name, [row.scores for row in rows]) for name in scores),
        *(_numbers(name, [row.others for row in rows]) for name in others),
        ("n", [str(sum(row.n.values()) or "") for row in rows]),
        ("sec", [f"{row.seconds:.1f}" if row.seconds else "" for row in rows]),
        *_transfers([(row.total("up"), row.total("down")) for row in rows]),
    ]


def _transfers(found: Sequence[tuple[Moved, Moved]]) -> list[Column]:
    """Bytes up and down, each with how many times smaller than raw, and the speed of both."""
    speeds = [(up + down).rate for up, down in found]
    return [
        ("up", [_cell(up) for up, _ in found]),
        ("down", [_cell(down) for _, down in found]),
        ("MB/s", [short(speed / 1e6) if speed else "" for speed in speeds]),
    ]


def _cell(moved: Moved) -> str:
    return f"{size(moved.bytes)} {times(moved)}".strip() if moved.bytes else ""


def _numbers(name: str, found: Sequence[Mapping[str, float]]) -> Column:
    return one_line(name, 24), [number(each[name]) if name in each else "" for each in found]


def _sites(view: View, width: int, caption: str) -> "Table":
    sites = view.sites.values()
    columns = [
        ("collaborator", [one_line(name, 40) for name in view.sites]),
        ("state", [one_line(site.shown, 60) for site in sites]),
        ("n", [str(site.n or "") for site in sites]),
        ("sec", [f"{site.seconds:.1f}" if site.seconds else "" for site in sites]),
        *_transfers([(site.up, site.down) for site in sites]),
    ]
    return _table(columns, width, texts=2, caption=caption)


def fitting(columns: Sequence[Column], width: int, least: int) -> Sequence[Column]:
    """The first of the columns, as many as fit side by side; at least `least`."""
    from rich.cells import cell_len  # noqa: PLC0415

    used = 0  # a space at each edge, two between two columns
    for count, (heading, cells) in enumerate(columns):
        used += 2 + max(cell_len(text) for text in (heading, *cells))
        if used > width and count >= least:
            return columns[:count]
    return columns


def _table(
    columns: Sequence[Column], width: int, texts: int = 1, caption: str | None = None
) -> "Table":
    """The first `texts` columns hold words, the others numbers."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    table.padding = (0, 1, 0, 0)
    shown = fitting(columns, width, texts)
    for k, (heading, _) in enumerate(shown):
        justify: Literal["left", "right"] = "left" if k < texts else "right"
        table.add_column(heading, justify=justify, no_wrap=k != 1 or texts == 1)
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*cells)
    return table
