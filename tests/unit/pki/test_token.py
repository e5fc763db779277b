"""Tokens as text, what they prove, and the authority's book of them."""

import dataclasses
import json
import random
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.errors import CertificateError
from openfed.pki.authority import Enrolment
from openfed.pki.keys import create_identity_key, create_key
from openfed.pki.leaf import inspect
from openfed.pki.messages import read_answer
from openfed.pki.office import create_office, open_office
from openfed.pki.request import create_request
from openfed.pki.token import (
    apply_with,
    mint,
    parse_token,
    prove,
    read_application,
    token_text,
    write_application,
)
from openfed.pki.token_book import GRACE_S, add_token, read_book, redeem, withdraw_token

NOW = 1_800_000_000.0
DAY = 86400.0


def refused(code):
    return pytest.raises(CertificateError, match=f"^{code} ")


def minted(name="one", *, federation="fed", role="collaborator", ends=NOW + DAY):
    return mint(federation, role, name, ends, "authority.example:50052")


def request_of(name="one", key=None, identity=None):
    return create_request(name, key or create_key(), identity or create_identity_key())


@pytest.fixture(scope="module")
def request_():
    return request_of()


@pytest.fixture
def office(tmp_path):
    create_office(tmp_path / "cert", "fed", NOW)
    return open_office(tmp_path / "cert")


NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?", fullmatch=True)


@given(NAMES, NAMES, st.integers(0, 2**40), st.sampled_from(["a:1", "[::1]:65535", "10.0.0.1:5"]))
def test_a_token_is_read_as_it_was_made(federation, name, ends, address):
    token = mint(federation, "collaborator", name, ends, address)
    assert parse_token(token_text(token)) == token


def test_a_token_is_one_line_that_needs_no_quotes_and_can_be_wrapped():
    text = token_text(minted())
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    assert parse_token(f"\r\n  {text[:40]}\r\n  {text[40:]}\n") == parse_token(text)


def test_no_character_can_be_lost_changed_or_swapped_unseen():
    text = token_text(minted())
    spoilt = [text[:end] for end in range(len(text))]
    spoilt += [text[:at] + text[at + 1 :] for at in range(len(text))]
    other = {c: "A" if c != "A" else "B" for c in text}
    spoilt += [text[:at] + other[text[at]] + text[at + 1 :] for at in range(len(text) - 1)]
    for each in spoilt:
        with refused("C50"):
            parse_token(each)


@given(st.text())
def test_any_text_is_a_token_or_refused(text):
    for each in (text, f"openfed1.{text}"):
        with refused("C50"):
            parse_token(each)


def test_two_tokens_share_no_secret_and_show_none():
    one, two = minted(), minted()
    assert one.secret != two.secret and one.id != two.id
    assert len(one.secret) * 8 >= 128
    assert one.secret.hex() not in repr(one) and str(one.secret) not in repr(one)


@pytest.mark.parametrize(
    "change", [{"federation": "other"}, {"name": "two"}, {"role": "aggregator"}, {"ends": 1}]
)
def test_the_key_is_bound_to_what_the_token_says(change):
    token = minted()
    assert dataclasses.replace(token, **change).key != token.key


def test_an_application_says_nothing_of_the_secret_or_the_key(request_):
    token = minted()
    sent = write_application(apply_with(token, request_))
    assert read_application(sent) == apply_with(token, request_)
    assert token.secret.hex().encode() not in sent and token.key.hex().encode() not in sent


def without(key):
    return lambda told: told.pop(key)


@pytest.mark.parametrize(
    "spoil",
    [
        *map(without, ("token", "federation", "role", "name", "proof", "csr", "signature")),
        lambda told: told.update(more=1),
        lambda told: told.update(name="a/../b"),
        lambda told: told.update(name=["one"]),
        lambda told: told.update(proof=told["proof"][:-2]),
        lambda told: told.update(csr="é" + told["csr"]),
        lambda told: told.update(csr=told["csr"] * 100),
        lambda told: told.update(identity="zz" * 32),
    ],
)
def test_an_application_of_another_form_is_refused(request_, spoil):
    told = json.loads(write_application(apply_with(minted(), request_)))
    spoil(told)
    with refused("C61"):
        read_application(json.dumps(told).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"1e999", b"[" * 30000, b'{"a":1,"a":2}'])
def test_what_is_no_application_at_all_is_refused(data):
    with refused("C61"):
        read_application(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"code":"C99","message":1}', b'{"a":1}'])
def test_an_answer_that_cannot_be_read_is_its_own_fault(data):
    with refused("C64"):
        read_answer(data, "a")
    assert read_answer(b'{"a": "x"}', "a") == {"a": b"x"}


def test_a_token_enrols_once_and_the_same_keys_get_the_same_chain(office, request_):
    token = minted()
    assert not add_token(office, token, NOW)
    chain, new = redeem(office, apply_with(token, request_), NOW + 1)
    assert new and inspect(chain).name == "one"
    assert office.nodes()[0].issued[0].how == "token"
    assert redeem(office, apply_with(token, request_), NOW + 2) == (chain, False)
    with refused("C51"):
        redeem(office, apply_with(token, request_of()), NOW + 3)
    assert len(office.nodes()[0].issued) == 1


def test_a_request_signed_again_by_the_same_keys_is_the_same_request(office):
    key, identity, token = create_key(), create_identity_key(), minted()
    add_token(office, token, NOW)
    first, second = (request_of("one", key, identity) for _ in range(2))
    assert first.csr != second.csr
    chain, _ = redeem(office, apply_with(token, first), NOW)
    assert redeem(office, apply_with(token, second), NOW) == (chain, False)


def forged(application, **change):
    return dataclasses.replace(application, **change)


def test_each_refusal_has_its_own_code_and_spends_nothing(office, request_):
    token, gone, old = minted(), minted("two"), minted("three", ends=NOW - 1)
    for each in (token, gone, old):
        add_token(office, each, NOW - DAY)
    withdraw_token(office, "two", NOW)
    good = apply_with(token, request_)
    later = dataclasses.replace(old, ends=int(NOW + DAY))
    for code, application in {
        "C52": apply_with(old, request_),
        "C53": forged(good, federation="other"),
        "C54": forged(good, request=request_of()),
        "C55": apply_with(gone, request_),
        "C56": apply_with(minted(), request_),
    }.items():
        with refused(code):
            redeem(office, application, NOW)
    with refused("C53"):  # another name
        redeem(office, forged(good, name="two"), NOW)
    with refused("C54"):  # its holder would like it to last longer
        redeem(office, apply_with(later, request_), NOW)
    with refused("C54"):
        redeem(office, forged(good, proof=prove(bytes(32), request_)), NOW)
    assert redeem(office, good, NOW)[1]


def test_what_the_office_refuses_spends_no_token(office, request_):
    office.certify(request_of(), Enrolment("fed", "collaborator", "one"), NOW)
    token = minted()
    add_token(office, token, NOW)
    with refused("C3."):  # another identity holds the name
        redeem(office, apply_with(token, request_), NOW)
    office.revoke("one", "its disk was lost", NOW)
    assert redeem(office, apply_with(token, request_), NOW)[1]


def test_a_newer_token_of_a_name_takes_the_place_of_the_one_before(office, request_):
    first, second = minted(), minted()
    add_token(office, first, NOW)
    assert add_token(office, second, NOW)
    with refused("C55"):
        redeem(office, apply_with(first, request_), NOW)
    assert redeem(office, apply_with(second, request_), NOW)[1]


def test_only_an_unused_token_can_be_withdrawn(office, request_):
    with refused("C63"):
        withdraw_token(office, "one", NOW)
    token = minted()
    add_token(office, token, NOW)
    redeem(office, apply_with(token, request_), NOW)
    with refused("C63"):
        withdraw_token(office, "one", NOW)


def test_a_token_keeps_enrolment_open_until_its_answer_had_time_to_arrive(office, request_):
    token = minted()
    add_token(office, token, NOW)

    def is_open(now):
        return read_book(office.cert_dir)[token.id].open(now)

    assert is_open(NOW) and not is_open(NOW + DAY)
    redeem(office, apply_with(token, request_), NOW)
    assert is_open(NOW + GRACE_S - 1) and not is_open(NOW + GRACE_S)


def test_the_book_is_private_and_does_not_hold_the_secret(office):
    token = minted()
    add_token(office, token, NOW)
    path = office.cert_dir / "authority" / "tokens.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.secret.hex() not in path.read_text() and token_text(token) not in path.read_text()


def test_a_line_that_a_crash_cut_off_never_happened(office, request_):
    token, other = minted(), minted("two")
    add_token(office, token, NOW)
    path = office.cert_dir / "authority" / "tokens.jsonl"
    whole = path.read_bytes()
    redeem(office, apply_with(token, request_), NOW)
    for end in (len(whole) + 1, len(whole) + 100):
        path.write_bytes(path.read_bytes()[:end])
        assert read_book(office.cert_dir)[token.id].usable(NOW)
    assert not add_token(office, other, NOW)
    assert path.read_bytes().startswith(whole) and len(read_book(office.cert_dir)) == 2


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"id": "x", "what": "used"}'])
def test_a_damaged_book_is_named_with_its_line(office, line):
    add_token(office, minted(), NOW)
    path = office.cert_dir / "authority" / "tokens.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(CertificateError, match=r"^C62 .*tokens.jsonl:2"):
        read_book(office.cert_dir)


def test_of_many_who_use_a_token_at_the_same_moment_one_is_enrolled(office):
    token = minted()
    add_token(office, token, NOW)
    begin, got = threading.Barrier(8), []

    def use():
        mine = open_office(office.cert_dir)  # as if in another process: locks are on files
        application = apply_with(token, request_of())
        begin.wait()
        try:
            got.append(redeem(mine, application, NOW)[1])
        except CertificateError as error:
            got.append(error.code)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, got)) == ["C51"] * 7 + ["True"]
    assert len(office.nodes()[0].issued) == 1


def test_random_bytes_for_an_application_do_no_more_than_be_refused():
    chance = random.Random(7)
    for _ in range(300):
        with refused("C61"):
            read_application(chance.randbytes(chance.randrange(200)))
