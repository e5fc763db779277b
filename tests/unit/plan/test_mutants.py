"""Whatever is done to a plan, it is a plan or a `PlanError`."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openfed.errors import CODES, PlanError
from openfed.plan.digest import digest_of
from openfed.plan.load import load_plan
from openfed.plan.schema import Plan, canonical

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["src.model:Net", "torch", "fedadam", "no", "1:30", "10m", "all", "loss", "zstd"]
    )
    | st.sampled_from(["rotate", "entropy", {"lloyd": {"bits": 1}}, {"topk": {"fraction": 0.1}}]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.just("settings") | st.just("template"), inner)
    ),
    max_leaves=6,
)

CONTRACT = {
    "columns": [{"name": "a", "kind": "number", "range": [0, None]}, {"name": "b", "kind": "text"}],
    "target": "b",
    "classes": ["x", "y"],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


def accepted(workspace: Path, data: bytes, *overrides: str) -> None:
    path = workspace / "plan" / "plan.yaml"
    path.write_bytes(data)
    try:
        plan = load_plan(path, overrides)
    except PlanError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.code in CODES
            assert problem.where.startswith(("plan/plan.yaml", "-s ", "src/"))
            assert 3 < len(problem.message) < 600
        str(error).encode()
    else:
        again = Plan.model_validate(canonical(plan))
        assert digest_of(canonical(again)) == digest_of(canonical(plan))


def quick(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks)


@quick(100)
@given(data=st.data())
def test_a_plan_with_another_value_is_a_plan_or_refused(
    workspace: Path, plan_text: str, data: st.DataObject
) -> None:
    plan = {**yaml.safe_load(plan_text), "data_contract": CONTRACT}
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(plan)))
        plan = put(plan, place, data.draw(VALUES))
        if not isinstance(plan, dict):
            break
    accepted(workspace, yaml.safe_dump(plan, allow_unicode=True).encode(errors="replace"))


@quick(250)
@given(at=st.integers(0, 1100), cut=st.integers(0, 12), put_in=st.text(max_size=4))
def test_a_plan_with_other_characters_is_a_plan_or_refused(
    workspace: Path, plan_text: str, at: int, cut: int, put_in: str
) -> None:
    text = plan_text[:at] + put_in + plan_text[at + cut :]
    accepted(workspace, text.encode(errors="replace"))


@quick(60)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_plan_or_refused(workspace: Path, data: bytes) -> None:
    accepted(workspace, data)


@quick(100)
@given(
    key=st.sampled_from(
        ["strategy", "strategy.lr", "task_runner.optimizer", "tasks", "rounds.x", "", "a..b"]
    )
    | st.text(max_size=10),
    value=st.text(max_size=10) | st.sampled_from(["{a: 1}", "[", "{fedadam: {lr: 1}}", "{}"]),
)
def test_any_override_is_taken_or_refused(
    workspace: Path, plan_text: str, key: str, value: str
) -> None:
    accepted(workspace, plan_text.encode(), f"{key}={value}")
