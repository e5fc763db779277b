"""What the task process itself refuses to write; the agent checks it all again."""

import math
from collections.abc import Iterable

from openfed.errors import TaskError
from openfed.tensors.check import check_entries, check_finite
from openfed.tensors.record import Scope, Signature, is_local, matches, signature_of
from openfed.typing import Numbers, Tensors


def check_update(tensors: Tensors, expected: Signature, scope: Scope) -> None:
    """Exactly the entries that travel, each of its dtype and shape. (The agent looks at every
    value, as it reads them.)

    Raises: TaskError: K09 a local entry, K07 a dtype that no frame holds, K21, K22.
    """
    for name in sorted(tensors):
        if is_local(name, scope):
            raise TaskError("K09", f"the plan keeps {name} local, and the task returned it")
    check_entries(_described(tensors), expected)


def check_local(tensors: Tensors, model: Iterable[str]) -> None:
    """Local entries: of dtypes that a frame holds, finite, and none that is shared.

    Raises: TaskError: K09, K07, K23.
    """
    for name in sorted(set(tensors) & set(model)):
        raise TaskError("K09", f"the plan shares {name}, and the task kept it as local")
    _described(tensors)
    for name, value in sorted(tensors.items()):
        check_finite(name, value)


def check_numbers(numbers: Numbers) -> None:
    """Raises: TaskError: K25, naming the first that is not finite."""
    for name, values in sorted(numbers.items()):
        if not all(math.isfinite(value) for value in values):
            raise TaskError("K25", f"{name} is not finite: {list(values)[:4]}")


def check_pattern(key: str, pattern: str, names: Iterable[str]) -> None:
    """Raises: TaskError: K11 the pattern below `key` of the plan matches none of the names."""
    there = sorted(names)
    if not any(matches(name, [pattern]) for name in there):
        listed = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
        said = f"{key}: {pattern!r} matches no entry of the model"
        raise TaskError("K11", f"{said}, which has {listed or 'none'}")


def check_scope(names: Iterable[str], scope: Scope) -> None:
    """Every pattern that should keep entries local keeps some: a typo would share them.

    Raises: TaskError: K11.
    """
    there = sorted(names)
    for pattern, where in scope:
        if where != "local":
            continue
        check_pattern("scope", pattern, there)
        if not any(matches(name, [pattern]) and is_local(name, scope) for name in there):
            raise TaskError(
                "K11",
                f"scope: {pattern!r} is local, but a pattern before it shares all that it "
                "matches, and the first match wins: put it first",
            )


def _described(tensors: Tensors) -> Signature:
    for name, value in sorted(tensors.items()):
        if not hasattr(value, "dtype"):
            raise TaskError("K07", f"{name} is a {type(value).__name__}, expected an array")
    try:
        return signature_of(tensors)
    except KeyError as error:
        raise TaskError("K07", f"entries of dtype {error.args[0]} cannot travel") from None
