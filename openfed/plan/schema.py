"""The plan as a value: one experiment, read from YAML, every default written out.

Its canonical form (`canonical`) is plain JSON and is itself a valid plan: it is what the digest
covers and what `plan.lock` holds.
"""

import math
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from openfed.plan.choices import (
    CODECS,
    FLOWS,
    LOSS,
    REPORTS,
    RUNNERS,
    STAGES,
    STRATEGIES,
    TASKS,
    UNIFORM,
    WEIGHTS,
    better,
    metric_name,
)
from openfed.plan.contract import CanonicalContract
from openfed.plan.values import (
    CODE,
    Among,
    Choice,
    Code,
    Count,
    Duration,
    Flag,
    Host,
    Listen,
    Mode,
    Name,
    Nested,
    NotNegative,
    Number,
    Share,
    Text,
    Times,
    Value,
    refuse,
    shown,
)

SCHEMA = 1
"""Version of the canonical form; part of the digest."""

RESERVED = frozenset({"aggregate", "aggregator", "authority"})
"""Names that files and tables of a federation use themselves."""


class Aggregator(Value):
    """Where the aggregator listens, and the names and addresses that collaborators dial (exactly
    those of its certificate). Not in the digest."""

    listen: Listen = "0.0.0.0:50051"
    advertise: Annotated[tuple[Host, ...], Field(min_length=1, max_length=100)] = ("localhost",)


def _quorum(value: object) -> object:
    if value == "all" or (type(value) is int and 1 <= value <= 1_000_000):
        return value
    raise refuse("P07", f"expected all, or how many sites (1 or more), got {shown(value)}")


class Cohort(Value):
    """Who is asked in a round, how many answers end it, and how long it waits for them.

    `count` or `fraction` of the sites are wanted; `over` times as many are asked, and the first
    answers count. `quorum`: fewer do once `deadline` has passed, or `grace` since there were so
    many. All times are in seconds.
    """

    fraction: Share = 1.0
    count: Count | None = None
    over: Times = 1.0
    quorum: Annotated[
        Literal["all"] | int,
        BeforeValidator(_quorum),
        WithJsonSchema({"anyOf": [{"const": "all"}, {"type": "integer", "minimum": 1}]}),
    ] = "all"
    deadline: Duration | None = None
    grace: Duration | None = None
    late: Literal["discard", "next_round"] = "discard"

    def size(self, collaborators: int) -> int:
        """How many of `collaborators` sites are wanted: the fraction, rounded, at least one."""
        if self.count is not None:
            return min(self.count, collaborators)
        return max(1, math.floor(self.fraction * collaborators + 0.5))

    def fewest(self, collaborators: int) -> int:
        """The fewest answers of `collaborators` sites that end a round."""
        wanted = self.size(collaborators)
        return wanted if self.quorum == "all" else min(self.quorum, wanted)

    def asked(self, collaborators: int) -> int:
        """How many of `collaborators` sites are asked."""
        return min(collaborators, math.ceil(self.size(collaborators) * self.over - 1e-9))

    def everyone(self, collaborators: int) -> bool:
        """Whether all of so many sites are asked; 0: of any number."""
        if not collaborators:
            return self.count is None and self.fraction == 1.0
        return self.asked(collaborators) == collaborators


class Timeouts(Value):
    """How long nodes wait, in seconds; with `cohort.deadline` and `stop.after` all there is.

    `connect`: a site goes on trying to reach the aggregator for so long. `idle`: a peer of which
    nothing is heard for so long is taken for gone; its task stops. `task`: one task may compute
    for so long at a site.
    """

    connect: Duration = 600.0
    idle: Duration = 60.0
    task: Duration | None = None


class Validation(Value):
    """Who scores the model, and in which rounds: every n-th, and the last."""

    cohort: Literal["all"] = "all"
    every: Count = 1


class Best(Value):
    """The metric, of `validate` of the aggregated model, by which the best model is chosen."""

    metric: Text
    mode: Mode = Field(default_factory=lambda data: better(data.get("metric", LOSS)))


class Stop(Value):
    """Ends the run early: when `metric` has reached a value, or has not improved by more than
    `min_delta` for `patience` validations, or `after` so long (seconds in which it was up)."""

    metric: Text | None = None
    reaches: Number | None = None
    patience: Count | None = None
    min_delta: NotNegative = 0.0
    mode: Mode = Field(default_factory=lambda data: better(data.get("metric") or LOSS))
    after: Duration | None = None


class KeptRounds(Value):
    rounds: Count


def _kept(value: object) -> object:
    if isinstance(value, dict):
        try:
            return KeptRounds.model_validate(value)
        except ValidationError as error:
            raise Nested(KeptRounds, error, ()) from None
    if value in ("none", "all") or isinstance(value, KeptRounds):
        return value
    raise refuse("P07", f"expected none, all or {{rounds: N}}, got {shown(value)}")


class Retention(Value):
    """How long the sites' updates are kept at the aggregator: not at all, N rounds, or all."""

    updates: Annotated[KeptRounds | Literal["none", "all"], BeforeValidator(_kept)] = "none"


Codecs = tuple[Annotated[Choice, Among("a codec", CODECS)], ...]
"""The stages of a chain, first to last. None: the numbers travel as they are."""


def _exception(value: object) -> object:
    if isinstance(value, dict) and len(value) == 1:
        ((glob, codecs),) = value.items()
        if glob and isinstance(codecs, list | tuple):
            return value
    raise refuse("P07", f'expected {{"*.bias": []}}, got {shown(value)}')


_Exception = Annotated[
    dict[Annotated[Text, Field(max_length=200)], Annotated[Codecs, Field(max_length=12)]],
    Field(min_length=1, max_length=1),
    BeforeValidator(_exception),
]


Place = tuple[str | int, ...]
"""`("codecs",)` or `("except", 0, "*.bias")`."""


class Direction(Value):
    """How entries travel one way. `except` has chains of their own for entries whose names match a
    glob; the first match wins."""

    short: ClassVar[str] = "codecs"
    codecs: Annotated[Codecs, Field(max_length=12)] = ()
    feedback: Flag = False
    except_: Annotated[
        tuple[_Exception, ...],
        Field(alias="except", max_length=1000, examples=['[{"*.bias": []}]']),
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _shape(cls, data: Any) -> Any:
        if isinstance(data, dict | Direction):
            return data
        raise refuse("P07", f"expected a list of codecs, as in [zstd], got {shown(data)}")

    def chains(self) -> dict[Place, Codecs]:
        """Every chain, by where it stands below the direction."""
        own: dict[Place, Codecs] = {
            ("except", index, glob): codecs
            for index, rule in enumerate(self.except_)
            for glob, codecs in rule.items()
        }
        return {("codecs",): self.codecs, **own}

    def place(self, entry: str) -> Place:
        """Where the chain of the entry of this name stands: a key of `chains`."""
        for index, rule in enumerate(self.except_):
            for glob in rule:
                if fnmatchcase(entry, glob):
                    return "except", index, glob
        return ("codecs",)

    def chain(self, entry: str) -> Codecs:
        """The codecs of the entry of this name."""
        return self.chains()[self.place(entry)]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Also the short form, a list."""
        whole = handler.resolve_ref_schema(handler(schema))
        return {"anyOf": [whole, whole["properties"][cls.short]]}


def is_lossy(codecs: Codecs) -> bool:
    return any(STAGES[codec.name].lossy for codec in codecs)


OPENFL = {
    "NoCompressionPipeline": "remove it",
    "KCPipeline": "write uplink: [{kmeans: {centers: 6}}, zstd]",
    "SKCPipeline": "write uplink: [{topk: {fraction: 0.1}}, {kmeans: {centers: 6}}, zstd]",
    "STCPipeline": "write uplink: {feedback: true, codecs: [{ternary: {fraction: 0.1}}]}",
    "RandomShiftPipeline": "remove it: it makes nothing smaller",
    "EdenPipeline": "write uplink: [rotate, {lloyd: {bits: 8}}]",
}
"""Pipelines of OpenFL 1.9 (`openfl.pipelines.*`), and what stands here in their place."""


def _pipeline(value: object) -> object:
    if isinstance(value, dict) and "template" in value:
        name = str(value["template"]).rpartition(".")[2]
        remedy = OPENFL.get(name, "write uplink: [zstd]")
        raise refuse("P07", f"expected uplink and downlink, got a template: {remedy}")
    if isinstance(value, dict | Pipeline):
        return value
    raise refuse("P07", f"expected uplink and downlink: {{uplink: [zstd]}}, got {shown(value)}")


class Pipeline(Value):
    """How updates travel up and models down."""

    uplink: Direction = Field(default_factory=Direction)
    downlink: Direction = Field(default_factory=Direction)


def _rule(value: object) -> object:
    pair = list(value.items()) if isinstance(value, dict) else [value]
    if len(pair) == 1 and isinstance(pair[0], list | tuple) and len(pair[0]) == 2:
        glob, where = pair[0]
        if isinstance(glob, str) and glob and where in ("local", "global"):
            return glob, where
    raise refuse("P07", f'expected {{"head.*": local}} or {{"*": global}}, got {shown(value)}')


Rule = Annotated[
    tuple[str, Literal["local", "global"]],
    BeforeValidator(_rule),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"enum": ["local", "global"]},
            "minProperties": 1,
            "maxProperties": 1,
        }
    ),
]


def _metric(value: object) -> object:
    from_code = isinstance(value, str) and (":" in value or value.startswith("src"))
    if from_code and not CODE.fullmatch(str(value)):
        raise refuse("P10", f"expected src.module:Name, a function in src/, got {shown(value)}")
    return value


Metric = Annotated[Text, BeforeValidator(_metric), Code(2)]


class AtLeast(Value):
    minimum: Count = 1


class Enrolled(Value):
    """Whoever has a certificate of the federation takes part, as soon as it comes; a round begins
    when `minimum` of them are here."""

    enrolled: AtLeast = AtLeast()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Also the short form, the word alone."""
        return {"anyOf": [{"const": "enrolled"}, handler.resolve_ref_schema(handler(schema))]}


Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=10_000)]
_NAMES: TypeAdapter[tuple[str, ...]] = TypeAdapter(Names)


def _sites(value: object) -> object:
    if value == "enrolled":
        return Enrolled()
    if isinstance(value, Enrolled):
        return value
    enrolled = isinstance(value, dict)
    try:
        return Enrolled.model_validate(value) if enrolled else _NAMES.validate_python(value)
    except ValidationError as error:
        raise Nested(Enrolled if enrolled else Plan, error, ()) from None


Sites = Names | Enrolled


def fewest(sites: tuple[str, ...] | Enrolled) -> int:
    """How many sites take part at least."""
    return sites.enrolled.minimum if isinstance(sites, Enrolled) else len(sites)


_USER_STRATEGY = (
    "strategies of your own run in a process of their own, which comes with a later release: "
    f"choose one that ships: {' | '.join(STRATEGIES)}"
)


def _default_best(data: dict[str, Any]) -> Best | None:
    tasks = data.get("tasks", ())
    if not any(task.name == "validate" for task in tasks):
        return None
    metrics = data.get("metrics", ()) or (LOSS,)
    return Best(metric=metric_name(metrics[0]))


def _default_weights(data: dict[str, Any]) -> Choice:
    strategy = data.get("strategy")
    alike = strategy is not None and strategy.name in UNIFORM
    return Choice(name="uniform" if alike else "samples")


class Plan(Value):
    """One experiment. `collaborators` are the sites; model k is the model after k rounds. `flow`
    is a method on sums; without one, the sites train by `task_runner` and are averaged."""

    federation: Name = Field(examples=["consortium"])
    name: Name = Field(default_factory=lambda data: data.get("federation", ""))
    rounds: Count = Field(examples=[10])
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    aggregator: Aggregator = Field(default_factory=Aggregator)
    collaborators: Annotated[Sites, BeforeValidator(_sites)] = Field(examples=["[one, two]"])
    flow: Annotated[Choice, Among("a flow", FLOWS)] | None = None
    task_runner: Annotated[Choice, Among("a task runner", RUNNERS, code=Code(1))] = Field(
        examples=["{torch: {...}}"]
    )
    metrics: Annotated[tuple[Metric, ...], Field(max_length=100)] = ()
    data_loader: Annotated[Choice, Among("a data loader", code=Code(1))] = Field(
        examples=['"src.data:Digits"']
    )
    data_contract: CanonicalContract = None
    tasks: Annotated[
        tuple[Annotated[Choice, Among("a task", TASKS, drop_none=True)], ...],
        Field(min_length=1, max_length=3),
    ] = (Choice(name="validate"), Choice(name="train"))
    strategy: Annotated[Choice, Among("a strategy", STRATEGIES, later=_USER_STRATEGY)] = Choice(
        name="fedavg"
    )
    weights: Annotated[Choice, Among("weights", WEIGHTS, drop_none=True)] = Field(
        default_factory=_default_weights
    )
    compression_pipeline: Annotated[Pipeline, BeforeValidator(_pipeline)] = Field(
        default_factory=Pipeline
    )
    cohort: Cohort = Field(default_factory=Cohort)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    validation: Validation = Field(default_factory=Validation)
    scope: tuple[Rule, ...] = ()
    best: Best | None = Field(default_factory=_default_best)
    stop: Stop | None = None
    retention: Retention = Field(default_factory=Retention)
    init: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, data: Any) -> Any:
        """A flow on sums says what the sites do."""
        if isinstance(data, dict) and data.get("flow") is not None:
            return {"task_runner": {"name": "exact"}, "tasks": [{"name": "lift"}], **data}
        return data

    @property
    def named(self) -> tuple[str, ...]:
        """The sites, as far as the plan says: none where whoever is enrolled takes part."""
        return () if isinstance(self.collaborators, Enrolled) else self.collaborators

    @property
    def fewest(self) -> int:
        """How many sites take part at least."""
        return fewest(self.collaborators)

    @property
    def reports(self) -> tuple[str, ...]:
        """The numbers that the strategy needs of each training, beside `n`."""
        return REPORTS.get(self.strategy.name, ())

    def admits(self, name: str) -> bool:
        """Whether a collaborator of this name, which its certificate proves, may take part."""
        return isinstance(self.collaborators, Enrolled) or name in self.collaborators


ADDRESSES = "aggregator"
"""The key of a plan that is not in its digest."""


def canonical(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON, every default written out, without the addresses."""
    return plan.model_dump(mode="json", by_alias=True, exclude={ADDRESSES})


def codec_versions(plan: Plan) -> dict[str, int]:
    """The codecs that the plan uses, either way, each with the version of what it writes."""
    pipeline = plan.compression_pipeline
    chains = [
        *pipeline.uplink.chains().values(),
        *pipeline.downlink.chains().values(),
    ]
    names = {codec.name for codecs in chains for codec in codecs}
    return {name: STAGES[name].version for name in sorted(names)}


def json_schema() -> dict[str, Any]:
    """JSON Schema of `plan.yaml` as a person writes it, for editors."""
    schema = Plan.model_json_schema()
    required = schema.pop("required")
    on_sums = ["flow", *(key for key in required if key != "task_runner")]
    schema["properties"]["extends"] = {"type": "string", "minLength": 1}
    schema["anyOf"] = [{"required": each} for each in (["extends"], required, on_sums)]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
