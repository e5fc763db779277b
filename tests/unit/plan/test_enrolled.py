"""Plans whose sites are whoever the federation certifies."""

from pathlib import Path

import pytest

from openfed.errors import PlanError, UsageError
from openfed.plan.chains import advice
from openfed.plan.explain import explain
from openfed.plan.load import load_plan
from openfed.plan.local import check_named, read_local
from openfed.plan.schema import Enrolled, Plan, canonical
from openfed.wire.messages import block_size

FORMS = {"enrolled": 1, "{enrolled: {}}": 1, "{enrolled: {minimum: 3}}": 3}


@pytest.fixture
def enrolled(workspace: Path):
    def make(text: str, *overrides: str) -> Plan:
        file = workspace / "plan" / "plan.yaml"
        plan = file.read_text().replace("[one, two]", text)
        file.write_text(plan)
        return load_plan(file, overrides)

    return make


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_how_many_sites_there_are_at_least(enrolled, form):
    plan = enrolled(form)
    assert (plan.named, plan.fewest) == ((), FORMS[form])
    assert canonical(plan)["collaborators"] == {"enrolled": {"minimum": FORMS[form]}}
    assert Plan.model_validate(canonical(plan)) == plan, "a frozen plan can be read again"


def test_the_word_and_its_long_form_are_one_plan_and_a_minimum_another(enrolled):
    plans = [canonical(enrolled("enrolled", f"collaborators={form}")) for form in FORMS]
    assert plans[0] == plans[1] != plans[2]


def test_it_admits_any_name_and_a_list_only_its_own(enrolled, workspace):
    listed = load_plan(workspace / "plan" / "plan.yaml")
    assert listed.admits("one") and not listed.admits("three")
    assert (listed.named, listed.fewest) == (("one", "two"), 2)
    with pytest.raises(UsageError, match="it has: one, two"):
        check_named(listed, "three")
    check_named(enrolled("enrolled"), "three")


def test_a_quorum_that_the_minimum_cannot_reach_is_refused(enrolled):
    cohort = ("cohort.quorum=3", "cohort.deadline=1h")
    enrolled("{enrolled: {minimum: 3}}", *cohort)
    with pytest.raises(PlanError, match="expected at most 2, the sites wanted in a round, got 3"):
        enrolled("enrolled", *cohort, "cohort.fraction=0.5")


def test_it_is_explained_without_names(enrolled):
    text = " ".join(explain(enrolled("{enrolled: {minimum: 3}}", "cohort.fraction=0.5")).split())
    assert "Every site that the federation certifies may train, 3 sites at least" in text
    assert "others may join while it runs" in text
    assert "50% of the sites that are there, drawn by lot, get the model" in text
    whole = " ".join(explain(enrolled("enrolled", "cohort.fraction=1.0")).split())
    assert "every site that is there when it begins gets the model" in whole


def test_a_share_of_nobody_knows_how_many_is_not_everyone(enrolled):
    assert list(advice(enrolled("enrolled", "cohort.fraction=0.9")))
    assert not list(advice(enrolled("enrolled", "cohort.fraction=1.0")))


def test_local_yaml_names_the_sites_of_this_machine(tmp_path):
    path = tmp_path / "local.yaml"
    path.write_text("sites: {red: a, blue: b, green: c}\n")
    assert list(read_local(path, Enrolled()).sites) == ["red", "blue", "green"]


@pytest.mark.parametrize(
    ("sites", "where", "said"),
    [
        ("{red: a, ../up: b}", "local.yaml:1:17", "letters, digits"),
        ("{red: a, Red: b}", "local.yaml:1:17", "one file name"),
        ("{red: a, authority: b}", "local.yaml:1:17", "choose another name"),
    ],
)
def test_a_site_that_cannot_be_a_node_is_refused(tmp_path, sites, where, said):
    path = tmp_path / "local.yaml"
    path.write_text(f"sites: {sites}\n")
    with pytest.raises(PlanError) as caught:
        read_local(path, Enrolled())
    (found,) = caught.value.problems
    assert (found.code, found.where) == ("P14", where) and said in found.message


def test_blocks_are_small_where_nobody_knows_how_many_sites_there_will_be():
    assert block_size(0) == block_size(10_000) < block_size(8)
