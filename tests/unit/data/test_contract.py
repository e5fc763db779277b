"""The data contract: what it finds, what it says of it, and what it never says."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.data.check import Broken, check, demand
from openfed.data.column import Column
from openfed.data.contract import Contract, contract_of
from openfed.data.table import Samples, Table
from openfed.errors import PlanError, TaskError

PLAN = {
    "columns": [
        {"name": "age", "kind": "integer", "range": [0, 120]},
        {"name": "bmi", "kind": "number", "range": [10, None], "missing": True},
        {"name": "sex", "kind": "text", "values": ["f", "m"]},
        {"name": "ill", "kind": "integer"},
    ],
    "target": "ill",
    "classes": [0, 1],
    "samples": 3,
}
CONTRACT = contract_of(PLAN)


def table(**changes):
    parts = {
        "age": np.array([30, 40, 50]),
        "bmi": np.array([20.0, np.nan, 31.5]),
        "sex": np.array(["f", "m", "f"]),
        "ill": np.array([0, 1, 0]),
        **changes,
    }
    kept = {name: array for name, array in parts.items() if array is not None}
    return Table(tuple(kept), tuple(kept.values()))


def test_a_contract_is_read_as_it_stands_in_a_plan():
    expected = Contract(
        columns=(
            Column("age", "integer", least=0, most=120),
            Column("bmi", "number", missing=True, least=10),
            Column("sex", "text", values=("f", "m")),
            Column("ill", "integer"),
        ),
        target="ill",
        classes=(0, 1),
        samples=3,
    )
    assert expected == CONTRACT == contract_of(json.loads(json.dumps(PLAN)))
    full = {"columns": None, "target": None, "shape": [None, 28], "dtype": "uint8", "classes": None}
    assert contract_of(full) == Contract(shape=(None, 28), dtype="uint8")
    assert contract_of({}) == Contract()


def test_data_as_demanded_break_nothing():
    assert check(CONTRACT, table()) == []
    demand(CONTRACT, table(more=np.array(["a", "b", "c"])))
    assert check(CONTRACT, table(age=np.array([0, 120, 7], np.uint8))) == []


A = "age"


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"age": None}, Broken("column 'age'", "is not there")),
        (
            {"age": np.array([30.0, 1, 2])},
            Broken("column 'age'", "expected integer, found another kind of values"),
        ),
        (
            {"age": np.array([30, 131, -1])},
            Broken("column 'age'", "there are values outside 0 to 120", 2, (1, 2)),
        ),
        (
            {"bmi": np.array([9.5, np.nan, 11])},
            Broken("column 'bmi'", "there are values outside 10 and more", 1, (0,)),
        ),
        (
            {"bmi": np.array([np.inf, np.nan, 11])},
            Broken("column 'bmi'", "there are infinite numbers", 1, (0,)),
        ),
        ({"sex": np.array(["f", "", "m"])}, Broken("column 'sex'", "values are missing", 1, (1,))),
        (
            {"sex": np.array(["f", "zz9secret", "m"])},
            Broken("column 'sex'", "there are other values than 'f', 'm'", 1, (1,)),
        ),
        (
            {"ill": np.array([0, 4242, 1])},
            Broken("target", "there are other classes than 0, 1", 1, (1,)),
        ),
        ({"age": np.array([3, 4])}, Broken("columns", "are not of one length")),
    ],
)
def test_each_rule_by_hand(changes, broken):
    assert check(CONTRACT, table(**changes))[0] == broken


def test_too_few_samples():
    few = Table(table().columns, tuple(array[:2] for array in table().arrays))
    assert check(CONTRACT, few) == [Broken("samples", "expected at least 3, there are fewer", 2)]
    none = Table((), ())
    assert [each.where for each in check(CONTRACT, none)] == [
        *("column 'age'", "column 'bmi'", "column 'sex'", "column 'ill'", "samples")
    ]


def test_a_text_that_may_miss_is_none_of_the_other_values():
    contract = Contract((Column("sex", "text", missing=True, values=("f", "m")),))
    assert check(contract, Table(("sex",), (np.array(["f", ""]),))) == []
    assert check(contract, Table(("sex",), (np.array(["x", ""]),)))[0].rows == (0,)


def test_only_ten_rows_are_kept_and_all_counted():
    broken = check(Contract((Column("x", "number", most=0),)), Table(("x",), (np.ones(500),)))
    assert broken == [Broken("column 'x'", "there are values outside 0 and less", 500,
                             tuple(range(10)))]  # fmt: skip


@given(
    age=st.lists(st.integers(121, 10**9), min_size=1, max_size=9),
    bmi=st.lists(st.floats(-1e9, 9), min_size=1, max_size=9),
    sex=st.lists(st.text(st.characters(categories=["Lu"]), min_size=3), min_size=1, max_size=9),
)
def test_a_message_says_the_same_whatever_the_data_are(age, bmi, sex):
    """All rows broken, in any number: the text is that of the rule alone."""
    n = min(map(len, (age, bmi, sex)))
    data = Table(
        ("age", "bmi", "sex", "ill"),
        (np.array(age[:n]), np.array(bmi[:n]), np.array(sex[:n]), np.array(age[:n])),
    )
    with pytest.raises(TaskError) as caught:
        demand(contract_of({**PLAN, "samples": 1}), data)
    assert caught.value.message == (
        "data contract: column 'age': there are values outside 0 to 120; column 'bmi': there are "
        "values outside 10 and more; column 'sex': there are other values than 'f', 'm'; target: "
        "there are other classes than 0, 1"
    )


IMAGES = contract_of({"shape": [2, 3], "dtype": "float32", "classes": ["cat", "dog"], "samples": 2})
GOOD = np.zeros((2, 2, 3), np.float32)
CATS = np.array(["cat", "cat"])


@pytest.mark.parametrize(
    ("inputs", "targets", "messages"),
    [
        (GOOD, CATS, []),
        (GOOD[:1], CATS[:1], ["samples: expected at least 2, there are fewer"]),
        (np.zeros((2, 3, 2), np.float32), CATS,
         ["inputs: expected samples of shape (2, 3), found (3, 2)"]),
        (GOOD.astype(float), CATS, ["inputs: expected float32, found another dtype"]),
        (GOOD * np.nan, CATS, ["inputs: there are numbers that are not finite"]),
        (GOOD, None, ["targets: are not there"]),
        (GOOD, CATS[:1], ["targets: there are not as many as samples"]),
        (GOOD, np.array(["cat", "zz9secret"]),
         ["targets: there are other classes than 'cat', 'dog'"]),
        (GOOD, np.array([0, 1]),
         ["targets: expected texts, one per sample, found another kind of values"]),
        (np.array(5), None, ["inputs: expected an array of numbers or texts, a sample a row",
                             "samples: expected at least 2, there are fewer"]),
        (np.array([{}, {}]), CATS,
         ["inputs: expected an array of numbers or texts, a sample a row"]),
        (np.zeros((0, 2, 3), np.float32), CATS[:0],
         ["samples: expected at least 2, there are fewer"]),
    ],
)  # fmt: skip
def test_samples_against_a_contract(inputs, targets, messages):
    assert [str(each) for each in check(IMAGES, Samples(inputs, targets))] == messages


def test_any_length_fits_where_the_shape_is_open():
    contract = contract_of({"shape": [None, 3]})
    assert check(contract, Samples(np.zeros((1, 9, 3)))) == []
    assert str(check(contract, Samples(np.zeros((1, 9, 4))))[0]).endswith("(any, 3), found (9, 4)")


def test_a_table_is_no_array_and_an_array_no_table():
    assert check(IMAGES, table())[0] == Broken("inputs", "expected arrays, found a table")
    assert check(CONTRACT, Samples(GOOD))[0] == Broken("columns", "expected a table, found arrays")


def test_bounds_beyond_a_short_dtype_hold_without_a_warning():
    wide = Contract((Column("x", "number", least=-1e300, most=1e300),))
    assert check(wide, Table(("x",), (np.array([1.0, -60000], np.float16),))) == []
    assert check(wide, Table(("x",), (np.array([1, -2], np.int8),))) == []


COLUMN = {"name": "a", "kind": "number"}


@pytest.mark.parametrize(
    ("code", "path", "given"),
    [
        ("P26", "", []),
        ("P26", "", None),
        ("P26", ".colums", {"colums": []}),
        ("P26", ".columns", {"columns": []}),
        ("P26", ".columns", {"columns": "a"}),
        ("P26", ".columns[0]", {"columns": ["a"]}),
        ("P26", ".columns[0].name", {"columns": [{"kind": "text"}]}),
        ("P26", ".columns[0].kind", {"columns": [{"name": "a"}]}),
        ("P26", ".columns[0].kind", {"columns": [{"name": "a", "kind": ["text"]}]}),
        ("P26", ".columns[0].range", {"columns": [{**COLUMN, "range": [1]}]}),
        ("P26", ".columns[0].range", {"columns": [{**COLUMN, "range": [None, None]}]}),
        ("P26", ".columns[0].range", {"columns": [{**COLUMN, "range": [float("nan"), 1]}]}),
        ("P26", ".columns[0].range", {"columns": [{**COLUMN, "range": [0, 10**400]}]}),
        ("P26", ".columns[0].range", {"columns": [{**COLUMN, "range": [False, 1]}]}),
        ("P26", ".columns[0].missing", {"columns": [{**COLUMN, "missing": "yes"}]}),
        ("P26", ".columns[0].values", {"columns": [{**COLUMN, "values": [1, "b"]}]}),
        ("P26", ".target", {"target": 3}),
        ("P26", ".shape", {"shape": [0]}),
        ("P26", ".shape", {"shape": "28"}),
        ("P26", ".dtype", {"dtype": "object"}),
        ("P26", ".classes", {"classes": [0, 0]}),
        ("P26", ".classes", {"classes": [0.5]}),
        ("P26", ".classes", {"classes": [[0]]}),
        ("P26", ".classes", {"classes": []}),
        ("P26", ".classes", {"classes": [10**30]}),
        ("P26", ".samples", {"samples": 0}),
        ("P26", ".samples", {"samples": True}),
        ("P27", ".columns[1].name", {"columns": [COLUMN, COLUMN]}),
        ("P27", ".columns[0].range", {"columns": [{**COLUMN, "range": [2, 1]}]}),
        ("P27", ".columns[0].range",
         {"columns": [{"name": "a", "kind": "text", "range": [1, 2]}]}),
        ("P27", ".columns[0].missing",
         {"columns": [{"name": "a", "kind": "integer", "missing": True}]}),
        ("P27", ".columns[0].values", {"columns": [{**COLUMN, "values": [1]}]}),
        ("P27", ".columns[0].values",
         {"columns": [{"name": "a", "kind": "text", "values": [1]}]}),
        ("P27", ".target", {"columns": [COLUMN], "target": "b"}),
        ("P27", ".target", {"target": "b"}),
        ("P27", ".classes", {"columns": [COLUMN], "classes": [1]}),
        ("P27", ".classes", {"columns": [COLUMN], "target": "a", "classes": [1]}),
        ("P27", ".shape", {"columns": [COLUMN], "shape": [1]}),
        ("P27", ".dtype", {"columns": [COLUMN], "dtype": "uint8"}),
    ],
)  # fmt: skip
def test_a_contract_that_cannot_be_is_refused_with_its_place(code, path, given):
    with pytest.raises(PlanError) as caught:
        contract_of(given)
    assert [(each.code, each.path) for each in caught.value.problems] == [
        (code, f"data_contract{path}")
    ]


def test_all_problems_are_said_at_once():
    with pytest.raises(PlanError) as caught:
        contract_of({"samples": -1, "shape": 3, "columns": [{"name": "", "kind": "x"}]})
    assert len(caught.value.problems) == 4


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "columns",
                        "target",
                        "shape",
                        "dtype",
                        "classes",
                        "samples",
                        "name",
                        "kind",
                        "range",
                        "x",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_is_a_contract_or_refused(given):
    try:
        contract = contract_of(given)
    except PlanError:
        return
    check(contract, table())
    check(contract, Samples(GOOD, CATS))
