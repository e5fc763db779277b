"""The data contract as a key of the plan: `data/contract.py` reads it, here is where it stands."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, JsonValue, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails

from openfed.data.column import KINDS
from openfed.data.contract import DTYPES, MAX_TEXT, contract_json, contract_of
from openfed.errors import PlanError, Problem
from openfed.plan.values import Nested, Value, refuse

_STEP = re.compile(r"\[([0-9]+)\]|([^.\[]+)")


class DataContract(Value):
    """Names the mapping in messages; its content is `openfed.data.contract.Contract`."""


def _canonical(value: Any) -> Any:
    """Raises: Nested: with every problem at its place."""
    if value is None:
        return None
    try:
        return contract_json(contract_of(value, ""))
    except PlanError as error:
        details = [_detail(problem) for problem in error.problems]
        told = ValidationError.from_exception_data("data_contract", details)
        raise Nested(DataContract, told, ()) from None


def _detail(problem: Problem) -> InitErrorDetails:
    steps = _STEP.findall(problem.path)
    loc = tuple(int(index) if index else key for index, key in steps)
    return {"type": refuse(problem.code, problem.message), "loc": loc, "input": None}


def _listing(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": ["array", "null"], "items": items, **more}


def _mapping(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


_WORD = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_WORDS = {
    "anyOf": [
        {"type": "null"},
        *(
            {"type": "array", "items": each, "minItems": 1, "uniqueItems": True}
            for each in (_WORD, {"type": "integer"})
        ),
    ]
}
_BOUNDS = _listing({"type": ["number", "null"]}, minItems=2, maxItems=2)
_COLUMN = _mapping(
    {
        "name": _WORD,
        "kind": {"enum": list(KINDS)},
        "missing": {"type": ["boolean", "null"]},
        "range": _BOUNDS,
        "values": _WORDS,
    },
    required=["name", "kind"],
)
_SCHEMA = _mapping(
    {
        "columns": _listing(_COLUMN, minItems=1),
        "target": {"type": ["string", "null"]},
        "shape": _listing({"type": ["integer", "null"], "minimum": 1}),
        "dtype": {"enum": [*DTYPES, None]},
        "classes": _WORDS,
        "samples": {"type": ["integer", "null"], "minimum": 1},
    }
)

CanonicalContract = Annotated[
    dict[str, JsonValue] | None,
    BeforeValidator(_canonical),
    WithJsonSchema({"anyOf": [_SCHEMA, {"type": "null"}]}),
]
"""What `contract_of` reads, with every default written out. None: the plan demands nothing."""
