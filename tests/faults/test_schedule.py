"""The schedule is a function of the seed."""

from itertools import pairwise

from tests.faults.__main__ import main
from tests.faults.schedule import KINDS, LINES, NODES, schedule


def test_the_same_seed_and_run_give_the_same_faults_and_others_give_others():
    first = schedule(1, 0, list(KINDS), 60)
    assert first == schedule(1, 0, list(KINDS), 60)
    assert first != schedule(1, 1, list(KINDS), 60) != schedule(2, 0, list(KINDS), 60)


def test_each_hand_does_one_thing_after_the_other_within_the_ranges_of_its_kinds():
    for run in range(20):
        for hand, kinds in zip(schedule(3, run, list(KINDS), 60), (NODES, LINES), strict=True):
            for fault, then in pairwise(hand):
                assert fault.at_s + fault.seconds < then.at_s < 60
            for fault in hand:
                kind = kinds[fault.kind]
                assert fault.target in kind.targets
                low, high = kind.seconds
                assert low - 0.01 <= fault.seconds <= high + 0.01
                assert kind.amount[0] <= fault.amount <= kind.amount[1]


def test_every_kind_occurs_and_only_those_that_were_asked_for():
    seen = {f.kind for run in range(20) for hand in schedule(1, run, list(KINDS), 60) for f in hand}
    assert seen == set(KINDS)
    asked = {"kill", "loss"}
    seen = {f.kind for run in range(5) for hand in schedule(1, run, list(asked), 60) for f in hand}
    assert seen == asked


def test_the_schedule_is_printed_before_anything_is_done(capsys):
    assert main(["--seed", "4", "--show", "2", "--only", "reset"]) == 0
    told = capsys.readouterr().out
    assert told.count("run ") == 2 and " bytes" in told and "reset" in told
    assert main(["--seed", "4", "--show", "2", "--only", "reset"]) == 0
    assert capsys.readouterr().out == told
