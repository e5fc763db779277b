"""Failed handshakes, from the events that count them to everything that people read."""

import json
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from openfed.launch.status import as_told, latest, status, status_lines
from openfed.observe.console import console, render
from openfed.observe.files import EVENTS
from openfed.observe.view import fold_all
from openfed.workspace import Workspace
from tests.unit.observe.started import STARTED

RESUMED = {**STARTED, "resumed": True}
ENDED = {"event": "run.ended", "status": "completed", "rounds": 2, "reason": None, "run": "r1"}
ENDED |= {"plan_digest": "ab" * 32, "metrics": {}, "best": None, "model": None}
LINE = "failed handshakes: 3 (unknown authority 2, not TLS 1)"


def failed(cause, count, since=100.0):
    about = {"cause": cause, "count": count, "since": since}
    return {"event": "handshake.failed", "at": since + count, **about}


WHOLE = [STARTED, failed("not TLS", 1), failed("unknown authority", 1)]
WHOLE += [failed("unknown authority", 2)]


def test_the_latest_count_of_each_cause_counts_and_the_most_frequent_comes_first():
    found = fold_all(WHOLE).failed_handshakes
    assert list(found.items()) == [("unknown authority", 2), ("not TLS", 1)]


@given(st.lists(st.sampled_from(WHOLE), max_size=8))
def test_events_told_again_in_any_order_change_no_count(again):
    assert fold_all([*WHOLE, *again]).failed_handshakes == fold_all(WHOLE).failed_handshakes


def test_a_restarted_aggregator_counts_from_one_and_what_was_before_is_added():
    view = fold_all([*WHOLE, RESUMED, failed("not TLS", 1, 200.0), failed("not TLS", 2, 200.0)])
    assert view.failed_handshakes == {"not TLS": 3, "unknown authority": 2}


def test_who_came_before_the_run_was_announced_counts_and_who_came_to_another_run_does_not():
    assert fold_all([WHOLE[1], STARTED]).failed_handshakes == {"not TLS": 1}
    assert not fold_all([*WHOLE, {**STARTED, "run": "r2"}]).failed_handshakes


def test_every_event_is_said_on_one_line_where_there_is_no_terminal():
    stream = StringIO()
    with console(stream) as show:
        for event in WHOLE:
            show(event)
    said = [line for line in stream.getvalue().splitlines() if "handshakes" in line]
    assert said == [
        "failed handshakes: 1 (not TLS 1)",
        "failed handshakes: 2 (not TLS 1, unknown authority 1)",
        LINE,
    ]


@pytest.mark.parametrize(("events", "shown"), [(WHOLE, True), ([STARTED], False)])
def test_the_live_tables_end_with_the_counts_if_there_are_any(events, shown):
    stream = StringIO()
    Console(file=stream, width=80, markup=False).print(render(fold_all(events), 40, 80))
    last = [line.strip() for line in stream.getvalue().splitlines() if line.strip()][-1]
    assert (last == LINE) == shown


@pytest.mark.parametrize(("end", "state"), [([], "interrupted"), ([ENDED], "completed")])
def test_status_says_the_counts_while_a_run_goes_on_and_when_it_has_ended(tmp_path, end, state):
    workspace = Workspace(tmp_path)
    workspace.logs.mkdir()
    lines = [json.dumps(event) + "\n" for event in [*WHOLE, *end]]
    (workspace.logs / EVENTS).write_text("".join(lines))
    view = latest(workspace)
    found = status(workspace, view)
    assert found["status"] == state
    assert json.loads(json.dumps(found))["failed_handshakes"] == {
        "unknown authority": 2,
        "not TLS": 1,
    }
    assert LINE in status_lines(found, view)


def test_the_result_of_a_run_without_any_has_an_empty_count():
    assert as_told(ENDED, fold_all([STARTED, ENDED]))["failed_handshakes"] == {}
    assert as_told(ENDED, fold_all([*WHOLE, ENDED]))["failed_handshakes"]["not TLS"] == 1
