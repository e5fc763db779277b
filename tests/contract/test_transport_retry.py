"""Trying again: what is retried, when, how often, and from where."""

import asyncio
import random
from dataclasses import dataclass, field, replace

import pytest

from openfed.errors import CertificateError, PolicyError, TransportError, WireError
from openfed.transport.retry import Policy, retrying
from openfed.wire.messages import Hello, Pull, Push, Report, RunState, Stamp, Welcome

STAMP = Stamp("fed", "run", "d" * 64, "op")
BODY = b"0123456789"
DEFAULT = Policy()
LOST = TransportError("T09", "lost")


@dataclass
class Flaky:
    """A link that raises what it is told to, then works."""

    faults: list
    seen: list = field(default_factory=list)
    most: int = 4  # bytes that a pull gets through before its fault

    def _next(self, message):
        self.seen.append(message)
        if self.faults:
            raise self.faults.pop(0)

    async def hello(self, hello):
        self._next(hello)
        return Welcome(STAMP, RunState.RUNNING, 1.0)

    async def pull(self, pull):
        for begin in range(pull.offset, len(BODY), 2):
            if self.faults and begin >= pull.offset + self.most:
                break
            yield BODY[begin : begin + 2]
        self._next(pull)

    async def push(self, push, blocks, report):
        offset = 3 * len(self.seen)
        found = b"".join([block async for block in blocks(offset)])
        self._next((push, offset, found))
        return await report()


@dataclass
class Clock:
    now: float = 0.0
    pauses: list = field(default_factory=list)

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def attempt(call, flaky, policy=DEFAULT, draws=lambda: 1.0):
    clock = Clock()

    async def main():
        link = retrying(flaky, policy, random=draws, sleep=clock.sleep, clock=lambda: clock.now)
        return await call(link)

    return asyncio.run(main()), clock


def hello(link):
    return link.hello(Hello(STAMP))


async def pull(link):
    return b"".join([block async for block in link.pull(Pull(STAMP, "e" * 64, 1))])


def test_what_works_is_done_once():
    flaky = Flaky([])
    _, clock = attempt(hello, flaky)
    assert (flaky.seen, clock.pauses) == ([Hello(STAMP)], [])


def test_each_attempt_says_which_one_it_is_and_keeps_its_operation():
    flaky = Flaky([LOST, LOST])
    attempt(hello, flaky)
    assert [m.stamp.attempt for m in flaky.seen] == [1, 2, 3]
    assert {m.stamp.operation for m in flaky.seen} == {"op"}


def test_pauses_double_up_to_the_longest():
    _, clock = attempt(hello, Flaky([LOST] * 6), Policy(first_s=1.0, most_s=10.0))
    assert clock.pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_pauses_are_spread_over_the_upper_half():
    draws = random.Random(7).random
    _, clock = attempt(hello, Flaky([LOST] * 200), Policy(1.0, 1.0, 1e9), draws)
    assert 0.5 <= min(clock.pauses) < 0.52
    assert 0.98 < max(clock.pauses) < 1.0


@pytest.mark.parametrize(
    "fault",
    [
        TransportError("T07", "plaintext", permanent=True),
        WireError("W10", "nonsense"),
        CertificateError("C05", "expired"),
        PolicyError("T13", "no"),
    ],
    ids=lambda fault: type(fault).__name__,
)
@pytest.mark.parametrize("call", [hello, pull])
def test_permanent_faults_are_raised_at_once(fault, call):
    flaky = Flaky([fault])
    with pytest.raises(type(fault)) as caught:
        attempt(call, flaky)
    assert caught.value is fault
    assert len(flaky.seen) == 1


def test_after_the_deadline_the_last_fault_is_raised():
    faults = [TransportError("T05", str(n)) for n in range(99)]
    flaky = Flaky(list(faults))
    with pytest.raises(TransportError) as caught:
        attempt(hello, flaky, Policy(first_s=1.0, most_s=4.0, deadline_s=15.0))
    # Pauses of 1, 2, 4, 4 s bring the clock to 11; one more of 4 is within 15, the next is not.
    assert len(flaky.seen) == 6
    assert caught.value is faults[5]


def test_a_pull_goes_on_where_it_was_and_yields_each_byte_once():
    flaky = Flaky([LOST, LOST])
    found, _ = attempt(pull, flaky)
    assert found == BODY[1:]
    assert [(p.offset, p.stamp.attempt) for p in flaky.seen] == [(1, 1), (5, 2), (9, 3)]


def test_progress_of_a_pull_begins_the_deadline_anew():
    policy = Policy(first_s=10.0, most_s=10.0, deadline_s=15.0)
    found, clock = attempt(pull, Flaky([LOST] * 4, most=2), policy)
    assert found == BODY[1:]
    assert clock.now > 15.0
    with pytest.raises(TransportError):
        attempt(pull, Flaky([LOST] * 4, most=0), policy)


def test_a_push_asks_for_its_offset_again():
    async def blocks(offset):
        yield BODY[offset:]

    flaky = Flaky([LOST])
    push = Push(STAMP, "ask", "upload")

    async def said():
        return Report(STAMP, "ask")

    found, _ = attempt(lambda link: link.push(push, blocks, said), flaky)
    assert found == Report(STAMP, "ask")
    second = replace(push, stamp=replace(STAMP, attempt=2))
    assert flaky.seen == [(push, 0, BODY), (second, 3, BODY[3:])]
