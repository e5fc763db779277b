"""What must hold between the codecs of a chain, and what of it would do nothing."""

from collections.abc import Iterator

from openfed.plan.check import Loc
from openfed.plan.choices import STAGES
from openfed.plan.schema import Codecs, Direction, Pipeline, Plan, is_lossy
from openfed.plan.values import Choice

Broken = tuple[Loc, str, str]
"""Where, code, message."""

KEY = "compression_pipeline"
_CHOOSE = ("topk", "randomk")
_CASTS = ("fp16", "bf16")


def pipeline_rules(pipeline: Pipeline) -> Iterator[Broken]:
    for way, direction in ways(pipeline):
        for at, codecs in direction.chains().items():
            for index in range(len(codecs)):
                if (wrong := _stage(codecs, index)) is not None:
                    code, message = wrong
                    yield (KEY, way, *at, index), code, f"{codecs[index].name} {message}"
        yield from _exceptions(way, direction)
    yield from _feedback(pipeline)


def ways(pipeline: Pipeline) -> Iterator[tuple[str, Direction]]:
    yield "uplink", pipeline.uplink
    yield "downlink", pipeline.downlink


def _stage(codecs: Codecs, index: int) -> tuple[str, str] | None:
    """What is wrong with one stage, after those before it: code and message."""
    name, before = codecs[index].name, [codec.name for codec in codecs[:index]]
    if late := [other for other in before if _rank(other) > _rank(name)]:
        right = ", ".join(sorted((codec.name for codec in codecs), key=_rank))
        return "P22", f"works on numbers, and {late[0]} before it leaves bytes: write [{right}]"
    if _rank(name) == _CODES and (other := _last(before, _CODES)):
        return "P22", f"makes codes of numbers, and {other} before it does too: keep one of them"
    if name in (*_CHOOSE, "ternary") and (chosen := [each for each in before if each in _CHOOSE]):
        return "P22", f"chooses numbers, and {chosen[0]} before it does too: keep one of them"
    if name in _CHOOSE and codecs[index].settings["fraction"] == 1:
        return "P23", "sends every number: give a fraction below 1, or remove it"
    if name == "rotate":
        return _rotate(before, [codec.name for codec in codecs[index + 1 :]])
    return _packs(codecs, index) if _rank(name) == _BYTES else None


_FLOATS, _CODES, _BYTES = range(3)


def _rank(name: str) -> int:
    """Where a codec stands in a chain."""
    stage = STAGES[name]
    if stage.takes != "floats":
        return _BYTES
    return _FLOATS if stage.gives == "floats" else _CODES


def _last(names: list[str], rank: int) -> str | None:
    return next((name for name in reversed(names) if _rank(name) == rank), None)


def _rotate(before: list[str], after: list[str]) -> tuple[str, str] | None:
    if "rotate" in before:
        return "P23", "is there twice: remove one"
    coder = _last(after, _CODES)
    if coder is None:
        return "P23", "makes nothing smaller by itself: put lloyd, grid or quantize after it"
    if coder in _CASTS:
        return "P23", f"changes nothing for {coder}, which keeps every exponent: remove it"
    return None


def _packs(codecs: Codecs, index: int) -> tuple[str, str] | None:
    """Of `zstd` and `entropy`: whether the stage before leaves them something to do."""
    name, last = codecs[index].name, codecs[index - 1] if index else None
    if last is not None and _rank(last.name) == _BYTES:
        return "P23", f"saves nothing: {last.name} before it has packed the bytes: keep one of them"
    if last is not None and last.name == "ternary":
        return "P23", "saves nothing: what ternary gives is packed: remove it"
    if last is not None and _one_bit(last):
        return "P23", f"saves nothing: one bit a number is what {last.name} gives: remove it"
    if name == "entropy" and (last is None or STAGES[last.name].gives != "symbols"):
        makers = " or ".join(each for each, stage in STAGES.items() if stage.gives == "symbols")
        return "P22", f"codes the symbols of {makers}, which must stand before it: else write zstd"
    return None


def _one_bit(codec: Choice) -> bool:
    return codec.settings.get("bits") == 1


def _exceptions(way: str, direction: Direction) -> Iterator[Broken]:
    seen: list[str] = []
    for index, rule in enumerate(direction.except_):
        (glob,) = rule
        at = (KEY, way, "except", index)
        if glob in seen or "*" in seen:
            taken = glob if glob in seen else "*"
            yield at, "P15", f"{taken} before it takes these entries, and the first match wins"
        seen.append(glob)


def _feedback(pipeline: Pipeline) -> Iterator[Broken]:
    if pipeline.downlink.feedback:
        yield (
            (KEY, "downlink", "feedback"),
            "P22",
            "the downlink needs none: a model is coded against what the sites hold, so the next "
            "one brings what this one lost. Remove it",
        )
    uplink = pipeline.uplink
    if not uplink.feedback:
        return
    if not any(map(is_lossy, uplink.chains().values())):
        message = "nothing is lost on the way up: remove it, or add a codec that is lossy"
        yield (KEY, "uplink", "feedback"), "P23", message
    for at, codecs in uplink.chains().items():
        for index, codec in enumerate(codecs):
            if codec.settings.get("rounding") == "stochastic":
                loc = (KEY, "uplink", *at, index, "settings", "rounding")
                message = "feedback makes up for rounding to the nearest, not for chance: remove it"
                yield loc, "P22", message


def advice(plan: Plan) -> Iterator[str]:
    """What is allowed and may not be what was meant."""
    if plan.cohort.everyone(len(plan.named)):
        return
    pipeline = plan.compression_pipeline
    if any(map(is_lossy, pipeline.downlink.chains().values())):
        yield (
            f"{KEY}.downlink is lossy and not every site is asked each round: a site that was "
            "left out gets a whole model, where the others get the difference"
        )
    if pipeline.uplink.feedback:
        yield (
            f"{KEY}.uplink.feedback and not every site is asked each round: what a site has "
            "kept back waits until it is asked again, and is of an older model by then"
        )
