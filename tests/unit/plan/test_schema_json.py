"""The JSON Schema for editors takes what the loader takes."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from openfed.errors import PlanError
from openfed.plan.load import ready_plans
from openfed.plan.schema import Plan, json_schema

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


SHAPES = [
    "strategy: {fedadam: {lr: 1}}",
    "strategy: {template: fedadam, settings: {lr: 1}}",
    "strategy: {fedadam: }",
    "tasks: [validate, {train: {epochs: 2}}]",
    "weights: uniform",
    "collaborators: enrolled",
    "collaborators: {enrolled: {}}",
    "collaborators: {enrolled: {minimum: 3}}",
    "cohort: {quorum: 1, deadline: 90s}",
    "retention: {updates: {rounds: 3}}",
    "scope: []",
    "extends: fedadam",
    "compression_pipeline: {}",
    "compression_pipeline: {uplink: [zstd], downlink: [{zstd: {level: 3}}]}",
    "compression_pipeline: {uplink: {codecs: [{template: bf16}], except: [{a: []}]}}",
    "compression_pipeline: {uplink: {except: [{a: [{topk: {fraction: 0.1}}]}]}}",
]

WRONG = [
    "strategy: fedsgd",
    "strategy: {fedadam: {rl: 1}}",
    "rounds: ten",
    "rounds: 0",
    "collaborators: everybody",
    "collaborators: {enrolled: 3}",
    "collaborators: []",
    "cohort: {quorum: most}",
    "cohort: {deadline: 600}",
    "scope: [{a: b}]",
    "unknown: 1",
    "tasks: [{train: {epochs: 0}}]",
    "strategy: {fedadam: {}, fedavg: {}}",
    "compression_pipeline: [zstd]",
    "compression_pipeline: {template: openfl.pipelines.NoCompressionPipeline}",
    "compression_pipeline: {uplink: zstd}",
    "compression_pipeline: {uplink: [gzip]}",
    "compression_pipeline: {uplink: [{quantize: {bits: 3}}]}",
    "compression_pipeline: {uplink: [{quantize: {}}]}",
    "compression_pipeline: {uplink: {except: [{a: [], b: []}]}}",
    "compression_pipeline: {uplink: {except: [{a: zstd}]}}",
    "compression_pipeline: {uplink: {feedback: 1}}",
]


def with_line(text: str, line: str) -> str:
    key = line.partition(":")[0]
    return re.sub(rf"^{key}:.*\n(  .*\n)*", "", text, flags=re.M) + line


@pytest.mark.parametrize("line", ["", *SHAPES])
def test_schema_and_loader_take_every_shape(
    validator: Any, load: Callable[..., Plan], plan_text: str, line: str
) -> None:
    text = with_line(plan_text, line) if line else plan_text
    load(text)
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize("line", WRONG)
def test_schema_and_loader_refuse_the_same(
    validator: Any, load: Callable[..., Plan], plan_text: str, line: str
) -> None:
    text = with_line(plan_text, line)
    with pytest.raises(PlanError):
        load(text)
    assert not validator.is_valid(yaml.safe_load(text))


@pytest.mark.parametrize("name", sorted(ready_plans()))
def test_ready_plans_fit_the_schema(validator: Any, name: str, plan_text: str) -> None:
    fragment = yaml.safe_load(ready_plans()[name].read_text())
    validator.validate({**yaml.safe_load(plan_text), **fragment})


def test_a_missing_key_is_refused_unless_a_plan_is_extended(validator: Any) -> None:
    assert not validator.is_valid({"rounds": 3})
    assert validator.is_valid({"rounds": 3, "extends": "fedadam"})
