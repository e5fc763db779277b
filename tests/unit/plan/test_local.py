from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openfed.data.partition import share
from openfed.errors import PlanError
from openfed.plan.local import read_local
from openfed.plan.schema import Enrolled

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


def test_a_partition_is_in_the_place_of_sites(write: Callable[[str], Path]) -> None:
    text = "partition: {of: data/all, by: {dirichlet: {alpha: 0.3}}, seed: 7}\n"
    common = {"of": "data/all", "by": {"dirichlet": {"alpha": 0.3, "minimum": 1}}, "seed": 7}
    assert read_local(write(text), SITES).sites == {
        "one": {**common, "share": [1, 2]},
        "two": {**common, "share": [2, 2]},
    }
    sites = read_local(write("partition: {by: iid}\n"), SITES).sites
    assert sites["two"] == {"of": None, "by": {"iid": {}}, "seed": 0, "share": [2, 2]}


def test_a_partition_deals_out_every_sample_once(write: Callable[[str], Path]) -> None:
    labels = np.arange(60) % 3
    sites = read_local(write("partition: {by: shards, seed: 3}\n"), SITES).sites
    shares = [share(source, labels) for source in sites.values()]  # type: ignore[arg-type]
    assert sorted(np.concatenate(shares)) == list(range(60))


def test_a_partition_needs_names(write: Callable[[str], Path]) -> None:
    with pytest.raises(PlanError, match=r"local.yaml:1:1  P21  partition  goes by the plan's"):
        read_local(write("partition: {by: iid}\n"), Enrolled())


@pytest.mark.parametrize(
    ("text", "code", "where", "remedy"),
    [
        ("partition: {by: iid}\nsites: {one: a, two: b}", "P15", "local.yaml:1:1", "keep one"),
        ("partition: {of: a}", "P06", "local.yaml:1:1", "add by: {dirichlet: {alpha: 0.3}}"),
        ("partition: {by: dirichlt}", "P09", "local.yaml:1:17", "'dirichlet'"),
        ("partition: {by: {dirichlet: {alpha: 0}}}", "P08", "local.yaml:1:37", ">= 0.0001"),
        ("partition: {by: dirichlet}", "P06", "local.yaml:1:17", "alpha"),
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
