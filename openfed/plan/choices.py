"""What ships, by name, with the settings of each: literal tables.

The aggregator and the runners have tables of the same names with the code; a test compares them.
A setting is `(type with its range, default)`; one without a default must be given.
"""

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from openfed.plan.values import (
    Among,
    Choice,
    Code,
    Count,
    Decay,
    Flag,
    Function,
    Inner,
    Mode,
    Nested,
    NotNegative,
    Number,
    Positive,
    Rate,
    Real,
    Share,
    Table,
    Text,
    Unit,
    Value,
    refuse,
    settings,
    shown,
)

T = TypeVar("T")

# -- metrics: name -> which way is better -------------------------------------------------------

METRICS: dict[str, Mode] = {
    "accuracy": "max",
    "f1": "max",
    "f1_binary": "max",
    "precision": "max",
    "recall": "max",
    "auc": "max",
    "r2": "max",
    "mae": "min",
    "mse": "min",
    "rmse": "min",
    "perplexity": "min",
}

LOSS = "loss"
"""Always reported."""


def metric_name(reference: str) -> str:
    """`src.metrics:dice` is reported as `dice`."""
    return reference.rpartition(":")[2]


def better(name: str) -> Mode:
    """Whether more of a metric is better; what openfed does not know is taken to be."""
    return "min" if name == LOSS else METRICS.get(name, "max")


# -- strategies and weights ---------------------------------------------------------------------


def _adaptive(name: str, **more: Any) -> type[Value]:
    return settings(name, lr=(Rate, 0.01), beta1=(Decay, 0.9), **more, tau=(Positive, 1e-3))


_Hostile = Annotated[int, Field(strict=True, ge=0, le=10_000, examples=[1])]
_Exponent = Annotated[float, Field(strict=True, ge=0, le=10, examples=[1.0])]
_Norm = Annotated[Positive, Field(examples=[1.0])]

STRATEGIES: Table = {
    "fedavg": settings("FedAvg"),
    "fedavgm": settings("FedAvgM", lr=(Rate, 1.0), momentum=(Decay, 0.9)),
    "fedadam": _adaptive("FedAdam", beta2=(Decay, 0.99)),
    "fedyogi": _adaptive("FedYogi", beta2=(Decay, 0.99)),
    "median": settings("Median"),
    "fedadagrad": settings("FedAdagrad", lr=(Rate, 0.01), beta1=(Decay, 0.0), tau=(Positive, 1e-3)),
    "fedprox": settings("FedProx", mu=(NotNegative, 0.01)),
    "scaffold": settings("Scaffold", lr=(Rate, 1.0)),
    "feddyn": settings("FedDyn", alpha=(Positive, 0.01)),
    "mimelite": settings("MimeLite", beta=(Decay, 0.9)),
    "fedplus": settings("FedPlus", pull=(NotNegative, 0.1)),
    "ditto": settings("Ditto", pull=(NotNegative, 0.1)),
    "fedrep": settings("FedRep", head_epochs=(Count, 1)),
    "fedrecon": settings("FedRecon", steps=(Count, 1), lr=(Rate, 0.1), support=(Inner, 0.5)),
    "trimmed_mean": settings("TrimmedMean", f=(_Hostile, ...)),
    "geometric_median": settings("GeometricMedian"),
    "krum": settings("Krum", f=(_Hostile, ...)),
    "multi_krum": settings("MultiKrum", f=(_Hostile, ...), m=(Count | None, None)),
    "bulyan": settings("Bulyan", f=(_Hostile, ...)),
    "norm_clipping": settings(
        "NormClipping", norm=(_Norm, ...), rule=(Literal["mean", "median"], "mean")
    ),
    "adaptive_clipping": settings(
        "AdaptiveClipping", norm=(Positive, 0.1), quantile=(Unit, 0.5), rate=(Rate, 0.2)
    ),
    "centred_clipping": settings("CentredClipping", radius=(_Norm, ...), steps=(Count, 1)),
    "fednova": settings("FedNova"),
    "qfedavg": settings("QFedAvg", q=(_Exponent, ...)),
}
"""`f`: how many updates of a round may be hostile. `norm`, `radius`: Euclidean, of all floating
entries of an update together."""

FEWEST: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"trimmed_mean": (2, 1), "krum": (2, 3), "multi_krum": (2, 3), "bulyan": (4, 3)}
)
"""(a, b): the strategy needs at least a * f + b updates."""

UNIFORM = frozenset(
    {
        *("median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "bulyan"),
        *("norm_clipping", "adaptive_clipping", "centred_clipping", "qfedavg"),
    }
)
"""Strategies for which every site counts alike, if the plan says nothing: robust ones, since a
reported number of samples is no evidence, and q-FedAvg, whose weights are the losses."""

UNWEIGHTED = frozenset({"median", "trimmed_mean", "krum", "bulyan"})
"""Those of them that look at no weights."""

REPORTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"fednova": ("steps",), "qfedavg": ("loss_before",)}
)
"""Numbers that a strategy needs of each training, beside `n`: how many steps the local optimiser
took; the mean loss of the received model on the training data."""

AT_SITES = ("fedprox", "scaffold", "feddyn", "mimelite", "fedplus", "ditto", "fedrep", "fedrecon")
"""Strategies with a half that runs where a site trains."""

_Cap = Annotated[int, Field(strict=True, ge=1, le=10**12)]

WEIGHTS: Table = {
    "samples": settings("Samples", cap=(_Cap | None, None)),
    "uniform": settings("Uniform"),
}


class Train(Value):
    """Settings of the task `train`: what they give replaces the runner's."""

    epochs: Count | None = None
    steps: Count | None = None

    @model_validator(mode="after")
    def _rules(self) -> "Train":
        return one_of_epochs_and_steps(self, self.epochs, self.steps)


def one_of_epochs_and_steps(value: T, epochs: int | None, steps: int | None) -> T:
    if epochs is not None and steps is not None:
        raise refuse("P15", "expected epochs or steps, got both: keep the one that ends a task")
    return value


TASKS: Table = {
    "validate": settings("Validate"),
    "train": Train,
    "validate_tuned": settings("ValidateTuned"),
    "lift": settings("Lift"),  # of flows on sums
}

# -- flows on sums ------------------------------------------------------------------------------

_Columns = Annotated[int, Field(strict=True, ge=1, le=10_000, examples=[30])]
_Classes = Annotated[int, Field(strict=True, ge=2, le=10_000, examples=[2])]
_Few = Annotated[int, Field(strict=True, ge=1, le=10_000, examples=[10])]
_Least = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
_Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


def _ascending(numbers: list[float]) -> list[float]:
    if any(a >= b for a, b in pairwise(numbers)):
        raise refuse("P15", "expected numbers that ascend, each larger than the one before")
    return numbers


_Edges = Annotated[
    list[Number],
    Field(min_length=1, max_length=10_000, examples=[[0.0, 1.0]]),
    AfterValidator(_ascending),
]
_Shares = Annotated[list[Unit], Field(min_length=1, max_length=100, examples=[[0.25, 0.5, 0.75]])]
_Levels = Annotated[list[_Few], Field(min_length=1, max_length=10_000, examples=[[2, 3]])]


class Components(Value):
    """Of `pca`."""

    features: _Columns
    components: _Columns

    @model_validator(mode="after")
    def _rules(self) -> "Components":
        if self.components > self.features:
            message = f"expected at most {self.features} components, as many as features, got "
            raise refuse("P15", f"{message}{self.components}")
        return self


class Scored(Value):
    """Of `scores`."""

    bins: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1024
    low: Number = 0.0
    high: Number = 1.0

    @model_validator(mode="after")
    def _rules(self) -> "Scored":
        if self.low >= self.high:
            raise refuse("P15", "expected low below high, the range of the scores")
        return self


FLOWS: Table = {
    "moments": settings("Moments", features=(_Columns, ...), groups=(_Few, 1), least=(_Least, 0)),
    "covariance": settings("Covariance", features=(_Columns, ...), least=(_Least, 0)),
    "histogram": settings(
        "Histogram", features=(_Columns, ...), edges=(_Edges, ...), least=(_Least, 0)
    ),
    "quantiles": settings(
        "Quantiles",
        features=(_Columns, ...),
        quantiles=(_Shares, ...),
        least=(_Least, 0),
        digits=(Annotated[int, Field(strict=True, ge=1, le=8)], 8),
    ),
    "ridge": settings(
        "Ridge", features=(_Columns, ...), alpha=(NotNegative, 1.0), standardise=(Flag, False)
    ),
    "logistic": settings(
        "Logistic",
        features=(_Columns, ...),
        classes=(_Classes, 2),
        penalty=(NotNegative, 1.0),
        tol=(Positive, 1e-14),
    ),
    "naive_bayes": settings(
        "NaiveBayes",
        features=(_Columns, ...),
        classes=(_Classes, ...),
        smoothing=(NotNegative, 1e-9),
    ),
    "kmeans": settings(
        "KMeans",
        features=(_Columns, ...),
        clusters=(_Few, ...),
        starts=(_Few, 16),
        seed=(_Seed, 0),
        tol=(Positive, 1e-12),
    ),
    "pca": Components,
    "id3": settings("Id3", levels=(_Levels, ...), classes=(_Classes, ...), depth=(_Few, 64)),
    "boosted_trees": settings(
        "BoostedTrees",
        features=(_Columns, ...),
        loss=(Literal["logistic", "squared"], "logistic"),
        trees=(_Few, 50),
        depth=(Annotated[int, Field(strict=True, ge=1, le=12)], 4),
        bins=(Annotated[int, Field(strict=True, ge=2, le=256)], 32),
        rate=(Rate, 0.3),
        lam=(NotNegative, 1.0),
        gamma=(NotNegative, 0.0),
        least=(NotNegative, 1.0),
    ),
    "scores": Scored,
    "confusion": settings("Confusion", classes=(_Classes, ...)),
    "kaplan_meier": settings("KaplanMeier", horizon=(_Few, ...), groups=(_Few, 1)),
}
"""Settings are those of the methods in `openfed.exact`."""

SUPPRESSING = frozenset({"moments", "covariance", "histogram", "quantiles"})
"""Flows whose `least` hides small groups; elsewhere it is another setting's name."""

# -- codecs -------------------------------------------------------------------------------------


def _whole(value: object) -> object:
    if type(value) is int and value in (8, 4, 2, 1):
        return value
    raise refuse("P09", f"expected 8 | 4 | 2 | 1, got {shown(value)}")


_Bits = Annotated[Literal[8, 4, 2, 1], BeforeValidator(_whole), Field(examples=[8])]
_Fraction = Annotated[Share, Field(examples=[0.01])]
_Level = Annotated[int, Field(strict=True, ge=1, le=19)]
_Group = Annotated[int, Field(strict=True, ge=16, le=65_536)]
_Centers = Annotated[int, Field(strict=True, ge=2, le=256, examples=[16])]
_Step = Annotated[float, Field(strict=True, ge=0.05, le=4, examples=[1.0])]

CODECS: Table = {
    "topk": settings("TopK", fraction=(_Fraction, ...)),
    "randomk": settings("RandomK", fraction=(_Fraction, ...)),
    "rotate": settings("Rotate"),
    "fp16": settings("Fp16"),
    "bf16": settings("Bf16"),
    "quantize": settings(
        "Quantize",
        bits=(_Bits, ...),
        rounding=(Literal["stochastic", "nearest"] | None, None),
        group=(_Group, 1024),
    ),
    "lloyd": settings("Lloyd", bits=(_Bits, ...)),
    "grid": settings("Grid", step=(_Step, ...)),
    "ternary": settings("Ternary", fraction=(_Fraction, ...)),
    "kmeans": settings("KMeans", centers=(_Centers, ...)),
    "entropy": settings("Entropy"),
    "zstd": settings("Zstd", level=(_Level, 1)),
}
"""In the order of a chain. What each loses is always said: no default of bits or fractions.

`quantize` rounds stochastically, and to the nearest under feedback, unless told. `step` is in
units of the root mean square of a chunk.
"""


class Stage(NamedTuple):
    """What a codec does in a chain, whatever its settings."""

    takes: Literal["floats", "symbols", "bytes"]
    gives: Literal["floats", "symbols", "bytes"]
    lossy: bool
    version: int = 1  # of what it writes; part of the plan's digest


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        "topk": Stage("floats", "floats", lossy=True),
        "randomk": Stage("floats", "floats", lossy=True),
        "rotate": Stage("floats", "floats", lossy=True),  # it rounds, in float32
        "fp16": Stage("floats", "bytes", lossy=True),
        "bf16": Stage("floats", "bytes", lossy=True),
        "quantize": Stage("floats", "symbols", lossy=True),
        "lloyd": Stage("floats", "symbols", lossy=True),
        "grid": Stage("floats", "symbols", lossy=True),
        "ternary": Stage("floats", "bytes", lossy=True),
        "kmeans": Stage("floats", "symbols", lossy=True),
        "entropy": Stage("symbols", "bytes", lossy=False),
        "zstd": Stage("bytes", "bytes", lossy=False),
    }
)
"""Numbers and symbols are bytes too: `zstd` takes what any stage gives."""

# -- torch --------------------------------------------------------------------------------------

_Index = Annotated[int, Field(strict=True, ge=-1_000_000, le=1_000_000)]
_Numbers = Annotated[list[NotNegative], Field(min_length=1, max_length=100_000)]

LOSSES: Table = {
    "cross_entropy": settings(
        "CrossEntropy",
        weight=(_Numbers | None, None),
        ignore_index=(_Index, -100),
        label_smoothing=(Decay, 0.0),
    ),
    "nll": settings("Nll", weight=(_Numbers | None, None), ignore_index=(_Index, -100)),
    "bce": settings("Bce", weight=(_Numbers | None, None), pos_weight=(_Numbers | None, None)),
    "mse": settings("Mse"),
    "l1": settings("L1"),
    "smooth_l1": settings("SmoothL1", beta=(Positive, 1.0)),
    "huber": settings("Huber", delta=(Positive, 1.0)),
}
"""Settings are arguments of the function of `torch.nn.functional`; `bce` takes logits."""

_Betas = Annotated[list[Decay], Field(min_length=2, max_length=2)]


def _adam(name: str, decay: float) -> type[Value]:
    return settings(
        name,
        lr=(Rate, 1e-3),
        betas=(_Betas, [0.9, 0.999]),
        eps=(Positive, 1e-8),
        weight_decay=(NotNegative, decay),
        amsgrad=(Flag, False),
    )


OPTIMIZERS: Table = {
    "sgd": settings(
        "Sgd",
        lr=(Rate, 1e-3),
        momentum=(Decay, 0.0),
        dampening=(Unit, 0.0),
        weight_decay=(NotNegative, 0.0),
        nesterov=(Flag, False),
    ),
    "adam": _adam("Adam", 0.0),
    "adamw": _adam("AdamW", 0.01),
    "rmsprop": settings(
        "RmsProp",
        lr=(Rate, 1e-2),
        alpha=(Decay, 0.99),
        eps=(Positive, 1e-8),
        weight_decay=(NotNegative, 0.0),
        momentum=(Decay, 0.0),
        centered=(Flag, False),
    ),
    "adagrad": settings(
        "Adagrad",
        lr=(Rate, 1e-2),
        lr_decay=(NotNegative, 0.0),
        weight_decay=(NotNegative, 0.0),
        eps=(Positive, 1e-10),
    ),
}
"""Settings are the arguments of the class of `torch.optim`, with its defaults."""

_Over = Literal["rounds", "steps"]

SCHEDULERS: Table = {
    "cosine": settings("Cosine", over=(_Over, "rounds"), floor=(Unit, 0.0)),
    "linear": settings("Linear", over=(_Over, "rounds"), floor=(Unit, 0.0)),
    "step": settings("Step", every=(Count, ...), gamma=(Unit, 0.1)),
    "exponential": settings("Exponential", gamma=(Unit, ...)),
}
"""Factors of the learning rate: functions of the round and step, never objects with state."""

_Glob = Annotated[Text, Field(max_length=200)]


class ParamGroup(Value):
    """Parameters whose names match, with their own settings of the optimizer."""

    model_config = ConfigDict(extra="allow")
    match: _Glob


class TorchSettings(Value):
    """Of `task_runner: torch`. Exactly one of `epochs` and `steps` (per task)."""

    model: Annotated[Choice, Among("a model", code=Code(0))]
    loss: Annotated[Choice, Among("a loss", LOSSES, code=Code(2), drop_none=True)]
    optimizer: Annotated[Choice, Among("an optimizer", OPTIMIZERS, code=Code(1))]
    optimizer_state: Literal["reset", "keep", "average"] = "reset"
    steps: Count | None = None
    epochs: Count | None = Field(default_factory=lambda data: None if data.get("steps") else 1)
    scheduler: Annotated[Choice, Among("a scheduler", SCHEDULERS, code=Code(3))] | None = None
    train: Annotated[Function, Code(3)] | None = None  # a loop: (model, batches, ctx) -> metrics
    clip_grad_norm: Positive | None = None
    accumulate: Count = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    freeze: tuple[_Glob, ...] = ()
    param_groups: tuple[ParamGroup, ...] = ()

    @field_validator("param_groups")
    @classmethod
    def _groups(
        cls, groups: tuple[ParamGroup, ...], info: ValidationInfo
    ) -> tuple[ParamGroup, ...]:
        optimizer = info.data.get("optimizer")
        model = OPTIMIZERS.get(optimizer.name) if optimizer else None
        if model is None:
            return groups
        return tuple(_group(model, index, group) for index, group in enumerate(groups))

    @model_validator(mode="after")
    def _rules(self) -> "TorchSettings":
        if self.epochs is None and self.steps is None:
            raise refuse("P15", "expected epochs or steps, got neither: write epochs: 1")
        return one_of_epochs_and_steps(self, self.epochs, self.steps)


def _group(model: type[Value], index: int, group: ParamGroup) -> ParamGroup:
    try:
        given = model.model_validate(group.model_extra or {})
    except ValidationError as error:
        raise Nested(model, error, (index,)) from None
    return ParamGroup(match=group.match, **given.model_dump(mode="json", exclude_unset=True))


# -- scikit-learn -------------------------------------------------------------------------------

_Penalty = Literal["l2", "l1", "elasticnet"] | None
_Weights = Literal["balanced"] | None
_ALPHA: dict[str, Any] = {
    "penalty": (_Penalty, "l2"),
    "alpha": (NotNegative, 1e-4),
    "l1_ratio": (Unit, 0.15),
    "fit_intercept": (Flag, True),
}
_SGD: dict[str, Any] = {
    **_ALPHA,
    "epsilon": (NotNegative, 0.1),
    "eta0": (Rate, 0.01),
}

ESTIMATORS: Table = {
    "sklearn.linear_model:SGDClassifier": settings(
        "SGDClassifier",
        loss=(
            Literal["hinge", "log_loss", "modified_huber", "squared_hinge", "perceptron"],
            "hinge",
        ),
        learning_rate=(Literal["constant", "optimal", "invscaling", "pa1", "pa2"], "optimal"),
        power_t=(Real, 0.5),
        **_SGD,
    ),
    "sklearn.linear_model:SGDRegressor": settings(
        "SGDRegressor",
        loss=(
            Literal[
                "squared_error",
                "huber",
                "epsilon_insensitive",
                "squared_epsilon_insensitive",
            ],
            "squared_error",
        ),
        learning_rate=(Literal["constant", "optimal", "invscaling", "pa1", "pa2"], "invscaling"),
        power_t=(Real, 0.25),
        **_SGD,
    ),
    "sklearn.linear_model:Perceptron": settings(
        "Perceptron", **{**_ALPHA, "penalty": (_Penalty, None)}, eta0=(Rate, 1.0)
    ),
    "sklearn.linear_model:LogisticRegression": settings(
        "LogisticRegression",
        C=(Positive, 1.0),
        l1_ratio=(Unit, 0.0),
        fit_intercept=(Flag, True),
        solver=(Literal["lbfgs", "newton-cg", "newton-cholesky", "saga", "sag"], "lbfgs"),
        max_iter=(Count, 100),
        tol=(Positive, 1e-4),
        class_weight=(_Weights, None),
    ),
}
"""Settings are arguments of the estimator, with its defaults; seeds and stopping are openfed's."""

CLASSIFIERS = frozenset(name for name in ESTIMATORS if not name.endswith("Regressor"))


def _labels(labels: list[JsonValue]) -> list[JsonValue]:
    kinds = {type(label) for label in labels}
    if not (kinds <= {int} or kinds <= {str} or kinds <= {bool}):
        raise refuse("P07", "expected labels of one kind, whole numbers or texts, got a mixture")
    if len(set(map(str, labels))) != len(labels):
        raise refuse("P15", "expected each label once, got one twice")
    return labels


_Labels = Annotated[
    list[JsonValue], Field(min_length=2, max_length=100_000), AfterValidator(_labels)
]


class SklearnSettings(Value):
    """Of `task_runner: sklearn`. `features` and `classes` give the shapes before any data."""

    estimator: Annotated[Choice, Among("an estimator", ESTIMATORS)]
    features: Count
    classes: _Labels | None = None
    epochs: Count = 1

    @model_validator(mode="after")
    def _rules(self) -> "SklearnSettings":
        classifier = self.estimator.name in CLASSIFIERS
        name = self.estimator.name.rpartition(":")[2]
        if classifier and self.classes is None:
            raise refuse("P06", f"{name} needs classes, the labels of all sites: classes: [0, 1]")
        if not classifier and self.classes is not None:
            raise refuse("P15", f"{name} is a regressor: remove classes")
        return self


# -- numpy --------------------------------------------------------------------------------------

_Shape = Annotated[list[Count], Field(max_length=8)]


class NumpySettings(Value):
    """Of `task_runner: numpy`: functions of the user. The model begins as zeros of `shapes`, or
    as what `init` returns."""

    train: Annotated[Function, Code(3)]
    validate_: Annotated[Annotated[Function, Code(3)] | None, Field(alias="validate")] = None
    init: Annotated[Function, Code(1)] | None = None
    shapes: dict[_Glob, _Shape] | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rules(self) -> "NumpySettings":
        if (self.init is None) == (not self.shapes):
            raise refuse(
                "P15", "expected one of shapes, as in shapes: {w: [8]}, and init: src.model:init"
            )
        return self


RUNNERS: Table = {
    "torch": TorchSettings,
    "sklearn": SklearnSettings,
    "numpy": NumpySettings,
    "exact": settings("Exact"),  # of flows on sums: what it computes is their setting
}

# -- partitioners: of one data set, in local.yaml ------------------------------------------------

_Minimum = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]

PARTITIONERS: Table = {
    "iid": settings("Iid"),
    "dirichlet": settings(
        "Dirichlet",
        alpha=(Annotated[float, Field(strict=True, ge=1e-4, le=1e8)], ...),
        minimum=(_Minimum, 1),
    ),
    "shards": settings("Shards", each=(Count, 2)),
    "quantity": settings(
        "Quantity",
        law=(Literal["lognormal", "power"], ...),
        skew=(NotNegative, ...),
        minimum=(_Minimum, 1),
    ),
    "by_key": settings("ByKey"),
    "natural": settings("Natural"),
}
