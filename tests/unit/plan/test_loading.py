from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.errors import PlanError
from openfed.plan.load import load_plan, ready_plans
from openfed.plan.schema import KeptRounds, Plan, canonical

Load = Callable[..., Plan]


def refused(load: Load, *arguments: str) -> list[tuple[str, str, str]]:
    with pytest.raises(PlanError) as caught:
        load(*arguments)
    return [(p.code, p.where, p.message) for p in caught.value.problems]


def test_plan_of_the_design_is_read_with_every_default(load: Load) -> None:
    plan = load()
    assert plan.task_runner.settings["optimizer"] == {
        "name": "adam",
        "settings": {
            "lr": 0.003,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.0,
            "amsgrad": False,
        },
    }
    assert plan.task_runner.settings["epochs"] == 3
    assert plan.task_runner.settings["steps"] is None
    assert plan.cohort.deadline == 600.0
    assert plan.scope == (("head.*", "local"), ("*", "global"))
    assert plan.best is not None and plan.best.mode == "max"
    assert plan.weights.settings == {"cap": 10000}


MINIMAL = """\
federation: f
rounds: 1
collaborators: [one]
task_runner: {torch: {model: "src.model:Net", loss: cross_entropy, optimizer: sgd}}
data_loader: {"src.data:Digits": {batch_size: 32}}
"""


def test_defaults_of_a_minimal_plan(load: Load) -> None:
    plan = load(MINIMAL)
    assert (plan.name, plan.seed) == ("f", 0)
    assert [task.name for task in plan.tasks] == ["validate", "train"]
    assert plan.best is not None and (plan.best.metric, plan.best.mode) == ("loss", "min")
    assert plan.strategy.name == "fedavg"
    assert plan.cohort.quorum == "all" and plan.cohort.deadline is None
    assert plan.task_runner.settings["epochs"] == 1
    assert plan.stop is None and plan.init is None


@pytest.mark.parametrize(
    ("metrics", "best"),
    [("[rmse, f1]", ("rmse", "min")), ('["src.metrics:dice"]', ("dice", "max"))],
)
def test_best_is_the_first_metric_by_default(load: Load, metrics: str, best: object) -> None:
    chosen = load(MINIMAL + f"metrics: {metrics}\n").best
    assert chosen is not None and (chosen.metric, chosen.mode) == best


def test_there_is_no_best_without_validation(load: Load) -> None:
    assert load(MINIMAL + "tasks: [train]\n").best is None


@pytest.mark.parametrize(
    "shape",
    [
        "{fedadam: {lr: 1}}",
        "{fedadam: {lr: 1.0, tau: 1.0e-3}}",
        "{template: fedadam, settings: {lr: 1}}",
        "\n  fedadam:\n    lr: 1e0",
    ],
)
def test_every_shape_of_a_choice_is_the_same_plan(load: Load, shape: str) -> None:
    wanted = {"lr": 1.0, "beta1": 0.9, "beta2": 0.99, "tau": 0.001}
    chosen = load(MINIMAL + f"strategy: {shape}\n").strategy
    assert (chosen.name, chosen.settings) == ("fedadam", wanted)
    assert isinstance(chosen.settings["lr"], float)


@pytest.mark.parametrize("shape", ["fedadam", "{fedadam: }", "{template: fedadam}"])
def test_a_choice_needs_no_settings(load: Load, shape: str) -> None:
    assert load(MINIMAL + f"strategy: {shape}\n").strategy.settings["lr"] == 0.01


def test_canonical_form_is_itself_a_plan(load: Load) -> None:
    plan = load(None or MINIMAL + "retention: {updates: {rounds: 3}}\ncohort: {deadline: 1.5m}\n")
    again = Plan.model_validate(canonical(plan))
    assert again == plan
    assert again.retention.updates == KeptRounds(rounds=3)
    assert again.cohort.deadline == 90.0


def test_sklearn_and_numpy_runners(load: Load) -> None:
    linear = "sklearn.linear_model:LogisticRegression"
    text = MINIMAL.replace(
        '{torch: {model: "src.model:Net", loss: cross_entropy, optimizer: sgd}}',
        f'{{sklearn: {{estimator: {{"{linear}": {{C: 2}}}}, features: 30, classes: [0, 1]}}}}',
    )
    settings = load(text).task_runner.settings
    assert settings["features"] == 30 and settings["classes"] == [0, 1]
    assert settings["estimator"]["settings"]["C"] == 2.0  # type: ignore[index,call-overload]
    text = MINIMAL.replace(
        '{torch: {model: "src.model:Net", loss: cross_entropy, optimizer: sgd}}',
        '{numpy: {train: "src.numeric:train", shapes: {w: [3, 2]}, settings: {lr: 1}}}',
    )
    plan = load(text + "tasks: [train]\n")
    assert plan.task_runner.settings["shapes"] == {"w": [3, 2]}
    assert plan.task_runner.settings["validate"] is None
    assert Plan.model_validate(canonical(plan)) == plan
    assert [code for code, _, _ in refused(load, text)] == ["P15"]  # no function to validate


def test_groups_of_parameters_take_the_optimizers_settings(load: Load) -> None:
    runner = "optimizer: sgd, param_groups: [{match: 'head.*', lr: 1}]"
    plan = load(MINIMAL.replace("optimizer: sgd", runner))
    assert plan.task_runner.settings["param_groups"] == [{"match": "head.*", "lr": 1.0}]
    runner = "optimizer: sgd, param_groups: [{match: 'head.*', betas: [0, 0]}]"
    assert refused(load, MINIMAL.replace("optimizer: sgd", runner))[0][0] == "P01"


# -- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("rounds=3", ("rounds",), 3),
        ("strategy=fedavgm", ("strategy", "name"), "fedavgm"),
        ("strategy.fedadam.lr=1", ("strategy", "settings", "lr"), 1.0),
        ("task_runner.torch.optimizer.adam.lr=1", "lr", 1.0),
        ("task_runner.optimizer.lr=1", "lr", 1.0),
        ("data_loader.batch_size=8", ("data_loader", "settings", "batch_size"), 8),
        ("collaborators=[a, b]", ("collaborators",), ["a", "b"]),
        ("cohort={quorum: 1, deadline: 1h}", ("cohort", "quorum"), 1),
        ("best=null", ("best",), None),
    ],
)
def test_an_override_sets_its_key(
    load: Load, plan_text: str, override: str, path: tuple[str, ...] | str, value: object
) -> None:
    if path == "lr":
        path = ("task_runner", "settings", "optimizer", "settings", "lr")
    found = load(plan_text, override).model_dump(mode="json")
    for step in path:
        found = found[step]
    assert found == value


def test_an_override_keeps_what_it_does_not_name(load: Load, plan_text: str) -> None:
    plan = load(plan_text, "task_runner.epochs=9", "cohort.fraction=0.5", "strategy=fedadam")
    assert plan.task_runner.settings["epochs"] == 9
    assert plan.task_runner.settings["model"] == load(plan_text).task_runner.settings["model"]
    assert plan.cohort.deadline == 600.0


@pytest.mark.parametrize(
    ("override", "code", "remedy"),
    [
        ("rounds", "P17", "expected key.path=value"),
        ("=3", "P17", "expected key.path=value"),
        ("rounds=ten", "P07", "a whole number, got 'ten'"),
        ("ronds=3", "P01", "did you mean 'rounds'"),
        ("task_runner.optimizer.lr=0", "P08", "> 0"),
        ("name=no", "P05", "in quotes"),
        ("collaborators=[a", "P02", "expected YAML"),
        ("data_loader.batch_sise=8", "P01", "did you mean 'batch_size'"),
    ],
)
def test_a_bad_override_is_named(
    load: Load, plan_text: str, override: str, code: str, remedy: str
) -> None:
    found = refused(load, plan_text, override)
    assert [(c, where) for c, where, _ in found] == [(code, f"-s {override}")]
    assert remedy in found[0][2]


# -- extends ----------------------------------------------------------------------------------


def test_a_plan_extends_another_and_its_own_values_win(load: Load, workspace: Path) -> None:
    (workspace / "plan" / "base.yaml").write_text(
        "rounds: 99\nseed: 5\nstrategy: {fedadam: {lr: 0.5, tau: 0.1}}\n"
    )
    plan = load(MINIMAL + "extends: base.yaml\nstrategy: {fedadam: {tau: 0.2}}\n")
    assert (plan.rounds, plan.seed) == (1, 5)
    assert plan.strategy.settings == {"lr": 0.5, "beta1": 0.9, "beta2": 0.99, "tau": 0.2}
    assert load(MINIMAL + "extends: base.yaml\nstrategy: fedavg\n").strategy.settings == {}


def test_a_problem_points_into_the_file_that_the_value_came_from(
    load: Load, workspace: Path
) -> None:
    (workspace / "plan" / "base.yaml").write_text("seed: 5\nstrategy: {fedadam: {lr: fast}}\n")
    found = refused(load, MINIMAL + "extends: base.yaml\n")
    assert [(code, where) for code, where, _ in found] == [("P07", "plan/base.yaml:2:26")]


def test_plans_that_extend_each_other_in_a_circle_are_refused(load: Load, workspace: Path) -> None:
    (workspace / "plan" / "base.yaml").write_text("extends: plan.yaml\n")
    found = refused(load, MINIMAL + "extends: base.yaml\n")
    assert found[0][:2] == ("P16", "plan/base.yaml:1:10")
    assert "plan.yaml -> base.yaml" in found[0][2]


@pytest.mark.parametrize("name", sorted(ready_plans()))
def test_ready_plan_can_be_extended(load: Load, name: str) -> None:
    plain = load(MINIMAL)
    assert canonical(load(MINIMAL + f"extends: {name}\n")) != canonical(plain)


def test_there_are_ready_plans() -> None:
    assert {"fedadam", "fedavgm", "fedyogi", "fedadagrad", "audit"} <= ready_plans().keys()


# -- the code that a plan names ---------------------------------------------------------------


CODE = """
from dataclasses import dataclass
from src.model import Net as Other
import functools
def plain(classes, width=3): ...
def anything(**settings): ...
def only(classes, /, *, width: "int"): ...
@functools.cache
def decorated(): ...
class Base:
    def __init__(self, classes: int | None = None, names: list[str] = ()): ...
class Child(Base): ...
class Foreign(functools.partial): ...
@dataclass
class Data:
    classes: int
try:
    def tried(classes): ...
except ImportError: ...
made = functools.partial(plain)
"""


@pytest.mark.parametrize(
    ("reference", "settings", "wanted"),
    [
        ("plain", "{classes: 3}", ""),
        ("plain", "{}", "plain needs classes"),
        ("plain", "{classes: 1, depth: 2}", "has no argument depth"),
        ("anything", "{classes: 1, depth: 2}", ""),
        ("only", "{classes: 1, width: 2}", "has no argument classes"),
        ("only", "{width: 2}", "only needs classes"),
        ("decorated", "{x: 1}", ""),
        ("Child", "{classes: null, names: [a]}", ""),
        ("Child", "{classes: 1.5}", "expected int or None, got 1.5"),
        ("Child", "{classes: true}", "expected int or None, got true"),
        ("Child", "{names: a}", "expected list, got 'a'"),
        ("Foreign", "{x: 1}", ""),
        ("Data", "{classes: 1}", ""),
        ("tried", "{classes: 1}", ""),
        ("tried", "{}", "tried needs classes"),
        ("made", "{x: 1}", ""),
        ("Other", "{x: 1}", "has no argument x"),
        ("Other", "{classes: 1}", ""),
        ("functools", "{}", ""),
        ("Gone", "{}", "src/code.py has no Gone"),
    ],
)
def test_settings_are_held_against_the_definition(
    load: Load, workspace: Path, reference: str, settings: str, wanted: str
) -> None:
    (workspace / "src" / "code.py").write_text(CODE)
    text = MINIMAL.replace('"src.model:Net"', f'{{"src.code:{reference}": {settings}}}')
    if not wanted:
        assert load(text).task_runner.settings["model"]
        return
    assert any(wanted in message for _, _, message in refused(load, text))


def test_code_in_a_package_is_found(load: Load, workspace: Path) -> None:
    (workspace / "src" / "nets").mkdir()
    (workspace / "src" / "nets" / "__init__.py").write_text("from src.model import Net\n")
    (workspace / "src" / "nets" / "deep.py").write_text("def Net(): ...\n")
    load(MINIMAL.replace("src.model:Net", "src.nets:Net"))
    load(MINIMAL.replace("src.model:Net", "src.nets.deep:Net"))


def test_code_that_imports_itself_ends(load: Load, workspace: Path) -> None:
    (workspace / "src" / "loop.py").write_text("from src.loop import Net\n")
    load(MINIMAL.replace("src.model:Net", "src.loop:Net"))


# -- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xfe\x00", "P02"),
        (b"a: \x00", "P02"),
        (b'name: "\\U00110000"', "P02"),
        (b'name: "\\ud800"', "P04"),
        (b'name: "\\0"', "P04"),
        (b"? [a]\n: b", "P04"),
        (b"{" * 5000, "P04"),
        (b"[" * 100_000, "P04"),
        (b"a: [" + b"1," * 50_000 + b"]", "P04"),
        (b"#" * 300_000, "P04"),
        (b"rounds: " + b"9" * 5000, "P08"),
        (b"rounds: " + b"9" * 5000 + b".0", "P08"),
        (b"%YAML 3.0\n---\na: b", "P02"),
        (b"a: b\n...\nc: d", "P02"),
        (b"- - - a", "P07"),
    ],
)
def test_hostile_text_is_refused(load: Load, data: bytes, code: str) -> None:
    with pytest.raises(PlanError) as caught:
        load(data)
    assert code in {problem.code for problem in caught.value.problems}
    str(caught.value).encode()


def test_a_missing_file_is_a_plan_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(tmp_path / "plan" / "plan.yaml")
    assert [(p.code, p.where) for p in caught.value.problems] == [("P16", "plan/plan.yaml")]
    with pytest.raises(PlanError):
        load_plan(tmp_path)
