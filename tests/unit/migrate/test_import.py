"""What becomes of an OpenFL workspace, key by key, and what is refused."""

import ast
import hashlib
import os
from pathlib import Path

import pytest

from openfed.cli.main import main
from openfed.codec.advice import idle_stages
from openfed.errors import PlanError, UsageError
from openfed.migrate.code import ADAPTER, offered
from openfed.migrate.translate import DROPPED, KEPT, NEAR, TODO, UNKNOWN
from openfed.migrate.write import federation_name, import_openfl, yaml_text
from openfed.plan.load import load_plan
from openfed.plan.local import read_local
from openfed.plan.source import parse, plain

PLAN = "plan/plan.yaml"


def state(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def verdicts(made) -> dict[str, str]:
    return {row.key: row.verdict for row in made.rows}


def refused(root: Path, new: Path) -> list[tuple[str, str]]:
    """The codes and lines of what an import says; nothing may have been written."""
    before = state(root.parents[1])
    with pytest.raises(PlanError) as caught:
        import_openfl(root, new)
    assert caught.value.exit_code == 2
    assert state(root.parents[1]) == before and not new.exists()
    assert sorted(path.name for path in new.parent.iterdir()) == ["old"]
    return [(problem.code, str(problem)) for problem in caught.value.problems]


# -- what it becomes ------------------------------------------------------------------------------


def test_a_workspace_whose_defaults_are_openfls_own_becomes_a_plan_that_passes(openfl, new):
    made = import_openfl(openfl(), new)
    plan = load_plan(new / PLAN)
    assert (plan.federation, plan.rounds, plan.collaborators) == ("digits", 4, ("one", "two"))
    assert [task.name for task in plan.tasks] == ["validate", "train", "validate_tuned"]
    assert plan.task_runner.settings["optimizer_state"] == "reset"
    assert plan.task_runner.settings["calls"]["train"]["kwargs"]["epochs"] == 1
    assert plan.task_runner.settings["settings"] == {"width": 32, "lr": 0.01}
    assert (plan.best.metric, plan.best.mode) == ("accuracy", "max")
    assert plan.aggregator.listen == "127.0.0.1:0" and plan.aggregator.advertise == ("localhost",)
    assert dict(read_local(new / "local.yaml", plan.collaborators).sites) == {
        "one": "1",
        "two": "2",
    }
    said = {row.key: row for row in made.rows}
    assert "OpenFL's own plan/defaults/tasks_torch.yaml" in said["tasks.train"].found
    assert "OpenFL's own" not in said["aggregator.settings.rounds_to_train"].found


def test_defaults_that_are_there_are_read_and_what_the_plan_says_wins_over_them(openfl, new):
    root = openfl("defaults")
    made = import_openfl(root, new)
    plan = load_plan(new / PLAN)
    assert plan.rounds == 3
    assert [task.name for task in plan.tasks] == ["validate", "train", "validate_tuned"]
    assert plan.task_runner.settings["calls"]["train"] == {
        "function": "train_batches",
        "kwargs": {"epochs": 2, "metrics": ["loss"]},
    }
    assert plan.task_runner.settings["optimizer_state"] == "average"
    assert plan.strategy.name == "fedadam" and plan.strategy.settings["lr"] == 0.05
    assert plan.strategy.settings["beta2"] == 0.999
    assert plan.compression_pipeline.uplink.chain("w")[0].settings == {"fraction": 0.2}
    assert (plan.cohort.deadline, plan.cohort.quorum) == (90.0, 1)
    assert plan.aggregator.listen == "0.0.0.0:50444"
    assert plan.aggregator.advertise == ("fl.example.org",)
    assert plan.metrics == ("src.openfl_metrics:acc",)
    local = read_local(new / "local.yaml", plan.collaborators)
    assert local.sites["north"] == str((root / "data" / "north").resolve())
    said = verdicts(made)
    assert said["tasks.fit.aggregation_type"] == said["compression_pipeline"] == NEAR
    assert said["src.net:Net"] == TODO


def test_every_key_of_the_plan_is_in_the_report_and_an_unknown_one_is_named(openfl, new):
    made = import_openfl(openfl(), new)
    said = verdicts(made)
    tree, _ = parse((new.parent / "old" / "digits" / PLAN).read_bytes(), "p")
    for name, section in plain(tree).items():
        for key in section.get("settings") or {}:
            assert f"{name}.settings.{key}" in said
    assert said["aggregator.settings.seance"] == UNKNOWN
    assert said["aggregator.settings.write_logs"] == DROPPED
    assert said["collaborator.settings.use_delta_updates"] == DROPPED
    assert said["requirements.txt"] == DROPPED
    assert "openfl" not in (new / "requirements.txt").read_text()
    report = (new / "IMPORT.md").read_text()
    assert all(f"| `{row.key}` |" in report for row in made.rows)


def test_the_code_is_taken_over_as_it_is_and_the_old_workspace_stays_as_it_was(openfl, new):
    root = openfl()
    (root / "src" / "__pycache__").mkdir()
    (root / "src" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (root / "save").mkdir()
    before = state(root)
    made = import_openfl(root, new)
    assert state(root) == before
    for path in (root / "src").glob("*.py"):
        assert (new / "src" / path.name).read_bytes() == path.read_bytes()
    assert (new / "src" / "openfl_adapter.py").read_bytes() == ADAPTER.read_bytes()
    assert not (new / "src" / "__pycache__").exists() and not (new / "save").exists()
    assert verdicts(made)["save"] == DROPPED
    assert {path.name for path in new.parent.iterdir()} == {"old", "new"}
    assert set(made.files) == {path for path in new.rglob("*") if path.is_file()}


def test_missing_encryption_is_said_loudly(openfl, new):
    changes = {PLAN: [("    use_tls : True", "    tls : False\n    disable_client_auth : True")]}
    rows = {row.key: row.says for row in import_openfl(openfl("digits", changes), new).rows}
    assert "WITHOUT ENCRYPTION" in rows["network.settings.tls"]
    assert "ANYBODY" in rows["network.settings.disable_client_auth"]


@pytest.mark.parametrize(
    ("template", "settings", "uplink"),
    [
        ("NoCompressionPipeline", "{}", []),
        ("RandomShiftPipeline", "{}", []),
        ("KCPipeline", "{n_clusters: 7}", ["kmeans", "zstd"]),
        ("SKCPipeline", "{p_sparsity: 0.3, n_clusters: 6}", ["topk", "kmeans", "zstd"]),
        ("STCPipeline", "{}", ["ternary"]),
        ("EdenPipeline", "{n_bits: 3}", ["rotate", "lloyd"]),
        ("TheirOwn", "{}", []),
    ],
)
def test_compression_becomes_the_nearest_chain_and_none_of_its_stages_is_idle(
    openfl, new, template, settings, uplink
):
    old = "compression_pipeline :\n  defaults : plan/defaults/compression_pipeline.yaml"
    own = f"compression_pipeline :\n  template : openfl.pipelines.{template}\n"
    changes = {PLAN: [(old, f"{own}  settings : {settings}")]}
    import_openfl(openfl("digits", changes), new)
    pipeline = load_plan(new / PLAN).compression_pipeline
    assert [codec.name for codec in pipeline.uplink.codecs] == uplink
    assert not list(idle_stages(pipeline))


@pytest.mark.parametrize(
    ("given", "state"),
    [("RESET", "reset"), ("CONTINUE_LOCAL", "keep"), ("CONTINUE_GLOBAL", "average")],
)
def test_the_treatment_of_the_optimizer_is_kept(openfl, new, given, state):
    root = openfl("digits", {PLAN: [("opt_treatment : RESET", f"opt_treatment : {given}")]})
    import_openfl(root, new)
    assert load_plan(new / PLAN).task_runner.settings["optimizer_state"] == state


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("WeightedAverage", "fedavg"),
        ("Median", "median"),
        ("GeometricMedian", "geometric_median"),
        ("YogiAdaptiveAggregation", "fedyogi"),
        ("AdagradAdaptiveAggregation", "fedadagrad"),
    ],
)
def test_the_aggregation_of_training_becomes_the_strategy(openfl, new, kind, strategy):
    old = "AdamAdaptiveAggregation\n    settings :\n      learning_rate : 0.05"
    root = openfl("defaults", {"plan/defaults/tasks.yaml": [(old, kind)]})
    import_openfl(root, new)
    assert load_plan(new / PLAN).strategy.name == strategy


def test_a_share_of_the_sites_that_trains_becomes_a_fraction_of_the_cohort(openfl, new):
    groups = """assigner :
  template : openfl.component.RandomGroupedAssigner
  settings :
    task_groups :
      - {name : learn, percentage : 0.5, tasks : [aggregated_model_validation, train]}
      - {name : look, percentage : 0.5, tasks : [aggregated_model_validation]}"""
    old = "assigner :\n  defaults : plan/defaults/assigner.yaml"
    made = import_openfl(openfl("digits", {PLAN: [(old, groups)]}), new)
    assert load_plan(new / PLAN).cohort.fraction == 0.5
    assert verdicts(made)["assigner.settings.task_groups.learn"] == NEAR


@pytest.mark.parametrize(
    ("value", "name", "verdict"),
    [
        ('Metric(name="dice", value=0)', "src.openfl_metrics:dice", KEPT),
        ('Metric("f1", 0)', "src.openfl_metrics:site_f1", KEPT),
        ("Metric(name=str(self), value=0)", "src.openfl_metrics:score", NEAR),
        ('Metric("loss", 0)', None, KEPT),
    ],
)
def test_a_metric_keeps_its_name_but_for_one_that_is_no_mean_of_sites(
    openfl, new, value, name, verdict
):
    old = 'Metric(name="accuracy", value=np.array(right / samples))'
    made = import_openfl(openfl("digits", {"src/taskrunner.py": [(old, value)]}), new)
    plan = load_plan(new / PLAN)
    train = "src.openfl_metrics:crossentropy_loss"
    assert plan.metrics == ((name, train) if name else (train,))
    assert plan.best.metric == (name or "loss").rpartition(":")[2]
    assert verdicts(made)["DigitsRunner, metric of validate"] == verdict


def test_sites_are_those_of_data_yaml_where_cols_yaml_names_none(openfl, new):
    root = openfl()
    (root / "plan" / "cols.yaml").write_text("# filled in later\n\ncollaborators:\n\n")
    import_openfl(root, new)
    assert load_plan(new / PLAN).collaborators == ("one", "two")


def test_a_site_without_a_path_is_to_do(openfl, new):
    root = openfl("digits", {"plan/data.yaml": [("two,2\n", "")]})
    assert verdicts(import_openfl(root, new))["plan/data.yaml"] == TODO
    assert "two" not in (new / "local.yaml").read_text()


def test_text_that_yaml_takes_for_something_else_is_quoted():
    value = {"a": {"no": ["yes", "1", "on", "a: b", "- x", "é #", 1e-8, None, True, "0x1", "~"]}}
    tree, found = parse(yaml_text(value).encode(), "x")
    assert not found and plain(tree) == value


@pytest.mark.parametrize(("text", "name"), [("a b.c", "a-b-c"), ("-_é", "federation")])
def test_a_folder_gives_a_name_that_a_federation_can_have(text, name):
    assert federation_name(text) == name


# -- what is refused ------------------------------------------------------------------------------


def keras(old: str) -> list[tuple[str, str]]:
    return [(old, old.replace("PyTorchTaskRunner", "KerasTaskRunner"))]


def test_a_keras_runner_is_refused_with_the_reason(openfl, new):
    changes = keras("from openfl.federated import PyTorchTaskRunner")
    changes += keras("class DigitsRunner(PyTorchTaskRunner)")
    ((code, told),) = refused(openfl("digits", {"src/taskrunner.py": changes}), new)
    assert code == "U52" and "Keras" in told and "task_runner.template" in told
    assert told.startswith("plan/plan.yaml:")


def test_a_runner_whose_base_is_in_another_file_is_followed_there(openfl, new):
    root = openfl(
        "digits",
        {
            "src/taskrunner.py": [
                ("from openfl.federated import PyTorchTaskRunner", "from . import base as b"),
                ("class DigitsRunner(PyTorchTaskRunner)", "class DigitsRunner(b.Base)"),
            ]
        },
    )
    base = root / "src" / "base.py"
    base.write_text("from openfl.federated import PyTorchTaskRunner as P\nclass Base(P): pass\n")
    import_openfl(root, new)
    new2 = new.with_name("new2")
    base.write_text("from openfl.federated import KerasTaskRunner as P\nclass Base(P): pass\n")
    with pytest.raises(PlanError, match="Keras"):
        import_openfl(root, new2)


@pytest.mark.parametrize(
    ("old", "put", "code", "says"),
    [
        ("openfl.component.Aggregator", "openfl.experimental.Aggregator", "U52", "Workflow API"),
        ("src.taskrunner.DigitsRunner", "src.taskrunner.Other", "U52", "PyTorchTaskRunner"),
        ("src.taskrunner.DigitsRunner", "src.missing.Runner", "U55", "src/missing.py"),
        ("src.dataloader.DigitsInMemory", "src.dataloader.Other", "U55", "has no Other"),
        ("openfl.component.Aggregator", "src.own.Mine", "U52", "class of your own"),
        ("rounds_to_train : 4", "rounds_to_train : 0", "U51", "rounds_to_train"),
        ("    rounds_to_train : 4\n", "", "U51", "rounds_to_train"),
        ("opt_treatment : RESET", "opt_treatment : ODD", "U51", "opt_treatment"),
        ("use_tls : True", "agg_addr : not_a_host!", "U51", "not_a_host"),
        ("seance : 12", "secure_aggregation : true", "U54", "secure_aggregation"),
        ("tasks_torch.yaml", "tasks_odd.yaml", "U51", "tasks_odd.yaml"),
        ("tasks_torch.yaml", "../../../../etc/passwd", "U51", "defaults"),
        ("aggregator :\n", "aggregator : [1\n", "P02", "expected YAML"),
        ("  settings :\n    width", "  settings : 3\n  x :\n    width", "U51", "a mapping"),
    ],
)
def test_what_cannot_be_translated_is_refused_and_nothing_is_written(
    openfl, new, old, put, code, says
):
    told = refused(openfl("digits", {PLAN: [(old, put)]}), new)
    assert any(found == code and says in line for found, line in told), told


def test_an_aggregation_that_openfed_does_not_have_is_named(openfl, new):
    kind = "FedCurvWeightedAverage"
    changes = {"plan/defaults/tasks.yaml": [("AdamAdaptiveAggregation", kind)]}
    ((code, told),) = refused(openfl("defaults", changes), new)
    assert code == "U54" and kind in told and told.startswith("plan/defaults/tasks.yaml:")


@pytest.mark.parametrize(
    "groups",
    [
        "[{name: a, collaborators: [north], tasks: [fit]}]",
        "[{name: a, collaborators: [north], tasks: [fit]},"
        " {name: b, collaborators: [south], tasks: [score_global]}]",
        "[{name: a, collaborators: [north, south], tasks: [score_global]}]",
        "[{name: a, collaborators: [north, south], tasks: [fit, other]}]",
        "several",
    ],
)
def test_tasks_that_not_all_sites_have_are_refused(openfl, new, groups):
    old = """
      - name : everyone
        collaborators : [north, south]
        tasks : [score_global, fit, score_local]"""
    told = refused(
        openfl("defaults", {PLAN: [(f"task_groups :{old}", f"task_groups : {groups}")]}), new
    )
    assert {code for code, _ in told} <= {"U54", "U51"}


def test_a_random_group_of_some_sites_alone_is_refused(openfl, new):
    groups = """assigner :
  settings :
    task_groups : [{name : learn, percentage : 0.5, tasks : [train]}]"""
    old = "assigner :\n  defaults : plan/defaults/assigner.yaml"
    ((code, told),) = refused(openfl("digits", {PLAN: [(old, groups)]}), new)
    assert code == "U54" and "0.5" in told


def test_all_problems_are_said_at_once(openfl, new):
    root = openfl(
        "digits",
        {PLAN: [("rounds_to_train : 4", "rounds_to_train : many"), ("RESET", "ODD")]},
    )
    (root / "src" / "link.py").symlink_to("/etc/hostname")
    assert [code for code, _ in refused(root, new)] == ["U56", "U51", "U51"]


@pytest.mark.parametrize("name", ["a b", "aggregator", "x" * 64])
def test_a_collaborator_that_cannot_be_named_so_is_refused(openfl, new, name):
    root = openfl("digits", {"plan/cols.yaml": [("- one", f"- {name}")]})
    assert {code for code, _ in refused(root, new)} == {"U53"}


def test_no_collaborators_at_all_are_refused(openfl, new):
    root = openfl()
    (root / "plan" / "cols.yaml").unlink()
    (root / "plan" / "data.yaml").unlink()
    assert [code for code, _ in refused(root, new)] == ["U53"]


def test_code_that_needs_more_of_openfl_is_named_with_its_line(openfl, new):
    more = "from openfl.utilities.optimizers.torch import FedProxOptimizer\nimport importlib.util"
    root = openfl("digits", {"src/shards.py": [("import importlib.util", more)]})
    ((code, told),) = refused(root, new)
    assert code == "U55" and told.startswith("src/shards.py:3:") and "FedProxOptimizer" in told


def test_code_that_nothing_uses_may_need_what_it_likes(openfl, new):
    root = openfl()
    (root / "src" / "old.py").write_text("from openfl.native import fx\n")
    import_openfl(root, new)


@pytest.mark.parametrize("name", ["openfl_adapter.py", "openfl_metrics.py"])
def test_a_file_of_the_adapters_name_is_refused(openfl, new, name):
    root = openfl()
    (root / "src" / name).write_text("")
    ((code, told),) = refused(root, new)
    assert code == "U56" and name in told


def test_a_pipe_in_src_is_refused_and_not_waited_for(openfl, new):
    root = openfl()
    os.mkfifo(root / "src" / "pipe")
    assert [code for code, _ in refused(root, new)] == ["U56"]


def test_a_translation_that_is_no_plan_is_refused_whole(openfl, new):
    old = 'Metric(name="accuracy"'
    root = openfl("digits", {"src/taskrunner.py": [(old, 'Metric(name="class"')]})
    told = refused(root, new)
    assert told[0][0] == "U57" and len(told) > 1


def test_other_folders_are_no_openfl_workspaces(openfl, new, tmp_path):
    with pytest.raises(UsageError) as caught:
        import_openfl(tmp_path / "nowhere", new)
    assert caught.value.code == "U50"
    root = openfl()
    (root / PLAN).write_text("federation: a\nrounds: 3\n")
    with pytest.raises(UsageError) as caught:
        import_openfl(root, new)
    assert caught.value.code == "U50"


def test_a_folder_with_something_in_it_is_left_alone(openfl, new):
    new.mkdir()
    (new / "mine").write_text("x")
    with pytest.raises(UsageError) as caught:
        import_openfl(openfl(), new)
    assert caught.value.code == "U03" and [path.name for path in new.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(openfl, new):
    new.mkdir()
    import_openfl(openfl(), new)
    assert (new / PLAN).is_file()


# -- the command ----------------------------------------------------------------------------------


def fx(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(list(map(str, words)))
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def test_the_command_prints_the_report_and_the_plan_passes_the_check(
    openfl, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = fx(capsys, "workspace", "import-openfl", openfl())
    assert code == 0
    assert "unknown     aggregator.settings.seance: 12" in out
    assert "digits_openfed: imported from" in out and "plan/plan.yaml" in out
    monkeypatch.chdir(tmp_path / "digits_openfed")
    assert fx(capsys, "plan", "check")[0] == 0


def test_the_command_lists_what_cannot_be_translated_and_ends_with_2(openfl, capsys, new):
    root = openfl("digits", {PLAN: [("rounds_to_train : 4", "rounds_to_train : x")]})
    code, out, err = fx(capsys, "workspace", "import-openfl", root, "--prefix", new)
    assert (code, out) == (2, "") and "U51  aggregator.settings.rounds_to_train" in err


# -- the adapter's own list -----------------------------------------------------------------------


def test_what_the_importer_takes_for_granted_is_what_the_adapter_offers():
    names = {node.name for node in ast.parse(ADAPTER.read_text()).body if hasattr(node, "name")}
    for module, there in offered().items():
        assert all(name in names or name in ("Metric", "TensorKey") for name in there), module
    assert {"PyTorchTaskRunner", "PyTorchDataLoader"} <= offered()["openfl.federated"]
