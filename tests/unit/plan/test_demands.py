"""What a strategy demands of the rest of the plan: P24 and P25, with their places."""

from collections.abc import Callable

import pytest

from openfed.errors import PlanError
from openfed.plan import choices
from openfed.plan.methods import COVERS, local_settings
from openfed.plan.schema import Plan
from openfed.registry import AGGREGATES, SCREENS, STRATEGIES
from openfed.strategy.robust import FEWEST
from openfed.tensors.check import LEAST

Load = Callable[..., Plan]

TORCH = """\
  torch:
    model: {"src.model:Net": {classes: 10}}
    loss: cross_entropy
    optimizer: {sgd: {lr: 0.1}}
"""
SKLEARN = """\
  sklearn:
    estimator: {"sklearn.linear_model:SGDClassifier": {learning_rate: constant, eta0: 0.2}}
    features: 4
    classes: [0, 1]
"""
PLAN = """\
federation: consortium
rounds: 10
collaborators: [a, b, c, d, e, f, g]
data_loader: {"src.data:Digits": {batch_size: 32}}
task_runner:
"""


def plan(runner: str = TORCH, **lines: str) -> str:
    return PLAN + runner + "".join(f"{key}: {value}\n" for key, value in lines.items())


def problem(load: Load, text: str) -> str:
    """The only one."""
    with pytest.raises(PlanError) as caught:
        load(text)
    assert len(caught.value.problems) == 1, str(caught.value)
    return str(caught.value)


# -- enough answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", sorted(choices.FEWEST))
def test_the_plan_and_the_rules_know_the_same_bounds(rule: str) -> None:
    per, more = choices.FEWEST[rule]
    assert choices.FEWEST.keys() == FEWEST.keys()
    assert [per * f + more for f in range(5)] == [FEWEST[rule](f) for f in range(5)]


@pytest.mark.parametrize(
    ("strategy", "most"), [("trimmed_mean", 3), ("krum", 2), ("multi_krum", 2), ("bulyan", 1)]
)
def test_f_is_refused_from_where_seven_answers_are_too_few(
    load: Load, strategy: str, most: int
) -> None:
    load(plan(strategy=f"{{{strategy}: {{f: {most}}}}}"))
    said = problem(load, plan(strategy=f"{{{strategy}: {{f: {most + 1}}}}}"))
    at = len(f"strategy: {{{strategy}: {{f: ")
    assert said.startswith(f"plan/plan.yaml:10:{at + 1}  P24  strategy.{strategy}.f  with f = ")
    assert said.endswith(f"a round can end with 7: f can be {most} at most")


@pytest.mark.parametrize(
    ("change", "answers"),
    [
        ({"cohort": "{count: 4}"}, 4),
        ({"cohort": "{fraction: 0.5}"}, 4),
        ({"cohort": "{quorum: 5, deadline: 10m}"}, 5),
        ({"cohort": "{count: 3, quorum: 3, over: 2.0, deadline: 10m}"}, 3),
        ({"collaborators": "{enrolled: {minimum: 6}}"}, 6),
        ({"collaborators": "enrolled"}, 1),
    ],
)
def test_what_counts_is_with_how_few_answers_a_round_can_end(
    load: Load, change: dict[str, str], answers: int
) -> None:
    text = plan(**{"strategy": "{trimmed_mean: {f: 3}}", **change})
    if "collaborators" in change:
        text = text.replace("collaborators: [a, b, c, d, e, f, g]\n", "")
    assert f"a round can end with {answers}: f can be {(answers - 1) // 2}" in problem(load, text)


def test_a_rule_that_even_nobody_hostile_can_have_is_told_as_such(load: Load) -> None:
    said = problem(load, plan(strategy="{krum: {f: 1}}", cohort="{count: 2}"))
    assert said.endswith("a round can end with 2: it needs 3 even for f = 0")


def test_multi_krum_cannot_keep_more_than_its_bound(load: Load) -> None:
    load(plan(strategy="{multi_krum: {f: 2, m: 3}}"))
    said = problem(load, plan(strategy="{multi_krum: {f: 2, m: 4}}"))
    assert said.startswith("plan/plan.yaml:10:34  P24  strategy.multi_krum.m")
    assert "keeps at most 3 of 7 updates (n - f - 2), got m = 4" in said


# -- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*choices.STRATEGIES} - {*choices.AT_SITES}))
def test_robust_rules_count_every_site_the_same_unless_told(load: Load, name: str) -> None:
    given = {"f": 1, "norm": 1.0, "radius": 1.0, "q": 1.0}
    keys = [k for k, v in choices.STRATEGIES[name].model_fields.items() if v.is_required()]
    settings = ", ".join(f"{key}: {given[key]}" for key in keys)
    strategy = f"{{{name}: {{{settings}}}}}"
    averages = name.startswith("fed")
    assert load(plan(strategy=strategy)).weights.name == ("samples" if averages else "uniform")
    assert load(plan(strategy=strategy, weights="samples")).weights.name == "samples"


def test_what_also_runs_at_the_sites_averages_by_samples(load: Load) -> None:
    assert not choices.UNIFORM & {*choices.AT_SITES}
    assert load(plan(strategy="fedprox")).weights.name == "samples"


# -- what a formula covers ----------------------------------------------------------------------

SGD = "{sgd: {lr: 0.1}}"
MOMENTUM = "{sgd: {lr: 0.1, momentum: 0.9}}"
OWN = '  numpy: {train: "src.numeric:train", shapes: {w: [3]}}\n'


def torch(more: str, optimizer: str = SGD) -> str:
    return TORCH.replace(SGD, optimizer) + (f"    {more}\n" if more else "")


def sklearn(estimator: str) -> str:
    before, _, after = SKLEARN.partition("estimator: ")
    return f"{before}estimator: {estimator}\n{after.partition(chr(10))[2]}"


BOTH = (
    ("another optimizer", torch("", "{adam: {lr: 0.1}}"), 9, "adam takes others: write sgd"),
    ("one's own", torch("", "src.model:Net"), 9, "src.model:Net takes others"),
    ("a loop", torch('train: "src.numeric:train"'), 10, "a loop of your own"),
    ("rates", torch('param_groups: [{match: "*", lr: 1.0}]'), 10, "leave only weight_decay"),
    ("by steps", torch("scheduler: {cosine: {over: steps}}"), 10, ""),
    ("no steps", sklearn('"sklearn.linear_model:LogisticRegression"'), 7, "SGDClassifier does"),
    ("shrinking", sklearn('"sklearn.linear_model:SGDClassifier"'), 7, "write constant"),
    ("functions", OWN, 6, "choose torch or sklearn"),
)
ONLY = {
    "fednova": (
        ("nesterov", torch("", MOMENTUM.replace("}}", ", nesterov: true}}")), 9, "nesterov"),
        ("dampening", torch("", MOMENTUM.replace("}}", ", dampening: 0.1}}")), 9, "dampening"),
        ("old momentum", torch("optimizer_state: keep", MOMENTUM), 10, "write reset"),
    ),
    "{qfedavg: {q: 1.0}}": (
        ("momentum", torch("", MOMENTUM), 9, "remove momentum"),
        ("a schedule", torch("scheduler: cosine"), 10, "remove scheduler"),
    ),
}


@pytest.mark.parametrize(
    ("strategy", "runner", "line", "says"),
    [
        pytest.param(strategy, runner, line, says, id=f"{strategy} {what}")
        for strategy, own in ONLY.items()
        for what, runner, line, says in (*BOTH, *own)
    ],
)
def test_what_a_formula_does_not_cover_is_refused_where_it_stands(
    load: Load, strategy: str, runner: str, line: int, says: str
) -> None:
    tasks = "[train]" if runner == OWN else "[validate, train]"
    with pytest.raises(PlanError) as caught:
        load(plan(runner, strategy=strategy, tasks=tasks))
    found = [p for p in caught.value.problems if p.code == "P25"]
    assert [p.where.split(":")[1] for p in found][:1] == [str(line)]
    assert says in found[0].message
    assert {p.code for p in caught.value.problems} <= {"P25", "P11", "P10"}  # src is what it is


@pytest.mark.parametrize(
    ("runner", "momentum", "rate"),
    [
        (TORCH, 0.0, 0.1),
        (torch("", MOMENTUM), 0.9, None),
        (torch("scheduler: cosine"), 0.0, None),
        (torch('param_groups: [{match: "*", weight_decay: 0.1}]'), 0.0, 0.1),
        (SKLEARN, 0.0, 0.2),
        (sklearn('"sklearn.linear_model:Perceptron"'), 0.0, 1.0),
    ],
)
def test_what_a_formula_covers_gives_what_it_needs(
    load: Load, runner: str, momentum: float, rate: float | None
) -> None:
    nova = load(plan(runner, strategy="fednova"))
    assert local_settings(nova.strategy, nova.task_runner) == {"momentum": momentum}
    if rate is not None:
        fair = load(plan(runner, strategy="{qfedavg: {q: 2.0}}"))
        assert local_settings(fair.strategy, fair.task_runner) == {"rate": rate}
        assert fair.reports == ("loss_before",)


def test_what_the_tables_name_are_strategies() -> None:
    names = choices.STRATEGIES.keys()
    assert STRATEGIES.keys() == names
    for some in (AGGREGATES, SCREENS, COVERS, choices.REPORTS, choices.FEWEST):
        assert some.keys() <= names
    assert choices.UNWEIGHTED < choices.UNIFORM < names
    assert {name for told in choices.REPORTS.values() for name in told} == LEAST.keys()
