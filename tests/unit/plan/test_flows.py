"""Flows on sums in a plan: what they imply, what has no place beside them, what people are told."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from openfed.errors import PlanError
from openfed.plan.digest import digest_of
from openfed.plan.explain import explain
from openfed.plan.schema import Plan, canonical, json_schema
from openfed.plan.site import Site, objections

FLOW = """\
federation: clinics
rounds: 30
collaborators: [one, two]
flow: {ridge: {features: 10}}
data_loader: {"src.data:Digits": {batch_size: 32}}
"""


def test_a_flow_says_what_the_sites_do(load: Callable[..., Plan]) -> None:
    plan = load(FLOW)
    assert plan.flow is not None
    assert plan.flow.settings == {"features": 10, "alpha": 1.0, "standardise": False}
    assert (plan.task_runner.name, [task.name for task in plan.tasks]) == ("exact", ["lift"])
    assert plan.best is None
    assert Plan.model_validate(canonical(plan)) == plan


def test_settings_and_overrides_are_those_of_any_choice(load: Callable[..., Plan]) -> None:
    flow = load(FLOW, "flow.alpha=0.5").flow
    assert flow is not None and flow.settings["alpha"] == 0.5
    flow = load(FLOW, "flow={pca: {features: 4, components: 2}}", "rounds=2").flow
    assert flow is not None and flow.name == "pca"
    digests = {digest_of(canonical(load(FLOW, f"flow.alpha={alpha}"))) for alpha in (0.5, 1, 1.0)}
    assert len(digests) == 2


# (what stands there instead or in addition, code, line, part of the message)
REFUSED = [
    ("flow: {rigde: {features: 1}}", "P09", 4, "did you mean 'ridge'?"),
    ("flow: ridge", "P06", 4, "add features: 30"),
    ("flow: {ridge: {features: 0}}", "P08", 4, "expected a number >= 1, got 0"),
    ("flow: {pca: {features: 3, components: 4}}", "P15", 4, "at most 3 components"),
    ("flow: {histogram: {features: 1, edges: [1.0, 1.0]}}", "P15", 4, "numbers that ascend"),
    ("flow: {scores: {low: 1.0, high: 0.0}}", "P15", 4, "low below high"),
    ("strategy: fedavgm", "P15", 6, "flow: ridge: sums are added: remove strategy"),
    ("weights: uniform", "P15", 6, "every row counts once: remove weights"),
    ("compression_pipeline: {uplink: [zstd]}", "P15", 6, "as they are: remove"),
    ("metrics: [accuracy]", "P15", 6, "no model is validated: remove metrics"),
    ("validation: {every: 2}", "P15", 6, "no model is validated: remove validation"),
    ('scope: [{"*": global}]', "P15", 6, "no local part: remove scope"),
    ("stop: {after: 1h}", "P15", 6, "ends by itself"),
    ("tasks: [train]", "P15", 6, "asks for lift only: remove tasks"),
    ('task_runner: "src.data:Bare"', "P15", 6, "remove task_runner"),
    ("cohort: {fraction: 0.5}", "P15", 6, "keep deadline only"),
    ("cohort: {quorum: 1, deadline: 1m}", "P15", 6, "keep deadline only"),
]


@pytest.mark.parametrize(("line", "code", "at", "part"), REFUSED)
def test_what_has_no_place_in_a_flow_is_refused(
    load: Callable[..., Plan], line: str, code: str, at: int, part: str
) -> None:
    text = FLOW.replace("flow: {ridge: {features: 10}}", line) if at == 4 else f"{FLOW}{line}\n"
    with pytest.raises(PlanError) as found:
        load(text)
    (problem,) = found.value.problems
    assert (problem.code, problem.where.split(":")[1]) == (code, str(at))
    assert part in problem.message


def test_a_deadline_and_whoever_is_enrolled_go_with_a_flow(load: Callable[..., Plan]) -> None:
    text = FLOW.replace("[one, two]", "{enrolled: {minimum: 2}}")
    assert load(f"{text}cohort: {{deadline: 10m}}\n").cohort.deadline == 600.0


def test_what_is_a_flows_needs_a_flow(load: Callable[..., Plan], plan_text: str) -> None:
    start, end = plan_text.index("task_runner:"), plan_text.index("metrics:")
    for text in (
        plan_text[:start] + "task_runner: exact\n" + plan_text[end:],
        plan_text.replace("tasks: [validate, train,", "tasks: [lift, train,"),
    ):
        with pytest.raises(PlanError, match="add flow"):
            load(text)
    with pytest.raises(PlanError, match="task_runner.*is missing"):
        load(plan_text[:start] + plan_text[end:])


def test_all_problems_are_told_at_once(load: Callable[..., Plan]) -> None:
    text = FLOW.replace("rounds: 30", "rounds: ten") + "strategy: fedavgm\n"
    with pytest.raises(PlanError) as found:
        load(text)
    assert [each.code for each in found.value.problems] == ["P07", "P15"]


def test_editors_take_a_flow_without_a_task_runner() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(yaml.safe_load(FLOW))
    assert not validator.is_valid(yaml.safe_load(FLOW.replace("rounds: 30\n", "")))
    assert not validator.is_valid(yaml.safe_load(FLOW.replace("ridge", "rigde")))


def test_sites_are_told_what_leaves_them(load: Callable[..., Plan]) -> None:
    said = " ".join(explain(load(FLOW)).split())
    assert "2 sites take part in one computation: ridge" in said
    assert "the sums that ridge needs, the number of rows, the seconds it took" in said
    assert "train" not in said and "update (how" not in said
    text = FLOW.replace("ridge: {features: 10}", "moments: {features: 10, least: 5}")
    said = " ".join(explain(load(text)).split())
    assert "the sums that moments needs, the seconds it took" in said
    assert "nothing of groups of fewer than 5 rows but that it has some" in said


@pytest.mark.parametrize("one", [{"clip_norm": 1.0}, {"noise": {"std": 0.1}}, {"drop": ["x"]}])
def test_a_site_that_would_change_its_sums_takes_no_part(
    load: Callable[..., Plan], one: dict[str, Any]
) -> None:
    plan, own = load(FLOW), {"name": "one", "data": "data"}
    assert not objections(Site.model_validate(own), plan)
    (found,) = objections(Site.model_validate({**own, "filters": [one]}), plan)
    assert (found.code, found.at) == ("R38", ("filters", 0))
