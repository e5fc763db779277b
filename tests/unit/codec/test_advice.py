"""Stages that would save nothing are found by measuring."""

from collections.abc import Sequence
from typing import Any

import pytest

from openfed.codec.advice import idle_stages, ratio
from openfed.plan.choices import CODECS
from openfed.plan.schema import Direction, Pipeline
from openfed.tensors.record import Kind, Signature, Spec

LAYER = Spec("layer.weight", "float32", (300, 700))
BIAS = Spec("layer.bias", "float32", (10,))
COUNT = Spec("count", "int64", (1000,), Kind.BUFFER)
MEAN = Spec("mean", "float32", (50_000,), Kind.BUFFER)
STEM = Spec("stem", "float32", (50_000,), Kind.FROZEN)

NONE: dict[str, Any] = {}
QUANTIZE = ("quantize", {"bits": 8})
LLOYD1 = ("lloyd", {"bits": 1})


def codecs(chain: Sequence[str | tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    pairs = [(each, NONE) if isinstance(each, str) else each for each in chain]
    return [
        {"name": name, "settings": CODECS[name].model_validate(given).model_dump(mode="json")}
        for name, given in pairs
    ]


def way(*chain: Any, feedback: bool = False, **rules: Any) -> Direction:
    exceptions = [{glob: codecs(each)} for glob, each in rules.items()]
    given = {"codecs": codecs(chain), "feedback": feedback, "except": exceptions}
    return Direction.model_validate(given)


def named(direction: Direction, *signature: Spec) -> list[tuple[Any, ...]]:
    """Where something is wrong, below the direction, and its code."""
    found = []
    for key in ("uplink", "downlink"):
        pipeline = Pipeline.model_validate({key: direction})
        problems = list(idle_stages(pipeline, signature or None))
        assert all(loc[:2] == ("compression_pipeline", key) for loc, _, _ in problems)
        found.append([(*loc[2:], code) for loc, code, _ in problems])
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("chain", "idle"),
    [
        (["zstd"], []),
        (["bf16", "zstd"], []),
        ([QUANTIZE, "zstd"], []),
        (["rotate", ("lloyd", {"bits": 4}), "entropy"], []),
        (["rotate", ("lloyd", {"bits": 2}), "zstd"], []),  # 3.4%
        (["rotate", ("grid", {"step": 1.0}), "entropy"], []),
        (["rotate", LLOYD1], []),
        ([("topk", {"fraction": 0.01}), QUANTIZE, "zstd"], []),
        ([("ternary", {"fraction": 0.01})], []),
        (["rotate", LLOYD1, "zstd"], [2]),
        (["rotate", LLOYD1, "entropy"], [2]),
        (["rotate", ("lloyd", {"bits": 8}), "zstd"], [2]),
        ([("kmeans", {"centers": 2}), "entropy"], [1]),
        ([("ternary", {"fraction": 0.01}), "zstd"], [1]),
        ([("topk", {"fraction": 1.0}), "fp16"], [0]),
        ([("topk", {"fraction": 0.999})], [0]),
    ],
)
@pytest.mark.parametrize("feedback", [False, True])
def test_the_stages_that_save_nothing_are_named(
    chain: list[Any], idle: list[int], feedback: bool
) -> None:
    direction = way(*chain, feedback=feedback)
    assert named(direction) == [("codecs", index, "P23") for index in idle]
    assert named(direction, LAYER) == named(direction)


def test_the_message_has_the_bytes() -> None:
    pipeline = Pipeline.model_validate({"uplink": way("rotate", LLOYD1, "zstd")})
    ((_, _, message),) = idle_stages(pipeline)
    assert message == "zstd saves nothing, 8,196 bytes become 8,197: remove it"


def test_a_chain_of_an_exception_is_measured_too() -> None:
    direction = way("zstd", **{"*.weight": ["rotate", LLOYD1, "zstd"]})
    assert named(direction, LAYER, BIAS) == [
        ("codecs", "P23"),  # ten numbers are left for it
        ("except", 0, "*.weight", 2, "P23"),
    ]


def test_a_cast_of_what_is_short_already_is_named() -> None:
    half = Spec("w", "float16", (1000,))
    assert named(way("bf16"), half) == [("codecs", 0, "P23")]
    assert named(way(QUANTIZE), half) == []


def told(direction: Direction, *signature: Spec) -> list[tuple[Any, ...]]:
    """What is wrong with a downlink: where, and the message."""
    pipeline = Pipeline.model_validate({"downlink": direction})
    return [(*loc[1:], message) for loc, _, message in idle_stages(pipeline, signature)]


@pytest.mark.parametrize("size", [1, 8])
def test_a_chain_that_costs_what_it_saves_on_small_tensors_is_named(size: int) -> None:
    small = tuple(Spec(f"w{i}", "float32", (size,)) for i in range(100))
    assert named(way("zstd"), *small) == [("P23",)]
    assert named(way("zstd"), *small, LAYER) == []


@pytest.mark.parametrize("feedback", [False, True])
def test_of_a_model_that_is_too_small_the_direction_is_named_once(feedback: bool) -> None:
    line = (Spec("slope", "float64", ()), Spec("offset", "float64", ()))
    chain = way("rotate", ("grid", {"step": 0.7}), "entropy", feedback=feedback)
    remedy = "this model is too small for compression: remove downlink"
    assert told(chain, *line) == [
        ("downlink", f"saves nothing, 16 bytes become 28: {remedy}"),
    ]


def test_a_chain_of_which_a_part_saves_is_not_called_too_much_for_the_model() -> None:
    line = (Spec("slope", "float64", ()), Spec("offset", "float64", ()))
    assert told(way("bf16", "zstd"), *line) == [
        ("downlink", "codecs", 1, "zstd saves nothing, 4 bytes become 6: remove it"),
    ]
    assert told(way("bf16"), *line) == []
    few = Spec("w", "float32", (4,))  # 16 bytes
    assert told(way(QUANTIZE, "entropy"), few) == [
        ("downlink", "codecs", 1, "entropy saves nothing, 8 bytes become 127: remove it"),
    ]


def test_a_chain_that_saves_nothing_at_any_size_is_not_blamed_on_the_model() -> None:
    half = Spec("w", "float16", (10,))
    assert named(way("bf16"), half) == [("codecs", 0, "P23")]


def test_an_exception_for_small_entries_is_answered_with_an_empty_list() -> None:
    direction = way("bf16", **{"*.bias": ["zstd"]})
    assert told(direction, LAYER, BIAS) == [
        (
            "downlink",
            "except",
            0,
            "*.bias",
            "saves nothing, 40 bytes become 41: its entries are too small: write []",
        ),
    ]


def test_a_lossy_chain_needs_floating_parameters() -> None:
    direction = way(QUANTIZE, "zstd")
    for signature in ((COUNT,), (MEAN,), (COUNT, MEAN, STEM)):
        assert named(direction, *signature) == [("codecs", 0, "P23")]
    assert named(direction, COUNT, MEAN, LAYER) == []
    small, large = Spec("w", "float32", (1000,)), Spec("m", "float32", (500, 1000), Kind.BUFFER)
    assert named(direction, small, large) == [], "each stage is judged by what it works on"
    assert named(way("zstd"), MEAN) == []
    assert named(way("zstd"), COUNT) == [], "what integers hold is not known"


def test_a_chain_that_exceptions_leave_nothing_to_is_named() -> None:
    direction = way(QUANTIZE, **{"layer.*": ["bf16"]})
    assert named(direction, LAYER, BIAS) == [("codecs", 0, "P23")]
    pipeline = Pipeline.model_validate({"uplink": direction})
    ((_, _, message),) = idle_stages(pipeline, (LAYER, BIAS))
    assert "except takes them all" in message


def test_an_exception_that_matches_nothing_is_named() -> None:
    direction = way(QUANTIZE, **{"layre.*": [], "stem": []})
    assert named(direction, LAYER, STEM) == [
        ("except", 0, "layre.*", "K11"),
        ("except", 1, "stem", "K11"),  # it is fixed for the run and does not travel
    ]
    (first, *_) = idle_stages(Pipeline.model_validate({"uplink": direction}), (LAYER, BIAS))
    assert first[2] == "'layre.*' matches no entry of the model, which has layer.bias, layer.weight"


def test_an_exception_behind_another_is_named() -> None:
    direction = way(QUANTIZE, **{"layer.*": [], "*.bias": []})
    model: Signature = (LAYER, BIAS, Spec("other", "float32", (9000,)))
    (found,) = idle_stages(Pipeline.model_validate({"uplink": direction}), model)
    assert found[0][2:] == ("except", 1, "*.bias")
    assert "a pattern before it" in found[2]


def test_ratio_counts_all_that_travels() -> None:
    assert ratio(way()) == 1.0
    assert ratio(way("bf16")) == 0.5
    assert ratio(way("rotate", LLOYD1)) == pytest.approx(1 / 32, rel=0.01)
    # 840,000 bytes become half; 8,000 of integers and 200,000 of a buffer stay; one is fixed
    wanted = (420_000 + 8_000 + 200_000) / (840_000 + 8_000 + 200_000)
    assert ratio(way("bf16"), (LAYER, COUNT, MEAN, STEM)) == pytest.approx(wanted)
    assert ratio(way("bf16", **{"layer.*": []}), (LAYER, COUNT)) == 1.0
    assert ratio(way("bf16"), ()) == 1.0
