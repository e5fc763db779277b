import json
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.observe.console import console, render
from openfed.observe.files import METRICS, read, recorder
from openfed.observe.text import (
    clean,
    has_news,
    lines,
    number,
    plural,
    row_line,
    size,
)
from openfed.observe.view import Moved, View, fold, fold_all
from tests.unit.observe.started import STARTED


def joined(name):
    return {"event": "node.joined", "collaborator": name}


def opened(round, task, cohort=("one", "two")):
    return {"event": "ask.opened", "round": round, "task": task, "cohort": list(cohort)}


def reply(round, task, name, n, seconds, ruling="accepted"):
    told = {"round": round, "task": task, "collaborator": name, "ruling": ruling}
    return {"event": "reply", **told, "n": n, "seconds": seconds, "bytes": 10}


def closed(round, task, missing=()):
    told = {"round": round, "task": task, "accepted": [], "missing": list(missing), "seconds": 1}
    return {"event": "ask.closed", **told}


def metric(round, model, value, metric="loss", task="validate", who="aggregate", n=7):
    told = {"round": round, "model": model, "collaborator": who, "task": task}
    return {"event": "metric", **told, "metric": metric, "value": value, "n": n}


def round_ended(round):
    told = {"round": round, "digest": "00", "seconds": 1.5, "openfed_seconds": 0.05}
    return {"event": "round.ended", **told}


def transfer(round, task, name, direction, bytes, raw, seconds=0.5):
    told = {"round": round, "task": task, "collaborator": name, "direction": direction}
    return {"event": "transfer", **told, "bytes": bytes, "raw": raw, "seconds": seconds}


ENDED = {"event": "run.ended", "status": "completed", "rounds": 2, "reason": None}

WHOLE = [
    STARTED,
    joined("one"),
    joined("two"),
    opened(1, "validate"),
    metric(1, 0, 2.5),
    opened(1, "train"),
    transfer(1, "train", "one", "down", 1000, 1000),
    transfer(1, "train", "one", "up", 1_500_000, 12_000_000, 0.125),
    reply(1, "train", "one", 30, 0.5),
    transfer(1, "train", "two", "up", 500_000, 4_000_000, 0.375),
    reply(1, "train", "two", 12, 0.7),
    closed(1, "train"),
    metric(1, 1, 1.25, task="train"),
    round_ended(1),
    opened(2, "validate"),
    metric(2, 1, 0.5),
    metric(2, 1, 0.75, metric="accuracy"),
    metric(2, 1, 99.0, who="one"),
    opened(2, "train"),
    transfer(2, "train", "one", "up", 250_000, 2_000_000),
    reply(2, "train", "one", 30, 0.5),
    {"event": "task.failed", "round": 2, "task": "train", "collaborator": "two", "code": "K02"}
    | {"message": "user code raised ZeroDivisionError", "traceback": "  File 'src/a.py'\n  1/0"},
    closed(2, "train", missing=["two"]),
    round_ended(2),
    opened(2, "validate"),
    metric(2, 2, 0.25),
    ENDED,
]


def printed(events):
    view, told = View(), []
    for event in events:
        view = fold(view, event)
        told += lines(view, event)
    return told


def test_a_row_holds_what_training_cost_and_how_the_result_scored():
    row = fold_all(WHOLE).rows[1]
    assert dict(row.scores) == {"loss": 0.5, "accuracy": 0.75}
    assert dict(row.others) == {"train/loss": 1.25}
    assert dict(row.n) == {"one": 30, "two": 12}
    assert row.seconds == 1.5
    assert row.total("up") == Moved(2_000_000, 16_000_000, 0.5)
    assert row.total("down") == Moved(1000, 1000, 0.5)


def test_scores_belong_to_the_model_and_costs_to_the_round():
    rows = fold_all(WHOLE).rows
    assert [rows[k].scores.get("loss") for k in (0, 1, 2)] == [2.5, 0.5, 0.25]
    assert [rows[k].seconds for k in (0, 1, 2)] == [0.0, 1.5, 1.5]
    assert rows[2].missing == ("two",)


def test_every_model_is_printed_once_and_as_soon_as_it_is_scored():
    told = printed(WHOLE)
    rows = [line for line in told if line.startswith(("round 1/2", "round 2/2", "initial model"))]
    assert rows == [
        "initial model  loss 2.5000",
        "round 1/2  loss 0.5000  accuracy 0.7500  train/loss 1.2500  n 42 (one 30, two 12)  "
        "1.5 s  up 2.0 MB (8.0x, 4.0 MB/s), down 1.0 kB (2.0 kB/s)",
        "round 2/2  loss 0.2500  n 30 (one 30)  without two  1.5 s  "
        "up 250 kB (8.0x, 500 kB/s), down 0 B",
    ]
    assert told.index(rows[1]) < told.index("      1/0"), "round 1 is shown while round 2 trains"


def test_folding_an_event_again_changes_nothing():
    view = fold_all(WHOLE)
    for event in WHOLE[3:]:
        assert {k: v for k, v in fold(view, event).rows.items()} == dict(view.rows)


def test_a_failed_site_is_shown_failed_not_missing():
    events = WHOLE[: 1 + next(i for i, e in enumerate(WHOLE) if e.get("missing"))]
    assert fold_all(events).sites["two"].state == "train: failed K02"


def test_a_silent_site_is_shown_missing():
    view = fold_all([STARTED, opened(1, "train"), closed(1, "train", missing=["two"])])
    assert view.sites["two"].state == "train: missing"


def test_failures_show_the_users_own_lines():
    told = printed(WHOLE)
    at = told.index("round 2  train  two FAILED  K02  user code raised ZeroDivisionError")
    assert told[at + 1 : at + 3] == ["      File 'src/a.py'", "      1/0"]


def test_who_is_waited_for_is_named():
    told = printed([STARTED, opened(1, "validate"), joined("one")])
    assert told[-1] == "one joined (1 of 2, waiting for two)"


def test_a_site_that_never_came_is_shown_as_not_connected_whatever_is_asked_of_it():
    view = fold_all([STARTED, opened(1, "validate"), joined("one")])
    assert [site.shown for site in view.sites.values()] == ["validate", "not connected"]
    assert "not connected" in rendered(view)


def test_who_was_refused_is_told_on_one_line():
    refused = {"event": "node.refused", "collaborator": "eve", "role": "collaborator"}
    refused |= {"code": "R02", "message": "no such name\nin the plan"}
    assert printed([STARTED, refused])[-1] == "refused eve: R02 no such name in the plan"


def test_where_the_aggregator_listens_is_told():
    assert printed([{"event": "listening", "address": "[::]:5"}]) == ["listening on [::]:5"]


def test_the_reason_of_a_run_that_stopped_early_is_told():
    told = printed([*WHOLE[:-1], {**ENDED, "rounds": 1, "reason": "stopped early: enough"}])
    assert told[-1] == "completed after 1 of 2 rounds: stopped early: enough"


def test_one_round_is_not_one_rounds():
    assert printed([{**STARTED, "rounds": 1}])[0].endswith(", 1 round")
    assert plural(0, "round") == "0 rounds"


NO_SCORES = "no site gave validation data: no scores, no best model"


def test_a_run_without_any_validation_data_says_so():
    asked = [STARTED, opened(1, "validate"), opened(1, "train")]
    assert NO_SCORES in printed([*asked, ENDED])
    assert NO_SCORES not in printed([*asked, {**ENDED, "status": "failed"}])
    assert NO_SCORES not in printed([STARTED, opened(1, "train"), ENDED]), "none was planned"
    assert NO_SCORES not in printed(WHOLE)


def test_what_the_caller_says_itself_is_not_said_but_its_rows_are():
    stream = StringIO()
    with console(stream, quiet=("run.ended",)) as show:
        for event in WHOLE:
            show(event)
    assert "completed" not in stream.getvalue()
    assert "round 2/2  loss 0.2500" in stream.getvalue()


def test_a_resumed_run_keeps_the_rows_it_has():
    view = fold_all(WHOLE[:17] + [{**STARTED, "resumed": True}])
    assert view.rows[1].scores["loss"] == 0.5
    assert view.ended is None


def test_another_run_begins_an_empty_view():
    assert not fold_all([*WHOLE, {**STARTED, "run": "r2"}]).rows


def test_unknown_events_change_nothing():
    view = fold_all(WHOLE)
    assert fold(view, {"event": "from.the.future"}) == view


@given(st.text())
def test_nothing_that_a_terminal_obeys_survives_cleaning(text):
    kept = clean("\x1b[31m\u202e\x07\x9b" + text)
    assert all(c.isprintable() or c in "\n\t" for c in kept)
    assert "\x1b" not in kept and "\u202e" not in kept and "\x9b" not in kept


def test_cleaning_keeps_plain_text_and_says_what_it_left_out():
    assert clean("Größe 3 µm → 漢字\tx\n") == "Größe 3 µm → 漢字\tx\n"
    assert clean("\x1b[2J") == "\\x1b[2J"
    assert clean("a" * 3000) == "a" * 2000 + " ... (3000 characters)"


def test_hostile_names_and_messages_stay_text_on_every_path():
    evil = "\x1b]0;owned\x07[red]x[/red]\r\n" + "y" * 100_000
    events = [
        {**STARTED, "collaborators": [evil]},
        joined(evil),
        opened(1, "train", [evil]),
        reply(1, "train", evil, 3, 1.0, ruling="refused"),
        metric(1, 0, 1.0, metric=evil),
        {"event": "task.failed", "round": 1, "task": "train", "collaborator": evil, "code": "K02"}
        | {"message": evil, "traceback": evil},
        {**ENDED, "reason": evil},
    ]
    stream = StringIO()
    with console(stream) as show:
        for event in events:
            show(event)
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    assert len(stream.getvalue()) < 40_000


def rendered(view, width=80, height=1000):
    from rich.console import Console

    stream = StringIO()
    Console(file=stream, width=width, markup=False, force_terminal=False).print(
        render(view, height, width)
    )
    return stream.getvalue()


def test_the_live_tables_fit_eighty_columns_and_show_every_site_and_round():
    text = rendered(fold_all(WHOLE[:24]))
    assert all(len(line) <= 80 for line in text.splitlines())
    for expected in ("1/2", "0.7500", "2.0 MB", "one", "two", "train: failed K02", "accuracy"):
        assert expected in text


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (120, "round accuracy loss train/loss n sec up down MB/s"),
        (75, "round accuracy loss train/loss n sec up down MB/s"),
        (74, "round accuracy loss train/loss n sec up down"),
        (69, "round accuracy loss train/loss n sec up down"),
        (68, "round accuracy loss train/loss n sec up"),
        (61, "round accuracy loss train/loss n sec up"),
        (60, "round accuracy loss train/loss n sec"),
        (47, "round accuracy loss train/loss n"),
        (42, "round accuracy loss train/loss"),
        (38, "round accuracy loss"),
        (26, "round accuracy"),
    ],
)
def test_in_a_narrow_terminal_whole_columns_go_and_no_number_is_cut(width, headings):
    lines = rendered(fold_all(WHOLE[:24]), width).splitlines()
    assert next(line for line in lines if "round" in line).split() == headings.split()
    assert "…" not in "".join(lines[:6])
    assert all(len(line) <= width for line in lines[:6])


def test_the_live_tables_show_the_latest_rounds_where_not_all_fit():
    events = [{**STARTED, "rounds": 50}]
    for k in range(1, 51):
        events += [metric(k, k, 1.0), round_ended(k)]
    text = rendered(fold_all(events), height=24)
    assert "50/50" in text and "10/50" not in text
    assert len(text.splitlines()) <= 24


def test_markup_in_names_is_not_obeyed_by_the_live_tables():
    view = fold_all([{**STARTED, "collaborators": ["[bold]a[/bold]"]}])
    assert "[bold]a[/bold]" in rendered(view)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0000"),
        (0.97226, "0.9723"),
        (12.5, "12.5000"),
        (1e-9, "1.000e-09"),
        (1e7, "1.000e+07"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1234, "1.2 kB"),
        (501_000, "501 kB"),
        (99_960, "100 kB"),
        (999_700, "1.0 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_have_units(count, text):
    assert size(count) == text


def test_models_without_news_are_not_shown():
    view = fold_all([STARTED, closed(1, "train")])
    assert not has_news(view.rows[1])
    assert row_line(view, view.rows[1]) == "round 1/2"


def test_metrics_file_has_one_line_for_each_score_also_after_a_resume(tmp_path):
    with recorder(tmp_path, resumed=False) as record:
        for event in WHOLE[:17]:
            record(event)
    with (tmp_path / METRICS).open("ab") as torn:
        torn.write(b'{"round": 2, "mod' + b"x" * 5000)
    with recorder(tmp_path, resumed=True) as record:
        for event in [STARTED, *WHOLE[4:]]:
            record(event)
    assert (tmp_path / METRICS).read_bytes().endswith(b"}\n")
    rows = read(tmp_path / METRICS)
    expected = [event for event in WHOLE if event["event"] == "metric"]
    assert [(r["model"], r["value"]) for r in rows] == [(e["model"], e["value"]) for e in expected]
    assert list(rows[0]) == ["round", "model", "collaborator", "task", "metric", "value", "n"]


def test_a_new_run_begins_new_files(tmp_path):
    for _ in range(2):
        with recorder(tmp_path, resumed=False) as record:
            record(metric(1, 0, 2.5))
    assert len(read(tmp_path / METRICS)) == 1


def test_not_a_number_is_never_written(tmp_path):
    with recorder(tmp_path, resumed=False) as record, pytest.raises(ValueError):
        record(metric(1, 0, float("nan")))
    assert json.dumps(read(tmp_path / METRICS)) == "[]"
