"""A tree against a model: the value, or every problem at the place it came from."""

from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from openfed.plan.choices import TorchSettings
from openfed.plan.source import Finding, Node, Place, plain
from openfed.plan.values import Nested, Value, part, shown, suggest

Loc = tuple[str | int, ...]
V = TypeVar("V", bound=Value)


def checked(tree: Node, model: type[V]) -> tuple[V | None, list[Finding]]:
    """The value of a normalised tree, or None and what is wrong with it."""
    try:
        return model.model_validate(plain(tree)), []
    except ValidationError as error:
        return None, list(findings(tree, model, error))


def finding(tree: Node, loc: Loc, code: str, message: str, *, key: bool = False) -> Finding:
    """A problem with the value at `loc` (with `key`: with its key)."""
    at, path = locate(tree, loc, key=key)
    return Finding(at, code, path, message)


def locate(tree: Node, loc: Loc, *, key: bool = False) -> tuple[Place, str]:
    """The place of the value at `loc`, or of the nearest thing above it, and the path as the
    person wrote it: `strategy.fedadam.lr`."""
    node, at, path = tree, tree.at, ""
    for index, step in enumerate(loc):
        if node.choice and isinstance(node.value, dict) and step in ("name", "settings"):
            name = node.value["name"]
            at = name.at
            path += f".{name.value}" if step == "settings" else ""
        else:
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
        child = _child(node, step)
        if child is None:
            at = node.keys.get(str(step), at)
            path += "".join(f".{rest}" for rest in loc[index + 1 :] if isinstance(rest, str))
            break
        at = child.at
        if child.choice and isinstance(child.value, dict):
            at = child.value["name"].at
        elif (key and index == len(loc) - 1) or isinstance(child.value, dict):
            at = node.keys.get(str(step), child.at)
        node = child
    return at, path.removeprefix(".")


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(node.value, dict):
        return node.value.get(str(step))
    if isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None


def findings(tree: Node, model: type[Value], error: ValidationError) -> Iterator[Finding]:
    for loc, owner, problem in _flat(model, error, ()):
        kind = problem["type"]
        code, message = _says(loc, owner, problem)
        yield finding(tree, loc, code, message, key=kind == "extra_forbidden")


def _flat(
    model: type[Value], error: ValidationError, at: Loc
) -> Iterator[tuple[Loc, type[Value], Any]]:
    """Each single error with its place and the model that it is about."""
    for problem in error.errors(include_url=False):
        cause = problem.get("ctx", {}).get("error")
        loc = at + problem["loc"]
        if isinstance(cause, Nested):
            yield from _flat(cause.model, cause.error, loc + cause.at)
        elif problem["type"] != "default_factory_not_called" and not _long_enough(problem):
            yield loc, _owner(model, problem["loc"]), problem


def _long_enough(problem: Any) -> bool:
    """Whether a list is called too short only because some of its items are wrong."""
    given, least = problem["input"], problem.get("ctx", {}).get("min_length", 0)
    return problem["type"] == "too_short" and isinstance(given, list) and len(given) >= least


def _owner(model: type[Value], loc: Loc) -> type[Value]:
    """The model that has, or lacks, the last key of `loc`."""
    for step in loc[:-1]:
        inner = part(model, step) if isinstance(step, str) else None
        if isinstance(inner, type):
            model = inner
    return model


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
}

_RANGE = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


def _says(loc: Loc, owner: type[Value], problem: Any) -> tuple[str, str]:
    """The code and the message: what was expected, what was found, what to do."""
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "openfed":
        return context["code"], context["message"]
    if kind == "missing":
        return "P06", f"is missing: {_example(owner, str(loc[-1]))}"
    if kind == "extra_forbidden":
        return _unknown(loc, owner)
    if kind in _RANGE:
        sign, bound = _RANGE[kind][0], context[_RANGE[kind][1]]
        bound = int(bound) if bound == int(bound) else bound
        return "P08", f"expected a number {sign} {bound}, got {shown(given)}"
    if kind in ("too_short", "string_too_short"):
        return "P08", f"expected at least {context.get('min_length')}, got {_size(given)}"
    if kind in ("too_long", "string_too_long"):
        return "P08", f"expected at most {context.get('max_length')}, got {_size(given)}"
    if kind == "literal_error":
        known = context["expected"].replace("'", "").replace(" or ", ", ").replace(", ", " | ")
        hint = suggest(given, known.split(" | ")) if isinstance(given, str) else ""
        return "P09", f"expected {known}, got {shown(given)}. {hint}".rstrip(". ")
    if kind in _EXPECTED:
        advice = _advice(kind, given) or _as_in(owner, str(loc[-1]))
        return "P07", f"expected {_EXPECTED[kind]}, got {shown(given)}{advice}"
    return "P07", f"{problem['msg']}, got {shown(given)}"


def _size(given: object) -> str:
    if isinstance(given, str):
        return f"{len(given)} characters"
    return f"a list of {len(given)}" if isinstance(given, list | tuple) else shown(given)


def _advice(kind: str, given: object) -> str:
    if given is None:
        return ": give a value, or remove the key"
    if kind == "string_type" and not isinstance(given, list | dict):
        return ": put it in quotes"
    if kind in ("int_type", "float_type") and isinstance(given, str):
        return ": write it without quotes or units" if _numeric(given) else ""
    if kind in ("tuple_type", "list_type") and not isinstance(given, dict):
        return f": write [{given}]"[:60]
    return ""


def _numeric(text: str) -> bool:
    return text[:1].isdigit()


def _example(owner: type[Value], key: str) -> str:
    return f"add {key}: {_examples(owner, key)[0]}"


def _as_in(owner: type[Value], key: str) -> str:
    example = _examples(owner, key)[0]
    return "" if example == _NONE else f", as in {key}: {example}"


_NONE = "..."


def _examples(owner: type[Value], key: str) -> list[object]:
    known = owner.model_fields.get(key) or owner.model_fields.get(key + "_")  # an alias
    return (known and known.examples) or [_NONE]


def _unknown(loc: Loc, owner: type[Value]) -> tuple[str, str]:
    key = str(loc[-1])
    known = [name.removesuffix("_") for name in owner.model_fields]
    if len(loc) == 1 and key in TorchSettings.model_fields:
        return "P01", f"unknown key here: it belongs below task_runner: {{torch: {{{key}: ...}}}}"
    listed = f"known here: {', '.join(known)}" if known else "nothing can be set here"
    return "P01", f"unknown key. {suggest(key, known)}{listed}"
