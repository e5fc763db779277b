import pytest

from openfed.parse import DIGEST, NAME, host, join_address, split_address, strict_json


def test_json_is_read_as_written():
    assert strict_json('{"a": [1, 2.5, null, true, "x"], "b": {"a": -1e-3}}') == {
        "a": [1, 2.5, None, True, "x"],
        "b": {"a": -0.001},
    }
    assert strict_json(b"[]") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        '{"a": -1e999}',
        '{"a": 1, "a": 1}',
        '[{"b": {"a": 1, "\\u0061": 2}}]',
        "[" * 100_000,
        b"\xff\xfe{",
    ],
)
def test_json_that_readers_disagree_about_is_refused(text):
    with pytest.raises(ValueError):
        strict_json(text)


@pytest.mark.parametrize(
    ("text", "parts", "written"),
    [
        ("agg.example:50051", ("agg.example", 50051), "agg.example:50051"),
        ("agg.example.:1", ("agg.example", 1), "agg.example:1"),
        ("10.0.0.7:0", ("10.0.0.7", 0), "10.0.0.7:0"),
        ("[::1]:65535", ("::1", 65535), "[::1]:65535"),
        ("[0:0::1]:00080", ("::1", 80), "[::1]:80"),
    ],
)
def test_addresses_are_split_and_joined(text, parts, written):
    assert split_address(text) == parts
    assert join_address(*parts) == written


@pytest.mark.parametrize(
    "text",
    [
        "host",
        "host:",
        ":1",
        "host:x",
        "host:65536",
        "host:-1",
        "host:١",
        "host:000001",
        "::1:5",
        "[::1]",
        "[host]:1",
        "[::1:5",
    ],
)
def test_addresses_that_are_none_are_refused(text):
    with pytest.raises(ValueError):
        split_address(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "a b", "-a", "a-", "a..b", "*.a", "é.example", "10.0.0.300", "10.1", "[a]", "a" * 64]
    + [".".join(["a" * 63] * 4)],
)
def test_hosts_that_are_none_are_refused(text):
    with pytest.raises(ValueError):
        host(text)


def test_names_and_digests_are_whole_texts():
    for name in ("a", "site-1", "A_b", "x" * 63):
        assert NAME.fullmatch(name)
    for name in ("", "-a", "a-", "a.b", "a/b", "a\n", "x" * 64):
        assert not NAME.fullmatch(name)
    assert DIGEST.fullmatch("0f" * 32)
    assert not any(map(DIGEST.fullmatch, ("0F" * 32, "0f" * 31, "0f" * 32 + "\n")))
