"""From sums to values: by hand."""

import pytest

from openfed.errors import TaskError
from openfed.flow.metrics import aggregate, better, check_sums, declared, exhausted, merge, rows


def test_sums_are_added_and_divided_once():
    replies = [
        ("one", {"n": (10.0,), "metrics/validate/accuracy": (9.0, 10.0)}),
        ("two", {"n": (30.0,), "metrics/validate/accuracy": (15.0, 30.0)}),
        ("dry", {"n": (0.0,), "metrics/validate/accuracy": (0.0, 0.0)}),
    ]
    found = rows(3, 2, replies)
    assert [(r["collaborator"], r["value"], r["n"]) for r in found] == [
        ("one", 0.9, 10),
        ("two", 0.5, 30),
        ("aggregate", 0.6, 40),
    ]
    assert {(r["round"], r["model"], r["task"], r["metric"]) for r in found} == {
        (3, 2, "validate", "accuracy")
    }
    assert aggregate(found, "validate", "accuracy") == 0.6
    assert aggregate(found, "train", "accuracy") is None


def test_a_metric_that_no_site_has_is_absent():
    assert rows(1, 0, [("one", {"n": (0.0,), "metrics/validate/loss": (0.0, 0.0)})]) == []


def test_sums_of_different_numbers_of_classes_have_no_aggregate():
    assert merge([(1.0, 2.0), (3.0, 4.0)]) == (4, 6)
    assert merge([(1.0, 2.0, 3.0), (1.0,) * 6]) == ()
    replies = [(who, {"n": (1.0,), "metrics/validate/f1": (1.0,) * k}) for who, k in
               (("one", 6), ("two", 9))]  # fmt: skip
    assert [row["collaborator"] for row in rows(1, 0, replies)] == ["one", "two"]


def test_sums_of_the_wrong_number_are_refused():
    check_sums({"n": (1.0,), "metrics/train/loss": (1.0, 2.0)})
    with pytest.raises(TaskError, match="metrics/train/loss"):
        check_sums({"metrics/train/loss": (1.0, 2.0, 3.0)})


def test_only_the_plans_metrics_the_loss_and_what_every_reply_says_may_be_sent():
    metrics = ["accuracy", "src.metrics:dice"]
    train, validate = declared(metrics, "train"), declared(metrics, "validate")
    assert "metrics/validate_tuned/dice" in train and "metrics/train/loss" in train
    assert not any(name.startswith("metrics/validate/") for name in train)
    assert "metrics/validate/accuracy" in validate and "metrics/train/loss" not in validate
    assert {"n", "seconds", "import_seconds"} == train & validate
    assert len(train) == 3 + 2 * 3 and len(validate) == 3 + 3
    assert declared(metrics, "train", ["steps"]) == train | {"steps"}
    assert declared(metrics, "validate", ["steps"]) == validate


def test_a_value_that_is_not_finite_is_absent():
    replies = [("one", {"n": (1.0,), "metrics/validate/loss": (1e308, 1e-3)})]
    assert rows(1, 0, replies) == []


def test_a_tie_is_not_better():
    assert better(2, 1, "max") and not better(1, 1, "max") and not better(1, 2, "max")
    assert better(1, 2, "min") and not better(1, 1, "min") and not better(2, 1, "min")


@pytest.mark.parametrize(
    ("history", "mode", "patience", "min_delta", "over"),
    [
        ([], "max", 1, 0, False),
        ([0.5], "max", 1, 0, False),
        ([0.5, 0.5], "max", 1, 0, True),
        ([0.5, 0.6, 0.6], "max", 2, 0, False),
        ([0.5, 0.6, 0.6, 0.6], "max", 2, 0, True),
        ([0.5, 0.505, 0.509], "max", 2, 0.01, True),
        ([0.5, 0.505, 0.511], "max", 2, 0.01, False),
        ([3, 2, 2.5, 1, 1.5], "min", 2, 0, False),
        ([3, 2, 2.5, 2.4], "min", 2, 0, True),
        ([0.6, 0.5, 0.7, 0.6, 0.6], "max", 2, 0, True),
    ],
)
def test_patience_counts_values_that_did_not_improve_on_the_best(
    history, mode, patience, min_delta, over
):
    assert exhausted(history, mode, patience, min_delta) == over
