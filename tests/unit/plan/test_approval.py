"""Signatures and approvals: what they cover, and that nothing else counts."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.errors import PolicyError
from openfed.pki.keys import create_identity_key, create_key, identity_public, sign
from openfed.plan.approval import (
    Signed,
    _message,
    check_signature,
    fingerprint,
    read_signed,
    sign_digest,
    verify_approval,
)
from openfed.plan.digest import canonical_json

KEY, OTHER = create_identity_key(), create_identity_key()
PLAN, NOW = "ab" * 32, 1_790_000_000.25
APPROVAL = sign_digest("approval", PLAN, "consortium", "one", KEY, NOW)
SIGNATURE = sign_digest("signature", PLAN, "consortium", "aggregator", KEY, NOW)


def approved(data: bytes, key: bytes = KEY, digest: str = PLAN, name: str = "one") -> Signed:
    return verify_approval(data, identity_public(key), digest, name)


def test_an_approval_is_read_as_it_was_written() -> None:
    assert approved(APPROVAL.data()) == APPROVAL
    assert APPROVAL.data() == canonical_json(json.loads(APPROVAL.data())) + b"\n"
    keys = {"digest", "federation", "name", "public_key", "at", "signature"}
    assert json.loads(APPROVAL.data()).keys() == keys
    assert check_signature(SIGNATURE.data(), PLAN) == SIGNATURE


def test_people_see_name_time_and_key() -> None:
    key = fingerprint(identity_public(KEY))
    assert APPROVAL.who == f"one, 2026-09-21 14:13 UTC, identity key {key}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("digest", "cd" * 32),
        ("federation", "other"),
        ("name", "two"),
        ("public_key", identity_public(OTHER).hex()),
        ("at", NOW + 1),
        ("signature", "00" * 64),
        ("signature", sign(OTHER, _message(APPROVAL)).hex()),
    ],
)
def test_nothing_that_was_signed_can_be_changed(key: str, value: Any) -> None:
    content = {**json.loads(APPROVAL.data()), key: value}
    digest = value if key == "digest" else PLAN
    name = value if key == "name" else "one"
    with pytest.raises(PolicyError, match="does not count: its signature is not that of its key"):
        approved(json.dumps(content).encode(), digest=digest, name=name)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (APPROVAL.data().replace(b'"one"', b'"ONE"'), "its signature is not that of its key"),
        (sign_digest("approval", PLAN, "f", "two", KEY, NOW).data(), "it is of two"),
        (sign_digest("approval", PLAN, "f", "one", OTHER, NOW).data(), "expected the key sha256:"),
        (sign_digest("approval", "cd" * 32, "f", "one", KEY, NOW).data(), "expected plan abab"),
        (sign_digest("signature", PLAN, "f", "one", KEY, NOW).data(), "its signature is not that"),
        (b"", "Expecting value"),
    ],
)
def test_an_approval_counts_for_its_site_key_and_plan_only(data: bytes, why: str) -> None:
    with pytest.raises(PolicyError, match=why) as caught:
        approved(data)
    assert caught.value.code == "R22"
    assert caught.value.message.endswith("fx collaborator approve -n one")


def test_an_approval_is_no_signature_of_the_author() -> None:
    assert {**APPROVAL.json(), "signature": 0} == {
        **sign_digest("signature", PLAN, "consortium", "one", KEY, NOW).json(),
        "signature": 0,
    }
    with pytest.raises(PolicyError) as caught:
        check_signature(APPROVAL.data(), PLAN)
    assert caught.value.code == "R20"


def test_a_signature_of_another_plan_is_told_apart_from_a_broken_one() -> None:
    with pytest.raises(PolicyError, match="found one of plan abababab.* by aggregator") as caught:
        check_signature(SIGNATURE.data(), "cd" * 32)
    assert caught.value.code == "R21"
    broken = SIGNATURE.data().replace(PLAN.encode(), b"cd" * 32)
    with pytest.raises(PolicyError, match=r"plan/plan\.sig: .*fx plan sign") as caught:
        check_signature(broken, "cd" * 32)
    assert caught.value.code == "R20"


def test_a_certificate_key_signs_no_plan() -> None:
    with pytest.raises(Exception, match="expected an Ed25519 key"):
        sign_digest("approval", PLAN, "f", "one", create_key(), NOW)


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just([]), st.just(10**400)
)


@given(key=st.sampled_from(sorted(json.loads(APPROVAL.data()))), value=WRONG, gone=st.booleans())
def test_what_is_no_approval_is_refused_with_its_code(key: str, value: Any, gone: bool) -> None:
    content = {**json.loads(APPROVAL.data()), key: value}
    if gone:
        del content[key]
    with pytest.raises(PolicyError) as caught:
        approved(json.dumps(content).encode())
    assert caught.value.code == "R22"


@given(st.binary(max_size=200) | st.just(b"x" * 5000) | st.just(b"[" * 4000))
def test_bytes_that_are_no_approval_are_refused_with_their_code(data: bytes) -> None:
    with pytest.raises(PolicyError) as caught:
        approved(data)
    assert caught.value.code == "R22"


def test_every_field_is_in_what_is_signed() -> None:
    changes: list[dict[str, Any]] = [
        {"purpose": "signature"},
        {"digest": "cd" * 32},
        {"federation": "other"},
        {"name": "two"},
        {"public": identity_public(OTHER)},
        {"at": 1.0},
    ]
    messages = {_message(replace(APPROVAL, **change)) for change in changes}
    assert len(messages | {_message(APPROVAL)}) == len(changes) + 1


def test_reading_checks_the_signature_against_its_own_key() -> None:
    assert read_signed("approval", APPROVAL.data()) == APPROVAL
    with pytest.raises(ValueError, match="over this signature"):
        read_signed("signature", APPROVAL.data())
