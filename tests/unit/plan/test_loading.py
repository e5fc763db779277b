from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.errors import PlanError
from openfed.plan.chains import advice
from openfed.plan.load import load_plan, ready_plans
from openfed.plan.schema import OPENFL, KeptRounds, Plan, canonical

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
    up, down = plan.compression_pipeline.uplink, plan.compression_pipeline.downlink
    assert [codec.name for codec in up.codecs] == ["quantize", "zstd"]
    assert up.codecs[0].settings == {"bits": 8, "rounding": None, "group": 1024}
    assert up.feedback and not down.feedback
    assert [[*rule] for rule in up.except_] == [["*.bias"]] and down.except_ == ()
    assert [codec.settings for codec in down.codecs] == [{"level": 1}]


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


# -- compression ------------------------------------------------------------------------------


def chains(plan: Plan) -> list[list[str]]:
    pipeline = plan.compression_pipeline
    ways = (pipeline.uplink, pipeline.downlink)
    return [[codec.name for codec in each] for way in ways for each in way.chains().values()]


def test_nothing_is_compressed_unless_the_plan_says_so(load: Load) -> None:
    pipeline = load(MINIMAL).compression_pipeline
    for way in (pipeline.uplink, pipeline.downlink):
        assert (way.codecs, way.feedback, way.except_) == ((), False, ())
    assert load(MINIMAL + "compression_pipeline: {uplink: []}\n").compression_pipeline == pipeline


def test_a_list_of_codecs_is_short_for_a_direction(load: Load) -> None:
    short = load(MINIMAL + "compression_pipeline: {uplink: [bf16, {zstd: {level: 3}}]}\n")
    codecs = "[bf16, {template: zstd, settings: {level: 3}}]"
    whole = f"{{codecs: {codecs}, feedback: false, except: []}}"
    assert load(MINIMAL + f"compression_pipeline: {{uplink: {whole}}}\n") == short
    assert [codec.settings for codec in short.compression_pipeline.uplink.codecs] == [
        {},
        {"level": 3},
    ]


def test_the_first_exception_that_matches_has_the_chain(load: Load) -> None:
    rules = '[{"*.bias": []}, {"head.*": [bf16]}, {"[ab]?": [fp16]}]'
    text = f"compression_pipeline: {{downlink: {{codecs: [zstd], except: {rules}}}}}\n"
    down = load(MINIMAL + text).compression_pipeline.downlink
    names = ("head.bias", "head.weight", "b1", "B1", "ab1", "stem.weight")
    assert [[codec.name for codec in down.chain(name)] for name in names] == [
        [],
        ["bf16"],
        ["fp16"],
        ["zstd"],
        ["zstd"],
        ["zstd"],
    ]
    assert down.place("head.bias") == ("except", 0, "*.bias")
    assert down.place("stem.weight") == ("codecs",)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("uplink=[bf16]", [["bf16"], ["zstd"], ["zstd"]]),
        ("uplink.codecs=[bf16]", [["bf16"], ["zstd"], ["zstd"]]),
        ("uplink.except=[]", [["quantize", "zstd"], ["zstd"]]),
        ("downlink=[]", [["quantize", "zstd"], ["zstd"], []]),
        ("downlink={codecs: [{template: bf16}, zstd]}", [["quantize", "zstd"], ["zstd"],
                                                         ["bf16", "zstd"]]),
    ],
)  # fmt: skip
def test_an_override_of_a_direction_keeps_what_it_does_not_name(
    load: Load, plan_text: str, override: str, wanted: list[list[str]]
) -> None:
    plan = load(plan_text, f"compression_pipeline.{override}")
    assert chains(plan) == wanted
    assert plan.compression_pipeline.uplink.feedback


def test_quantisers_say_how_much_they_lose(load: Load) -> None:
    chain = "[rotate, {quantize: {bits: 4}}, entropy]"
    codecs = load(MINIMAL + f"compression_pipeline: {{uplink: {chain}}}\n")
    _, quantize, _ = codecs.compression_pipeline.uplink.codecs
    assert quantize.settings == {"bits": 4, "rounding": None, "group": 1024}


@pytest.mark.parametrize(
    "chain",
    [
        "[]",
        "[zstd]",
        "[{topk: {fraction: 0.01}}, zstd]",
        "[{topk: {fraction: 0.01}}, {quantize: {bits: 8}}, zstd]",
        "[{randomk: {fraction: 0.01}}, rotate, {quantize: {bits: 1}}]",
        "[rotate, {lloyd: {bits: 1}}]",
        "[rotate, {lloyd: {bits: 2}}, entropy]",
        "[rotate, {grid: {step: 4}}, entropy]",
        "[rotate, {grid: {step: 0.05}}, zstd]",
        "[{kmeans: {centers: 256}}, entropy]",
        "[{ternary: {fraction: 1}}]",
        "[fp16, zstd]",
        "[bf16]",
        "[{quantize: {bits: 8, rounding: stochastic, group: 16}}]",
    ],
)
def test_a_chain_that_makes_sense_is_taken_both_ways(load: Load, chain: str) -> None:
    plan = load(MINIMAL + f"compression_pipeline: {{uplink: {chain}, downlink: {chain}}}\n")
    assert Plan.model_validate(canonical(plan)) == plan
    assert chains(plan)[0] == chains(plan)[1]


@pytest.mark.parametrize("name", sorted(OPENFL))
def test_every_pipeline_of_openfl_is_answered_with_what_to_write(load: Load, name: str) -> None:
    text = MINIMAL + f"compression_pipeline: {{template: openfl.pipelines.{name}, settings: {{}}}}"
    ((code, where, message),) = refused(load, text)
    assert (code, where) == ("P07", "plan/plan.yaml:6:1")
    _, _, instead = message.partition("write ")
    if instead:
        load(MINIMAL + f"compression_pipeline: {{{instead}}}\n")
    else:
        assert "remove it" in message


def test_advice_is_given_where_not_every_site_is_asked(load: Load, plan_text: str) -> None:
    some, lossy = "cohort.fraction=0.5", "compression_pipeline.downlink=[bf16]"
    assert list(advice(load(plan_text))) == []
    assert list(advice(load(plan_text, lossy))) == []
    (stale,) = advice(load(plan_text, some))
    assert "uplink.feedback" in stale
    assert "downlink is lossy" in next(advice(load(plan_text, some, lossy)))
    assert list(advice(load(MINIMAL, some))) == []


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
    assert {"lossless", "compressed_8x", "compressed_30x"} <= ready_plans().keys()


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
