"""What differs between two plans is named, and nothing else is."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from openfed.plan.difference import (
    Change,
    Frozen,
    differences,
    frozen_lock,
    plan_changes,
    read_frozen,
    text_changes,
)
from openfed.plan.digest import canonical_json, digest_of
from openfed.plan.lock import make_lock, write_lock
from openfed.plan.schema import Plan, canonical
from openfed.tensors.record import Kind, Spec

Load = Callable[..., Plan]

MODEL = (Spec("bias", "float32", (3,)), Spec("weight", "float32", (3, 4)))
FILES = {"src/data.py": "1" * 64, "src/model.py": "2" * 64}


def told(old: Frozen, new: Frozen) -> list[str]:
    return [str(change) for change in differences(old, new)]


# -- plans: what is the same --------------------------------------------------------------------


def written(value: Any, chance: Random, indent: int = 0) -> str:
    """`value` as YAML, in one of the many ways to write it."""
    if isinstance(value, dict):
        keys = chance.sample(list(value), len(value))
        if value and chance.random() < 0.5:
            pad = " " * indent
            return "".join(
                f"{noise(chance)}\n{pad}{scalar(key, chance)}:"
                f"{' ' * chance.randint(1, 3)}{written(value[key], chance, indent + 2)}"
                for key in keys
            ) + noise(chance)
        return "{" + ", ".join(f"{scalar(k, chance)}: {flow(value[k], chance)}" for k in keys) + "}"
    return flow(value, chance)


def flow(value: Any, chance: Random) -> str:
    if isinstance(value, dict):
        keys = chance.sample(list(value), len(value))
        return "{" + ", ".join(f"{scalar(k, chance)}: {flow(value[k], chance)}" for k in keys) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(each, chance) for each in value) + "]"
    return scalar(value, chance)


def scalar(value: Any, chance: Random) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    single = "'" + value.replace("'", "''") + "'"
    plain = value if value.replace("_", "").isalpha() else single
    return chance.choice([json.dumps(value), single, plain])


def noise(chance: Random) -> str:
    return chance.choice(["", "", " # a remark: [1, {", "\n# rounds: 99\n   \n# -- "])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(chance=st.randoms(use_true_random=False))
def test_order_comments_and_quotes_make_no_difference(
    chance: Random, load: Load, plan_text: str
) -> None:
    plan = yaml.safe_load(plan_text)
    text = "".join(
        f"{noise(chance)}\n{scalar(key, chance)}: {written(plan[key], chance, 2)}"
        for key in chance.sample(list(plan), len(plan))
    )
    wanted = frozen_lock(make_lock(load(plan_text), FILES, "a" * 64, MODEL))
    found = frozen_lock(make_lock(load(text), FILES, "a" * 64, MODEL))
    assert found.digest == wanted.digest
    assert told(wanted, found) == []


# -- plans: what is not -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("name=other", "name: digits -> other"),
        ("rounds=11", "rounds: 10 -> 11"),
        ("collaborators=[two, one]", "collaborators[0]: one -> two|collaborators[1]: two -> one"),
        ("collaborators=[one, six, two]", "collaborators[1]: added, six"),
        ("collaborators=[one]", "collaborators[1]: removed, was two"),
        ("task_runner.epochs=4", "task_runner.torch.epochs: 3 -> 4"),
        ("task_runner.optimizer.lr=1", "task_runner.torch.optimizer.adam.lr: 0.003 -> 1.0"),
        ("task_runner.model.classes=11", "task_runner.torch.model.src.model:Net.classes: 10 -> 11"),
        (
            "task_runner.loss=nll",
            "task_runner.torch.loss: {cross_entropy: {ignore_index: -100, label_smoothing: 0.0}} "
            "-> {nll: {ignore_index: -100}}",
        ),
        ("metrics=[accuracy]", "metrics[1]: removed, was src.metrics:dice"),
        ("data_loader.batch_size=33", "data_loader.src.data:Digits.batch_size: 32 -> 33"),
        ("tasks=[validate, {train: {steps: 7}}, validate_tuned]", "tasks[1].train.steps: added, 7"),
        ("strategy.fedavgm.lr=0.5", "strategy: fedavg -> {fedavgm: {lr: 0.5, momentum: 0.9}}"),
        ("weights=uniform", "weights: {samples: {cap: 10000}} -> uniform"),
        (
            "compression_pipeline.uplink.feedback=false",
            "compression_pipeline.uplink.feedback: true -> false",
        ),
        (
            "compression_pipeline.downlink=[{zstd: {level: 2}}]",
            "compression_pipeline.downlink.codecs[0].zstd.level: 1 -> 2",
        ),
        ("cohort.deadline=601s", "cohort.deadline: 600.0s -> 601.0s"),
        ("scope=[{'head.*': global}, {'*': global}]", "scope[0].head.*: local -> global"),
        (
            "stop=null",
            "stop: {metric: accuracy, reaches: null, patience: 5, min_delta: 0.001, mode: max, "
            "after: null} -> null",
        ),
        ("retention.updates={rounds: 3}", "retention.updates: none -> {rounds: 3}"),
    ],
)
def test_a_changed_value_is_named_in_the_words_of_the_plan(
    load: Load, plan_text: str, override: str, line: str
) -> None:
    old, new = canonical(load(plan_text)), canonical(load(plan_text, override))
    assert [str(change) for change in plan_changes(old, new)] == line.split("|")


def test_addresses_make_no_difference(load: Load, plan_text: str) -> None:
    there = load(plan_text, "aggregator.advertise=[fl.example.org]")
    assert list(plan_changes(canonical(load(plan_text)), canonical(there))) == []


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)
KEYS = st.text("abcdefgh_", min_size=1, max_size=4)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(KEYS, inner, min_size=1, max_size=4)
        | st.fixed_dictionaries(
            {"name": KEYS, "settings": st.dictionaries(KEYS, inner, max_size=3)}
        )
    ),
    max_leaves=12,
)


def leaves(value: Any, steps: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if not isinstance(value, dict | list):
        return [steps]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, child in inner for leaf in leaves(child, (*steps, key))]


def put(value: Any, steps: tuple[str | int, ...], new: Any) -> Any:
    if not steps:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[steps[0]] = put(copy[steps[0]], steps[1:], new)
    return copy


def as_written(plan: Any, steps: tuple[str | int, ...]) -> str:
    """The path of a leaf as a person writes it: of a choice whose name changes, the choice's."""
    path, at = "", plan
    for index, step in enumerate(steps):
        if isinstance(at, dict) and set(at) == {"name", "settings"}:
            if step == "name" and index == len(steps) - 1:
                break
            path += f".{at['name']}"
        else:
            path += f"[{step}]" if isinstance(step, int) else f".{step}"
        at = at[step]
    return path.removeprefix(".")


@settings(deadline=None, max_examples=300)
@given(data=st.data(), plan=st.dictionaries(KEYS, TREES, min_size=1, max_size=4), value=LEAVES)
def test_a_changed_value_is_another_digest_and_exactly_its_key_is_named(
    data: st.DataObject, plan: dict[str, Any], value: Any
) -> None:
    where = leaves(plan)
    assume(where)
    steps = data.draw(st.sampled_from(where))
    of_choice = steps[-1] == "name" and as_written(plan, steps) != as_written(plan, steps[:-1])
    value = "other" if isinstance(steps[-1], str) and steps[-1] == "name" and of_choice else value
    new = put(plan, steps, value)
    assume(canonical_json(new) != canonical_json(plan))
    assume(as_written(plan, steps) == as_written(new, steps))  # it made no choice, and ended none
    assert digest_of(new) != digest_of(plan)
    assert [change.path for change in plan_changes(plan, new)] == [as_written(plan, steps)]


def test_one_and_one_point_zero_and_true_are_told_apart() -> None:
    changes = plan_changes({"a": 1, "b": True}, {"a": 1.0, "b": 1})
    assert [str(change) for change in changes] == ["a: 1 -> 1.0", "b: true -> 1"]


def test_letters_that_look_alike_are_told_apart() -> None:
    (change,) = plan_changes({"a": "model"}, {"a": "m\N{CYRILLIC SMALL LETTER O}del"})
    assert str(change) == 'a: model -> "m\\u043edel"'


def test_a_text_is_not_taken_for_something_else() -> None:
    changes = plan_changes({"a": 1, "b": None, "c": "x"}, {"a": "1", "b": "null", "c": "a -> b"})
    said = ['a: 1 -> "1"', 'b: null -> "null"', 'c: x -> "a -> b"']
    assert [str(change) for change in changes] == said


# -- code, codecs, the model --------------------------------------------------------------------


def test_code_codecs_and_model_are_named(load: Load) -> None:
    plan = load()
    old = frozen_lock(make_lock(plan, FILES, "a" * 64, MODEL))
    files = {"src/model.py": "3" * 64, "src/new.py": "4" * 64}
    model = (
        Spec("bias", "float32", (4,)),
        Spec("count", "int64", (), Kind.BUFFER),
    )
    new = frozen_lock(make_lock(plan, files, "b" * 64, model))
    assert told(old, new) == [
        "src/data.py: removed, was SHA-256 111111111111",
        "src/model.py: SHA-256 222222222222 -> SHA-256 333333333333",
        "src/new.py: added, SHA-256 444444444444",
        "model bias: float32 [3], parameter -> float32 [4], parameter",
        "model count: added, int64 [], buffer",
        "model weight: removed, was float32 [3, 4], parameter",
        "model initial values: aaaaaaaaaaaa -> bbbbbbbbbbbb",
    ]


def lock_json(load: Load, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "a.lock"
    write_lock(path, make_lock(load(), FILES, "a" * 64, MODEL))
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def sealed(content: dict[str, Any]) -> bytes:
    covered = {key: content[key] for key in ("schema", "plan", "files", "codecs", "model")}
    return json.dumps({**content, "digest": digest_of(covered)}).encode()


def test_a_lock_of_another_release_can_be_compared(load: Load, tmp_path: Path) -> None:
    content = lock_json(load, tmp_path)
    new = read_frozen(json.dumps(content).encode())
    assert new == frozen_lock(make_lock(load(), FILES, "a" * 64, MODEL))
    content["schema"], content["codecs"]["zstd"] = 0, 7
    content["plan"]["since_removed"] = {"x": 1}
    old = read_frozen(sealed(content))
    assert told(old, new) == [
        "schema: 0 -> 1",
        "since_removed: removed, was {x: 1}",
        "codec zstd: version 7 -> version 1",
    ]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ("plan/rounds", 11),
        ("plan", []),
        ("schema", "1"),
        ("files", {"src/model.py": "x"}),
        ("files", {"../secret": "a" * 64}),
        ("files", {"src/../../secret": "a" * 64}),
        ("files", {"/etc/passwd": "a" * 64}),
        ("files", []),
        ("codecs", {"zstd": "1"}),
        ("codecs", None),
        ("model", None),
        ("model/signature", [3]),
        ("model/signature", [{"name": "w"}]),
        ("model/digest", 3),
        ("plan/deep", "deep"),
    ],
)
@pytest.mark.parametrize("seal", [True, False])
def test_what_is_no_lock_is_a_value_error(
    load: Load, tmp_path: Path, keys: str, value: Any, seal: bool
) -> None:
    content = lock_json(load, tmp_path)
    if value == "deep":
        for _ in range(60):
            value = [value]
    *above, last = keys.split("/")
    at = content
    for key in above:
        at = at[key]
    at[last] = value
    if keys == "plan/rounds" and seal:
        assert read_frozen(sealed(content)).plan["rounds"] == 11
        return
    with pytest.raises(ValueError, match=r"."):
        read_frozen(sealed(content) if seal else json.dumps(content).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_bytes_that_are_no_lock_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_frozen(data)


def test_no_difference_stays_unnamed(load: Load, tmp_path: Path) -> None:
    """Also where only the order of the entries, which says nothing, makes the digest another."""
    content = lock_json(load, tmp_path)
    old = read_frozen(json.dumps(content).encode())
    content["model"]["signature"].reverse()
    new = read_frozen(sealed(content))
    (change,) = differences(old, new)
    assert change == Change("plan", "plan.lock", old.digest[:12], new.digest[:12])


# -- texts --------------------------------------------------------------------------------------


def test_code_is_compared_line_by_line() -> None:
    old, new = b"import a\n\nx = 1\ny = 2\n", b"import a\n\nx = 3\ny = 2\n"
    assert list(text_changes("src/a.py", old, new)) == [
        "--- src/a.py",
        "+++ src/a.py",
        "@@ -1,4 +1,4 @@",
        " import a",
        " ",
        "-x = 1",
        "+x = 3",
        " y = 2",
    ]
    added = list(text_changes("src/a.py", None, b"x = 1\n"))
    assert added == ["--- /dev/null", "+++ src/a.py", "@@ -0,0 +1 @@", "+x = 1"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b"x\n", b"x\r\n", "+x\r"),
        (b"x\n", b"x", "+x (no end of line)"),
        (b"x\n", b"x\xe2\x80\xa8y\n", "+x\u2028y"),
        (b"# a\n", b"# a\rcall()\n", "+# a\rcall()"),
        (b"x\n", b"\xff\xfe", "(not text: look at it with a program that knows its format)"),
        (b"", b"x\n" * 20_001, "(more than 20000 lines: compare the files yourself)"),
    ],
)
def test_no_byte_that_changed_is_hidden(old: bytes, new: bytes, line: str) -> None:
    assert line in list(text_changes("src/a.py", old, new))
