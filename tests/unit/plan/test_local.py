from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.errors import PlanError
from openfed.plan.local import read_local

SITES = ("one", "two")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "local.yaml"
        path.write_text(text)
        return path

    return write


def test_local_yaml_says_where_each_sites_data_is(write: Callable[[str], Path]) -> None:
    text = "sites: {one: data/one, two: {shard: 1, of: [2, null]}}\nthreads: 2\ndevice: cuda:1\n"
    local = read_local(write(text), SITES)
    assert local.sites == {"one": "data/one", "two": {"shard": 1, "of": [2, None]}}
    assert (local.device, local.threads) == ("cuda:1", 2)
    local = read_local(write("sites: {one: null, two: 0}\n"), SITES)
    assert local.sites == {"one": None, "two": 0}
    assert (local.device, local.threads) == ("auto", 1)


@pytest.mark.parametrize(
    ("text", "code", "where", "remedy"),
    [
        ("sites: {one: a, two: b, three: c}", "P21", "local.yaml:1:25", "the plan has: one, two"),
        ("sites: {one: a, tow: b}", "P21", "local.yaml:1:17", "did you mean 'two'"),
        ("sites: {one: a}", "P21", "local.yaml:1:1", "is missing: add two:"),
        ("sites:\n  one: a\n  one: b\n  two: c", "P03", "local.yaml:3:3", "given twice"),
        ("sites: [a, b]", "P07", "local.yaml:1:8", "a mapping"),
        ("threads: 1", "P06", "local.yaml:1:1", "add sites: {one: data/one"),
        ("sites: {one: a, two: b}\nthreds: 2", "P01", "local.yaml:2:1", "'threads'"),
        ("sites: {one: a, two: b}\nthreads: 0", "P08", "local.yaml:2:10", ">= 1"),
        ("sites: {one: a, two: b}\ndevice: gpu", "P09", "local.yaml:2:9", "cuda:N"),
        ("sites: {one: no, two: b}", "P05", "local.yaml:1:14", "in quotes"),
        ("", "P02", "local.yaml:1:1", "empty file"),
    ],
)
def test_bad_local_yaml_is_answered_like_a_bad_plan(
    write: Callable[[str], Path], text: str, code: str, where: str, remedy: str
) -> None:
    with pytest.raises(PlanError) as caught:
        read_local(write(text), SITES)
    found = [(p.code, p.where, p.message) for p in caught.value.problems]
    assert any(found_[:2] == (code, where) and remedy in found_[2] for found_ in found), found


def test_a_missing_file_is_a_plan_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"local\.yaml  P16"):
        read_local(tmp_path / "local.yaml", SITES)
