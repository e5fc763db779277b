"""Bytes, from the events of finished transfers to everything that people read."""

import json
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from openfed.cli.show import result_lines
from openfed.launch.result import Result
from openfed.launch.status import as_told, latest, status, status_lines
from openfed.observe.console import console, render
from openfed.observe.files import EVENTS, TRANSFERS, read, recorder
from openfed.observe.text import both_ways, row_line, short, times, transferred
from openfed.observe.view import Moved, View, fold, fold_all
from openfed.workspace import Workspace
from tests.unit.observe.started import STARTED

RESUMED = {**STARTED, "resumed": True}


def transfer(round, task, name, direction, bytes, raw, seconds, **more):
    told = {"round": round, "task": task, "collaborator": name, "direction": direction}
    return {"event": "transfer", "at": 1.0, **told, "bytes": bytes, "raw": raw} | {
        "seconds": seconds,
        **more,
    }


def ended(round):
    return {"event": "round.ended", "round": round, "seconds": 4.0, "openfed_seconds": 0.1}


ROUND_1 = [
    transfer(1, "validate", "one", "down", 2_000_000, 8_000_000, 0.5),
    transfer(1, "validate", "two", "down", 2_000_000, 8_000_000, 1.5),
    transfer(1, "train", "one", "up", 1_000_000, 8_000_000, 0.25),
    transfer(1, "train", "two", "up", 250_000, 8_000_000, 0.75),
    ended(1),
]
ROUND_2 = [
    transfer(2, "train", "one", "down", 2_000_000, 8_000_000, 1.0),
    transfer(2, "train", "one", "up", 500_000, 8_000_000, 1.0),
    ended(2),
    transfer(3, "validate", "one", "down", 3_000_000, 8_000_000, 1.0),  # the last model
]
END = {"event": "run.ended", "status": "completed", "rounds": 2, "reason": None, "run": "r1"}
END |= {"plan_digest": "ab" * 32, "metrics": {}, "best": None, "model": None}
SPENT = {"total": 9.0, "training": 1.0, "imports": 1.0, "openfed": 7.0, "per_round": 0.1}

WHOLE = [STARTED, *ROUND_1, *ROUND_2, {**END, "at": 2.0}]

TOTALS = {"up": 1_750_000, "down": 9_000_000, "up_raw": 24_000_000, "down_raw": 32_000_000}
EACH = {
    "one": {
        "up": {"bytes": 1_500_000, "raw": 16_000_000, "seconds": 1.25},
        "down": {"bytes": 7_000_000, "raw": 24_000_000, "seconds": 2.5},
    },
    "two": {
        "up": {"bytes": 250_000, "raw": 8_000_000, "seconds": 0.75},
        "down": {"bytes": 2_000_000, "raw": 8_000_000, "seconds": 1.5},
    },
}


@pytest.mark.parametrize(
    ("round", "way", "who", "expected"),
    [
        (1, "up", "one", Moved(1_000_000, 8_000_000, 0.25)),
        (1, "up", "two", Moved(250_000, 8_000_000, 0.75)),
        (1, "up", None, Moved(1_250_000, 16_000_000, 1.0)),
        (1, "down", None, Moved(4_000_000, 16_000_000, 2.0)),
        (2, "up", "one", Moved(500_000, 8_000_000, 1.0)),
        (2, "up", "two", Moved()),
        (2, "down", None, Moved(2_000_000, 8_000_000, 1.0)),
    ],
)
def test_a_round_knows_what_each_collaborator_moved(round, way, who, expected):
    assert fold_all(WHOLE).rows[round].total(way, who) == expected


def test_ratio_and_speed_are_of_sums_not_means_of_ratios():
    up = fold_all(WHOLE).rows[1].total("up")
    assert (up.ratio, up.rate) == (12.8, 1_250_000)  # 16 / 1.25 MB, 1.25 MB / 1 s


def test_nothing_moved_has_ratio_one_and_no_speed():
    assert (Moved().ratio, Moved().rate, Moved(5, 5, 0.0).rate) == (1.0, 0.0, 0.0)


def test_the_validation_after_the_last_round_counts_in_the_total_and_is_no_row():
    view = fold_all(WHOLE)
    assert view.total("down") == Moved(9_000_000, 32_000_000, 4.0)
    with_row = [line for line in printed(WHOLE).splitlines() if line.startswith("round")]
    assert len(with_row) == 2 and "3/2" not in tables(view)


@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=12), st.randoms())
def test_events_told_again_in_any_order_change_no_figure(again, random):
    """After a restart; the second word may also say that less had to be moved."""
    view = fold_all(WHOLE)
    repeated = [WHOLE[k] for k in again if WHOLE[k]["event"] == "transfer"]
    random.shuffle(repeated)
    more = fold_all([*WHOLE, RESUMED, *({**event, "bytes": 0} for event in repeated)])
    assert (more.total("up"), more.total("down")) == (view.total("up"), view.total("down"))
    assert {k: row.moved for k, row in more.rows.items()} == {
        k: row.moved for k, row in view.rows.items()
    }


def test_two_payloads_of_one_task_are_two_transfers():
    one = transfer(1, "validate", "one", "down", 100, 400, 1.0, payload="model")
    other = transfer(1, "validate", "one", "down", 10, 10, 1.0, payload="frozen")
    assert fold_all([STARTED, one, other, one]).total("down") == Moved(110, 410, 2.0)


def test_another_run_begins_at_zero():
    assert fold_all([*WHOLE, {**STARTED, "run": "r2"}]).total("down") == Moved()


def test_a_direction_from_the_future_changes_nothing():
    view = fold_all(WHOLE)
    assert fold(view, transfer(1, "train", "one", "sideways", 1, 1, 1.0)) == view


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "text", "with_raw"),
    [
        (Moved(1_200_000, 9_600_000, 0.5), "1.2 MB (8.0x, 2.4 MB/s)", "1.2 MB (raw 9.6 MB, 8.0x"),
        (Moved(100, 3170, 0.0), "100 B (32x)", "100 B (raw 3.2 kB, 32x)"),
        (Moved(100, 95, 0.0), "100 B (0.95x)", "100 B (raw 95 B, 0.95x)"),
        (Moved(1_200_000, 1_200_000, 0.5), "1.2 MB (2.4 MB/s)", "1.2 MB (2.4 MB/s)"),
        (Moved(1000, 1002, 0.0), "1.0 kB", "1.0 kB"),
        (Moved(), "0 B", "0 B"),
    ],
)
def test_a_ratio_is_said_only_where_there_is_one(moved, text, with_raw):
    assert transferred(moved) == text
    assert transferred(moved, raw=True).startswith(with_raw)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.004, "0.00"), (0.994, "0.99"), (0.996, "1.0"), (8.04, "8.0"), (9.96, "10"), (1234, "1234")],
)
def test_ratios_and_speeds_have_two_digits(value, text):
    assert short(value) == text


def test_both_directions_are_said_with_their_own_ratio():
    row = fold_all(WHOLE).rows[1]
    text = "up 1.2 MB (13x, 1.2 MB/s), down 4.0 MB (4.0x, 2.0 MB/s)"
    assert both_ways(row.total("up"), row.total("down")) == text
    assert row_line(View(rounds=2), row) == f"round 1/2  4.0 s  {text}"


def printed(events):
    stream = StringIO()
    with console(stream) as show:
        for event in events:
            show(event)
    return stream.getvalue()


def test_a_ci_log_has_the_bytes_of_each_round_on_its_line():
    assert "round 2/2  4.0 s  up 500 kB (16x, 500 kB/s), down 2.0 MB (4.0x" in printed(WHOLE)


def tables(view, width=80):
    stream = StringIO()
    Console(file=stream, width=width, markup=False).print(render(view, 40, width))
    return stream.getvalue()


def line(text, first):
    """The line that begins with this word, one space between its words."""
    found = (" ".join(line.split()) for line in text.splitlines())
    return next(line for line in found if line.startswith(f"{first} "))


def test_the_live_tables_show_rounds_and_collaborators_in_eighty_columns():
    text = tables(fold_all(WHOLE[:-1]))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert line(text, "round") == "round n sec up down MB/s"
    assert line(text, "1/2") == "1/2 4.0 1.2 MB 13x 4.0 MB 4.0x 1.8"  # 5.25 MB in 3 s
    assert line(text, "one") == "one not connected 1.5 MB 11x 7.0 MB 3.4x 2.3"  # 8.5 in 3.75
    assert line(text, "two") == "two not connected 250 kB 32x 2.0 MB 4.0x 1.0"  # 2.25 in 2.25


def test_a_full_plan_with_codecs_shows_both_directions_in_eighty_columns():
    metrics = [
        {"event": "metric", "round": r, "model": r - shift, "collaborator": "aggregate"}
        | {"task": task, "metric": name, "value": 0.9, "n": 4}
        for r in (1, 2)
        for shift, task, name in (
            (1, "validate", "accuracy"),
            (1, "validate", "loss"),
            (0, "train", "loss"),
        )
    ]
    text = tables(fold_all([*WHOLE[:-1], *metrics]))
    assert line(text, "round") == "round accuracy loss train/loss n sec up down MB/s"
    assert max(len(line) for line in text.splitlines()) <= 80


def test_without_codecs_no_ratio_is_shown():
    plain = [{**e, "raw": e["bytes"]} if e["event"] == "transfer" else e for e in WHOLE]
    assert line(tables(fold_all(plain)), "1/2") == "1/2 4.0 1.2 MB 4.0 MB 1.8"
    assert "raw" not in both_ways(fold_all(plain).total("up"), Moved(), raw=True)
    assert times(Moved(7, 7, 1.0)) == ""


def test_a_view_that_begins_with_a_resumed_run_says_what_its_bytes_are():
    assert "bytes since resumed" in tables(fold_all([RESUMED, *ROUND_2]))
    for whole in (WHOLE[:-1], [*WHOLE[:5], RESUMED, *ROUND_2]):
        assert "since resumed" not in tables(fold_all(whole))
    again = [RESUMED, *ROUND_2, RESUMED]
    assert fold_all(again).partial, "a restart of the aggregator brings nothing back"


# -- files ---------------------------------------------------------------------------------------


def recorded(root, lives):
    for life in lives:
        with recorder(root / "logs", resumed=life[0]["resumed"]) as record:
            for event in life:
                record(event)


def test_transfers_file_has_one_line_for_each_transfer_also_after_a_resume(tmp_path):
    again = {**ROUND_1[2], "bytes": 0}
    recorded(tmp_path, [[STARTED, *ROUND_1], [RESUMED, again, *ROUND_2]])
    rows = read(tmp_path / "logs" / TRANSFERS)
    told = [event for event in WHOLE if event["event"] == "transfer"]
    keys = ("round", "task", "collaborator", "direction", "bytes", "raw", "seconds")
    assert [[row[k] for k in keys] for row in rows] == [[event[k] for k in keys] for event in told]
    assert [row["ratio"] for row in rows] == [4, 4, 8, 32, 4, 16, 2.667]
    assert [row["mb_per_s"] for row in rows] == [4, 1.333, 4, 0.333, 2, 0.5, 3]
    assert {row["payload"] for row in rows} == {""}
    recorded(tmp_path, [[STARTED]])
    assert read(tmp_path / "logs" / TRANSFERS) == [], "a new run begins a new file"


def test_totals_of_a_resumed_run_count_all_its_lives(tmp_path):
    recorded(tmp_path, [[STARTED, *ROUND_1], [RESUMED, ROUND_1[2], *ROUND_2, WHOLE[-1]]])
    found = latest(Workspace(tmp_path))
    told = as_told(WHOLE[-1], found)
    assert told["bytes"] == TOTALS and told["transfers"] == EACH
    assert told["status"] == "completed" and "event" not in told and "at" not in told
    assert status(Workspace(tmp_path), found) == json.loads(json.dumps(told))


def test_status_tells_bytes_while_the_run_goes_on_and_after_it(tmp_path):
    for told in (WHOLE[:-1], WHOLE):
        recorded(tmp_path, [told])
        view = latest(Workspace(tmp_path))
        found = status(Workspace(tmp_path), view)
        assert found["bytes"] == TOTALS and found["transfers"] == EACH
        said = list(status_lines(found, view))
        state = "" if told is WHOLE else "not connected, "
        assert f"two: {state}up 250 kB (32x, 333 kB/s), down 2.0 MB (4.0x, 1.3 MB/s)" in said
        total = "up 1.8 MB (raw 24.0 MB, 14x, 875 kB/s), down 9.0 MB (raw 32.0 MB, 3.6x, 2.2 MB/s)"
        assert f"in all: {total}" in said
    assert (tmp_path / "logs" / EVENTS).exists()


def test_status_says_nothing_of_bytes_before_any_moved(tmp_path):
    recorded(tmp_path, [[STARTED]])
    view = latest(Workspace(tmp_path))
    said = list(status_lines(status(Workspace(tmp_path), view), view))
    assert said[-3:-1] == ["one: not connected", "two: not connected"]


def test_the_last_lines_of_a_run_say_what_travelled():
    told = {**as_told(WHOLE[-1], fold_all(WHOLE)), "seconds": SPENT}
    said = list(result_lines(told, Path("w")))
    assert "  up        1.8 MB (raw 24.0 MB, 14x, 875 kB/s)" in said
    assert "  down      9.0 MB (raw 32.0 MB, 3.6x, 2.2 MB/s)" in said
    assert max(len(line) for line in said) <= 80


def test_a_result_gives_its_transfers_as_a_table(tmp_path):
    pytest.importorskip("pandas")
    recorded(tmp_path, [WHOLE])
    frame = Result(tmp_path, {}).transfers
    up = frame[frame.direction == "up"]
    assert up.groupby("collaborator").bytes.sum().to_dict() == {"one": 1_500_000, "two": 250_000}
