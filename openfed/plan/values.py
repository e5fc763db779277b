"""What every part of a plan is made of: frozen values, scalars with ranges, choices.

A choice in a plan is a bare name, or `{name: {settings}}`; `OpenFL`'s `{template: name, settings:
{...}}` is read as the same thing (see `tree.py`). Here it is `Choice(name, settings)` already, and
`Among` checks it against a literal table of names, each with the model of its settings.
"""

import difflib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from openfed.parse import NAME, host, is_ip, split_address


class Value(BaseModel):
    """Frozen; unknown keys are errors; numbers are finite.

    `short`: the key whose list may stand for the whole: `[a]` for `{key: [a]}` (see `tree.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    short: ClassVar[str] = ""


def settings(name: str, **fields: Any) -> type[Value]:
    """A model of settings: `settings("Sgd", lr=(Rate, 0.01))`."""
    return create_model(name, __base__=Value, **fields)


class Nested(ValueError):
    """Problems of settings inside a choice; `at` is where they stand below it."""

    def __init__(
        self, model: type[Value], error: ValidationError, at: tuple[str | int, ...]
    ) -> None:
        super().__init__("settings")
        self.model, self.error, self.at = model, error, at


def refuse(code: str, message: str) -> PydanticCustomError:
    """A validation error with a code of ours."""
    return PydanticCustomError("openfed", "{message}", {"code": code, "message": message})


def shown(value: object) -> str:
    """A value as a message quotes it: short, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"a mapping ({', '.join(map(str, value)) or 'empty'})"[:80]
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'rounds'? ` when something known is close, else nothing."""
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word[:80].lower(), list(lower), n=1, cutoff=0.6)
    return f"did you mean '{lower[close[0]]}'? " if close else ""


# -- scalars ------------------------------------------------------------------------------------

Text = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Real = Annotated[float, Field(strict=True, ge=-1e12, le=1e12)]
Rate = Annotated[float, Field(strict=True, gt=0, le=1000)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e12)]
NotNegative = Annotated[float, Field(strict=True, ge=0, le=1e12)]
Number = Annotated[float, Field(strict=True, ge=-1e12, le=1e12)]
Times = Annotated[float, Field(strict=True, ge=1, le=10)]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1)]
Unit = Annotated[float, Field(strict=True, ge=0, le=1)]
Share = Annotated[float, Field(strict=True, gt=0, le=1)]
Inner = Annotated[float, Field(strict=True, gt=0, lt=1)]
Mode = Literal["max", "min"]


NAME_RULE = (
    "a name of 1 to 63 letters, digits, '-' or '_' that begins and ends with a letter or digit (it "
    "becomes a file name and part of a certificate)"
)


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise refuse("P14", f"expected {NAME_RULE}, got {shown(text)}")
    return text


Name = Annotated[Text, AfterValidator(_name)]

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration(value: object) -> float:
    found = _DURATION.fullmatch(value) if isinstance(value, str) and len(value) < 30 else None
    if not found:
        unit = f": say the unit, as in {value}s" if isinstance(value, int | float) else ""
        raise refuse("P07", f"expected a duration such as 30s, 10m or 2h, got {shown(value)}{unit}")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if not 0.01 <= seconds <= 30 * 86400:
        raise refuse("P08", f"expected a duration between 0.01s and 30d, got {shown(value)}")
    return seconds


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(lambda seconds: f"{seconds!r}s", return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(s|m|h|d)$"}),
]
"""Seconds; written with a unit (`10m`), also in canonical form (`600.0s`)."""


# -- addresses ----------------------------------------------------------------------------------


def _listen(text: str) -> str:
    try:
        split_address(text)
    except ValueError:
        raise refuse(
            "P13",
            f"expected host:port with a port of 0 to 65535, as in 0.0.0.0:50051 or [::]:50051 "
            f"(IPv6 in brackets), got {shown(text)}",
        ) from None
    return text


def _advertised(text: str) -> str:
    try:
        name = host(text)
    except ValueError:
        _, colon, port = text.rpartition(":")
        hint = ": leave the port out, it is that of listen" if colon and port.isdigit() else ""
        raise refuse(
            "P13", f"expected a host name or an IP address, got {shown(text)}{hint}"
        ) from None
    if is_ip(name) and (ipaddress.ip_address(name).is_unspecified or _group(name)):
        raise refuse(
            "P13",
            f"nobody can dial {name}: name what collaborators connect to, such as "
            "fl.example.org or 192.0.2.7 (0.0.0.0 and :: are for listen)",
        )
    return name


def _group(text: str) -> bool:
    return ipaddress.ip_address(text).is_multicast or text == "255.255.255.255"


def is_loopback(text: str) -> bool:
    """Whether only this machine can dial `text`."""
    return text == "localhost" or (is_ip(text) and ipaddress.ip_address(text).is_loopback)


Listen = Annotated[Text, AfterValidator(_listen)]
Host = Annotated[Text, AfterValidator(_advertised)]


# -- choices ------------------------------------------------------------------------------------

CODE = re.compile(r"src(\.[A-Za-z_]\w*)+:[A-Za-z_]\w*", re.ASCII)
"""`src.module:Name`: a class or function of the user."""


@dataclass(frozen=True)
class Code:
    """Marks a place where `src.module:Name` may stand.

    `positional`: how many arguments openfed supplies by position; the settings are the keyword
    arguments. None: the arguments are not checked.
    """

    positional: int | None = None


def _reference(text: str) -> str:
    if not CODE.fullmatch(text):
        raise refuse(
            "P10",
            f"expected src.module:Name, a function or class of a file in src/, got {shown(text)}",
        )
    return text


Function = Annotated[
    Text,
    AfterValidator(_reference),
    WithJsonSchema({"type": "string", "pattern": r"^src(\.[A-Za-z_]\w*)+:[A-Za-z_]\w*$"}),
]
"""A reference to a function of the user, without settings."""


class Choice(Value):
    """Something chosen by name, with its settings. Plain JSON, every default written out."""

    name: Text
    settings: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _shape(cls, data: Any) -> Any:
        if isinstance(data, Choice) or (isinstance(data, dict) and _named(data)):
            return data
        raise refuse("P07", f"expected a name, or {{name: {{settings}}}}, got {shown(data)}")

    @property
    def is_code(self) -> bool:
        return CODE.fullmatch(self.name) is not None


def _named(data: Mapping[str, Any]) -> bool:
    return "name" in data and set(data) <= {"name", "settings"}


Table = Mapping[str, type[Value]]


@dataclass(frozen=True, eq=False)
class Among:
    """Annotates a `Choice`: the names that it may hold, and whether user code may stand there.

    `later` says why user code is not taken, where that is worth more than a refusal. `drop_none`
    leaves out settings that are None, where whoever is called has no use for them.
    """

    what: str  # "a strategy"
    table: Table = field(default_factory=dict)
    code: Code | None = None
    later: str = ""
    drop_none: bool = False

    def expected(self) -> str:
        names = [*self.table, *(["src.module:Name"] if self.code else [])]
        return f"expected {self.what}: {' | '.join(names)}"

    def shape(self, data: Any) -> Any:
        """Refuses `{topk: 0.1}` where it is plain which setting was meant."""
        if isinstance(data, dict) and _named(data) and isinstance(data["name"], str):
            name, given = data["name"], data.get("settings", {})
            if not isinstance(given, dict) and (meant := _meant(self.table.get(name), given)):
                known = f"expected a mapping (key: value), got {shown(given)}"
                raise refuse("P07", f"{known}, as in {{{name}: {{{meant}}}}}")
        return data

    def check(self, choice: Choice) -> Choice:
        if self.code and choice.is_code:
            return choice
        if choice.is_code and self.later:
            raise refuse("P18", self.later)
        model = self.table.get(choice.name)
        if model is None:
            hint = suggest(choice.name, self.table)
            raise refuse("P09", f"{self.expected()}, got {shown(choice.name)}. {hint}".rstrip(". "))
        try:
            checked = model.model_validate(choice.settings)
        except ValidationError as error:
            raise Nested(model, error, ("settings",)) from None
        dumped = checked.model_dump(mode="json", by_alias=True, exclude_none=self.drop_none)
        return Choice(name=choice.name, settings=dumped)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        checked = core_schema.no_info_after_validator_function(self.check, handler(source))
        return core_schema.no_info_before_validator_function(self.shape, checked)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The forms that a person writes, not the canonical one."""
        each: dict[str, Any] = {
            name: {"anyOf": [handler(model.__pydantic_core_schema__), {"type": "null"}]}
            for name, model in self.table.items()
        }
        mapping: dict[str, Any] = {"type": "object", "properties": each, "minProperties": 1}
        mapping |= {"maxProperties": 1, "additionalProperties": False}
        forms: list[dict[str, Any]] = [{"enum": list(each)}] if each else []
        if self.code:
            pattern = f"^{CODE.pattern}$"
            forms.append({"type": "string", "pattern": pattern})
            mapping["patternProperties"] = {pattern: {"type": ["object", "null"]}}
        template = {"template": {"type": "string"}, "settings": {"type": ["object", "null"]}}
        long: dict[str, Any] = {"type": "object", "properties": template}
        long |= {"required": ["template"], "additionalProperties": False}
        return {"anyOf": [*forms, mapping, long]}


def _meant(model: type[Value] | None, given: object) -> str:
    """The first setting that takes `given` or has an example, as YAML; empty: there is none."""
    for key, known in model.model_fields.items() if model else ():
        for value in (given, *(known.examples or ())):
            with suppress(ValidationError):
                assert model is not None
                model.model_validate({key: value})
                return f"{key}: {json.dumps(value)}"
    return ""


@dataclass(frozen=True)
class Below:
    """A mapping whose keys the person chooses: what stands below each of them."""

    part: "Part"


Part = Among | Code | Below | type[Value] | None


def part(model: type[Value], key: str) -> Part:
    """What stands below `key` of a model, if it has parts of its own; of a list, each item."""
    known = model.model_fields.get(key) or model.model_fields.get(key + "_")  # an alias
    if known is None:
        return None
    return _part((*known.metadata, known.annotation))


def _part(things: Iterable[Any]) -> Part:
    for thing in things:
        if isinstance(thing, Among | Code):
            return thing
        if isinstance(thing, type) and issubclass(thing, Value) and thing is not Choice:
            return thing
        if (inner := _part(get_args(thing))) is not None:
            return Below(inner) if get_origin(thing) is dict else inner
    return None
