"""What a run is told of failed handshakes, by lines on descriptor 2 of a process."""

import json
import subprocess
import sys
import textwrap
from itertools import groupby

HEADER = """
import json, os, sys, threading
from openfed.node.handshakes import counted

LINE = "I0000 00:00:1.0 1 ssl_transport_security.cc:2530] Handshake failed with error {}\\n"
lock, heard = threading.Lock(), threading.Condition()
events = []

def say(kind, fields):
    with heard:
        events.append([kind, fields.get("cause"), fields.get("count")])
        heard.notify()

def fail(what, times=1):
    for _ in range(times):
        os.write(2, LINE.format(what).encode())

def wait_for(*event):
    with heard:
        assert heard.wait_for(lambda: list(event) in events, 30), events

TLS, PLAIN = "NO_SHARED_CIPHER", "HTTP_REQUEST"
OLD, NOT = "TLS before 1.3", "not TLS"
"""


def told(body) -> list[list]:
    source = HEADER + textwrap.dedent(body) + "\nprint(json.dumps(events))"
    done = subprocess.run(
        [sys.executable, "-c", source], timeout=60, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_exact_counts_are_told_before_the_end_of_the_run_and_nothing_after_it():
    events = told(
        """
        with counted(say) as emit:
            fail(TLS, 2)
            fail(PLAIN)
            wait_for("handshake.failed", NOT, 1)
            fail(TLS)
            fail(PLAIN)
            wait_for("handshake.failed", NOT, 2)
            emit("note", {})
            emit("run.ended", {})
            fail(PLAIN, 10)
        """
    )
    kinds = [kind for kind, _ in groupby(events, lambda event: event[0])]
    assert kinds == ["handshake.failed", "note", "handshake.failed", "run.ended"]
    assert events[-2:] == [["handshake.failed", "TLS before 1.3", 3], ["run.ended", None, None]]


def test_a_run_that_is_interrupted_tells_the_exact_counts_too():
    events = told(
        """
        try:
            with counted(say):
                fail(TLS, 7)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        """
    )
    assert events[-1] == ["handshake.failed", "TLS before 1.3", 7]


def test_a_flood_makes_few_events_and_each_has_a_larger_count():
    events = told(
        """
        with counted(say):
            fail(TLS, 3000)
        """
    )
    counts = [count for _, _, count in events]
    assert counts == sorted(set(counts)) and len(counts) <= 12
    assert counts[-1] == 3000


def test_a_count_that_was_told_is_not_told_again():
    events = told(
        """
        with counted(say) as emit:
            fail(TLS)
            wait_for("handshake.failed", OLD, 1)
            emit("run.ended", {})
        """
    )
    assert events == [["handshake.failed", "TLS before 1.3", 1], ["run.ended", None, None]]


def test_an_observer_that_fails_ends_neither_the_counting_nor_the_run():
    events = told(
        """
        def broken(kind, fields):
            say(kind, fields)
            if fields.get("count") == 1:
                raise BrokenPipeError("nobody listens")

        with counted(broken):
            fail(TLS)
            wait_for("handshake.failed", OLD, 1)
            fail(TLS)
            wait_for("handshake.failed", OLD, 2)
        """
    )
    assert [count for _, _, count in events] == [1, 2]
