"""Everyday: the kept inputs, honest ones, and those with a few bytes changed."""

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import LONGEST, MEMORY, SECONDS, TARGETS, attempt, honest

HONEST = honest()


def kept(name):
    return sorted(each for each in (CORPUS / name).glob("*") if each.is_file())


def within_bounds(target, data) -> bool:
    """Whether it took the bytes, with the memory and the (processor's) time that it may take."""
    began = time.thread_time()
    tracemalloc.start()
    try:
        taken = attempt(target, data)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.thread_time() - began < 5 * SECONDS, "tracing alone makes it no slower than that"
    return taken


@pytest.mark.parametrize("name", TARGETS)
def test_what_has_been_found_stays_mended(name):
    assert kept(name), "expected inputs in the corpus: scripts/fuzz --keep"
    for path in kept(name):
        within_bounds(TARGETS[name], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_honest_peers_send_is_taken(name):
    for data in HONEST[name]:
        assert within_bounds(TARGETS[name], data)


@st.composite
def changed(draw, inputs):
    """An honest input of which some places are other bytes, or a piece of another one."""
    data = bytearray(draw(st.sampled_from(inputs)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        until = at + draw(st.integers(0, 8))
        other = draw(st.sampled_from(inputs))[at:]
        data[at:until] = draw(st.binary(max_size=8) | st.just(other))
    return bytes(data[:LONGEST])


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25)
@given(data=st.data())
def test_what_is_changed_is_taken_or_refused(name, data):
    attempt(TARGETS[name], data.draw(changed(HONEST[name]) | st.binary(max_size=200)))


def test_the_corpus_is_small():
    assert sum(each.stat().st_size for name in TARGETS for each in kept(name)) < 1_000_000
    assert {each.name for each in CORPUS.iterdir()} <= set(TARGETS)


def test_whatever_is_no_error_of_ours_is_seen():
    with pytest.raises(KeyError):
        attempt(lambda data: {}[data], b"x")
    with pytest.raises(AssertionError):
        within_bounds(lambda data: bytearray(MEMORY + 1), b"x")
