"""What OpenFL's own templates have and our example workspaces had not: one trait at a time."""

import re
import sys
from pathlib import Path

import pytest

from openfed.errors import PlanError
from openfed.migrate.translate import DROPPED, KEPT, NEAR, TODO, UNKNOWN, Row
from openfed.migrate.write import import_openfl
from openfed.plan.load import load_plan

PLAN = "plan/plan.yaml"
TASKS = (
    "tasks : [score_global, fit, score_local]",
    "tasks : [aggregated_model_validation, train, locally_tuned_model_validation]",
)
OPENFLS_TASKS = [("plan/defaults/tasks.yaml", "plan/defaults/tasks_torch.yaml"), TASKS]
SHAPE = (
    "        self.X_valid, self.y_valid = points[60:], labels[60:]\n",
    "        self.X_valid, self.y_valid = points[60:], labels[60:]\n\n"
    "    def get_feature_shape(self):\n        return [4]\n",
)


def empty(test: str) -> dict[str, list[tuple[str, str]]]:
    """Changes to `defaults`: its loader returns before it has data where `test` is so."""
    returns = ("        draw = ", f"        if {test}:\n            return\n        draw = ")
    return {"src/loader.py": [returns, SHAPE]}


def rows(made) -> dict[str, Row]:
    return {row.key: row for row in made.rows}


def refused(root: Path, new: Path) -> list[tuple[str, str]]:
    with pytest.raises(PlanError) as caught:
        import_openfl(root, new)
    assert not new.exists() and [path.name for path in new.parent.iterdir()] == ["old"]
    return [(problem.code, str(problem)) for problem in caught.value.problems]


# -- a first model without data -------------------------------------------------------------------


@pytest.mark.parametrize("test", ["data_path is None", "None is data_path", "not data_path"])
def test_a_loader_that_can_be_made_without_data_is_made_so_for_the_first_model(openfl, new, test):
    made = import_openfl(openfl("defaults", empty(test)), new)
    settings = load_plan(new / PLAN).task_runner.settings
    assert settings["empty_loader"] == {
        "loader": "src.loader:Blobs",
        "settings": {"batch_size": 16},
    }
    assert rows(made)["src.loader:Blobs"].verdict == KEPT
    assert not [row for row in made.rows if row.verdict == TODO and "data_facts" in row.says]


def test_a_loader_that_only_gets_none_by_default_is_not_made_without_data(openfl, new):
    changes = {"src/loader.py": [("data_path, batch_size", "data_path=None, batch_size=4")]}
    made = import_openfl(openfl("defaults", changes), new)
    assert "empty_loader" not in load_plan(new / PLAN).task_runner.settings
    assert rows(made)["src.net:Net"].verdict == TODO


# -- defaults of OpenFL's own ---------------------------------------------------------------------


def test_of_openfls_own_tasks_the_method_is_called_that_the_class_defines(openfl, new):
    made = import_openfl(openfl("defaults", {PLAN: OPENFLS_TASKS}), new)
    calls = load_plan(new / PLAN).task_runner.settings["calls"]
    assert calls["validate"]["function"] == calls["validate_tuned"]["function"] == "validate"
    assert calls["train"]["function"] == "train_task"
    assert rows(made)["tasks.aggregated_model_validation.function"].verdict == NEAR


@pytest.mark.parametrize("newer", ["validate_", "validate_task"])
def test_a_class_that_has_the_newer_method_too_is_called_by_that(openfl, new, newer):
    also = (
        "    def reset_opt_vars",
        f"    def {newer}(self, x):\n        pass\n\n    def reset_opt_vars",
    )
    import_openfl(openfl("defaults", {PLAN: OPENFLS_TASKS, "src/net.py": [also]}), new)
    calls = load_plan(new / PLAN).task_runner.settings["calls"]
    assert calls["validate"]["function"] == "validate_task"


def test_tasks_that_the_plan_says_itself_are_called_as_it_says(openfl, new):
    changes = {"plan/defaults/tasks.yaml": [("function : validate", "function : validate_task")]}
    import_openfl(openfl("defaults", changes), new)
    assert load_plan(new / PLAN).task_runner.settings["calls"]["validate"]["function"] == (
        "validate_task"
    )


def test_a_file_below_the_defaults_is_not_taken_for_its_namesake(openfl, new):
    own = "plan/defaults/assigner.yaml"
    changes = {PLAN: [(own, "plan/defaults/other/assigner.yaml")]}
    ((code, told),) = refused(openfl("digits", changes), new)
    assert code == "U51" and "other/assigner.yaml" in told


def test_an_evaluation_alone_is_refused_for_what_it_is(openfl, new):
    changes = {PLAN: [("plan/defaults/assigner", "plan/defaults/federated-evaluation/assigner")]}
    ((code, told),) = refused(openfl("digits", changes), new)
    assert code == "U54" and "nothing trains" in told


def selecting(name: str) -> dict[str, list[tuple[str, str]]]:
    old = "  defaults : plan/defaults/assigner.yaml\n"
    new = f"{old}  settings :\n    selected_task_group : {name}\n"
    return {PLAN: [(old, new)]}


def test_of_the_task_groups_the_selected_one_counts(openfl, new):
    ((code, told),) = refused(openfl("digits", selecting("evaluation")), new)
    assert code == "U54" and "nothing trains" in told


def test_a_selected_group_that_is_not_there_is_refused_with_those_that_are(openfl, new):
    ((code, told),) = refused(openfl("digits", selecting("tuning")), new)
    assert code == "U54" and "(learning, evaluation)" in told and "tuning" in told


def test_the_selected_group_is_that_of_all_sites_and_the_others_are_named(openfl, new):
    said = rows(import_openfl(openfl("digits", selecting("learning")), new))
    assert load_plan(new / PLAN).cohort.fraction == 1.0
    assert said["assigner.settings.selected_task_group"].verdict == KEPT
    assert said["assigner.settings.task_groups.evaluation"].verdict == DROPPED


def test_task_names_that_are_no_text_do_no_harm(openfl, new):
    groups = "[{name : all, percentage : 1.0, tasks : [train, 1]}]"
    changes = selecting("all")
    changes[PLAN].append(("    selected", f"    task_groups : {groups}\n    selected"))
    ((code, told),) = refused(openfl("digits", changes), new)
    assert code == "U54" and "no task 1" in told


# -- runners of others ----------------------------------------------------------------------------

RUNNER = "from openfl.federated import PyTorchTaskRunner"
BASE = "class DigitsRunner(PyTorchTaskRunner)"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("KerasTaskRunner", "Keras"),
        ("XGBoostTaskRunner", "XGBoost"),
        ("TaskRunner", "no framework"),
    ],
)
def test_of_a_runner_for_another_framework_nothing_else_is_said(openfl, new, name, says):
    changes = {
        "src/taskrunner.py": [
            (RUNNER, f"from openfl.federated import {name}"),
            (BASE, f"class DigitsRunner({name})"),
        ],
        "src/dataloader.py": [
            ("import PyTorchDataLoader", "import KerasDataLoader as PyTorchDataLoader")
        ],
        PLAN: [("tasks_torch", "tasks_keras"), ("rounds_to_train : 4", "rounds_to_train : x")],
    }
    root = openfl("digits", changes)
    (root / "src" / "link.py").symlink_to("/etc/hostname")
    ((code, told),) = refused(root, new)
    assert code == "U52" and says in told and f"({name})" in told


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("openfl.federated.task.runner_gandlf.GaNDLFTaskRunner", "GaNDLF"),
        ("openfl.federated.task.FlowerTaskRunner", "Flower"),
    ],
)
def test_a_runner_of_openfls_package_is_refused_with_the_reason(openfl, new, template, says):
    changes = {PLAN: [("src.taskrunner.DigitsRunner", template)]}
    ((code, told),) = refused(openfl("digits", changes), new)
    assert code == "U52" and f"is a task runner for {says}" in told


def test_a_base_that_the_workspace_brings_along_is_known_by_its_name(openfl, new):
    name = "FederatedAnalyticsTaskRunner"
    changes = [(RUNNER, f"from src.base import {name}"), (BASE, f"class DigitsRunner({name})")]
    root = openfl("digits", {"src/taskrunner.py": changes})
    text = f"from openfl.federated.task.runner import TaskRunner\nclass {name}(TaskRunner): pass\n"
    (root / "src" / "base.py").write_text(text)
    ((code, told),) = refused(root, new)
    assert code == "U52" and "federated analytics" in told


def test_a_connector_to_another_framework_is_named(openfl, new):
    own = "connector :\n  defaults : plan/defaults/connector_flower.yaml\n"
    own += "  template : openfl.component.ConnectorFlower\n\ncollaborator :"
    ((code, told),) = refused(openfl("digits", {PLAN: [("collaborator :", own)]}), new)
    assert code == "U52" and "openfl.component.ConnectorFlower" in told


def test_of_a_workflow_nothing_else_is_said_though_its_data_is_written_in_another_way(openfl, new):
    flow = "federated_flow :\n  template : src.flow.Flow\n\ncollaborator :"
    root = openfl("digits", {PLAN: [("collaborator :", flow)]})
    (root / "plan" / "data.yaml").write_text("one:\n  private_attributes: src.data.one\n\ntwo:\n")
    ((code, told),) = refused(root, new)
    assert code == "U52" and "Workflow API" in told


def test_of_data_that_is_no_list_of_paths_every_line_is_said_and_no_more(openfl, new):
    root = openfl()
    (root / "plan" / "data.yaml").write_text("one: 1\ntwo: 2\n")
    (root / "plan" / "cols.yaml").write_text("collaborators:\n")
    assert [code for code, _ in refused(root, new)] == ["U51", "U51"]


@pytest.mark.parametrize("name", ["state_dict", "load_state_dict", "get_tensor_dict"])
def test_a_runner_that_decides_itself_what_travels_is_refused_with_the_line(openfl, new, name):
    own = f"    def {name}(self, *given):\n        return {{}}\n\n    def forward"
    root = openfl("digits", {"src/taskrunner.py": [("    def forward", own)]})
    ((code, told),) = refused(root, new)
    line = (root / "src" / "taskrunner.py").read_text().splitlines().index(own.split("\n")[0]) + 1
    assert code == "U55" and told.startswith(f"src/taskrunner.py:{line}:") and name in told


# -- nothing is left out in silence ---------------------------------------------------------------


def test_methods_that_openfed_never_calls_are_named(openfl, new):
    own = "    def save_native(self, path):\n        pass\n\n    def forward"
    made = import_openfl(openfl("digits", {"src/taskrunner.py": [("    def forward", own)]}), new)
    row = rows(made)["src.taskrunner:DigitsRunner"]
    assert (row.found, row.verdict) == ("save_native", DROPPED)


@pytest.mark.parametrize(
    ("policy", "verdict", "setting"),
    [
        ("WaitForAllPolicy", KEPT, None),
        ("aggregator.straggler_handling.PercentagePolicy", TODO, "percent_collaborators_needed"),
        ("CutoffTimePolicy", KEPT, "minimum_reporting"),
    ],
)
def test_a_policy_for_stragglers_is_in_the_report_with_its_settings(
    openfl, new, policy, verdict, setting
):
    own = f"straggler_handling_policy :\n  template : openfl.component.{policy}\n"
    own += f"  settings : {{{setting} : 0.5}}\n" if setting else ""
    said = rows(import_openfl(openfl("digits", {PLAN: [("tasks :", f"{own}\ntasks :")]}), new))
    assert said["straggler_handling_policy"].verdict == verdict
    assert setting is None or f"straggler_handling_policy.settings.{setting}" in said
    assert load_plan(new / PLAN).cohort.deadline is None


def test_a_cut_off_that_is_no_time_is_refused(openfl, new):
    changes = {PLAN: [("straggler_cutoff_time : 90", "straggler_cutoff_time : soon")]}
    ((code, told),) = refused(openfl("defaults", changes), new)
    assert code == "U51" and "straggler_cutoff_time" in told


def test_settings_of_the_compression_are_in_the_report_used_or_not(openfl, new):
    changes = {PLAN: [("p_sparsity : 0.2", "p_sparsity : 0.2\n    n_clusters : 6")]}
    said = rows(import_openfl(openfl("defaults", changes), new))
    assert said["compression_pipeline.settings.p_sparsity"].verdict == NEAR
    assert said["compression_pipeline.settings.n_clusters"].verdict == UNKNOWN


@pytest.mark.parametrize("section", ["data_loader", "task_runner", "compression_pipeline"])
def test_a_key_beside_the_settings_is_named(openfl, new, section):
    changes = {PLAN: [(f"{section} :\n", f"{section} :\n  oddity : 1\n")]}
    said = rows(import_openfl(openfl("digits", changes), new))
    assert said[f"{section}.oddity"].verdict == UNKNOWN


# -- requirements ---------------------------------------------------------------------------------


def required(root: Path, new: Path, text: str) -> tuple[list[str], list[Row]]:
    (root / "requirements.txt").write_text(text)
    made = import_openfl(root, new)
    lines = (new / "requirements.txt").read_text().splitlines()
    return lines, [row for row in made.rows if row.key == "requirements.txt"]


def test_a_package_that_came_with_openfl_is_required_from_now_on(openfl, new):
    more = "import importlib.util\nfrom tqdm import tqdm\nimport pandas.api\nimport sklearn"
    root = openfl("digits", {"src/shards.py": [("import importlib.util", more)]})
    lines, said = required(root, new, "torch>=2.6\nPandas==2.2.0 # as before\n")
    assert lines == ["torch>=2.6", "Pandas==2.2.0 # as before", "scikit-learn", "tqdm"]
    added = {row.found: row.says for row in said if row.verdict == KEPT}
    assert set(added) == {"scikit-learn", "tqdm"} and "src/shards.py" in added["tqdm"]


def test_a_package_that_is_not_installed_here_is_to_do_and_nothing_is_imported(openfl, new):
    more = (
        "import importlib.util\nfrom absent_package.sub import x\nimport helper\nimport antigravity"
    )
    root = openfl("digits", {"src/shards.py": [("import importlib.util", more)]})
    (root / "helper.py").write_text("")
    _, said = required(root, new, "torch\n")
    assert [(row.found, row.verdict) for row in said] == [("absent_package", TODO)]
    assert "src/shards.py" in said[0].says and "antigravity" not in sys.modules


def test_a_name_that_openfl_wrote_for_the_aggregator_is_to_do(openfl, new):
    row = rows(import_openfl(openfl("defaults"), new))["network.settings.agg_addr"]
    assert row.verdict == TODO and "[localhost]" in row.says


def test_other_files_beside_the_plan_are_named(openfl, new):
    root = openfl("digits")
    (root / "plan" / "plan_old.yaml").write_text("")
    assert rows(import_openfl(root, new))["plan/plan_old.yaml"].verdict == DROPPED


@pytest.mark.parametrize(
    ("line", "old"),
    [
        ("torch==1.13.1", True),
        ("torch==2.3.1 ", True),
        ("torch==2.6.0", False),
        ("torch==2.10.0", False),
        ("torch", False),
        ("torchvision==0.14.1", False),
        ("torch==1.13.1+cpu", True),
        ("numpy==1.22.2", True),
        ("numpy>=1.22.2", False),
    ],
)
def test_a_pin_to_what_openfed_cannot_run_with_is_to_do(openfl, new, line, old):
    lines, said = required(openfl(), new, f"{line}\n")
    assert lines == [line.rstrip()] or lines == [line]
    assert [row.verdict for row in said] == ([TODO] if old else [])


# -- the report -----------------------------------------------------------------------------------


def test_what_is_to_do_stands_first_in_the_report(openfl, new):
    made = import_openfl(openfl("defaults"), new)
    text = (new / "IMPORT.md").read_text()
    head = text[: text.index("## Key by key")]
    for row in made.rows:
        assert (row.verdict == TODO) == bool(re.search(rf"- {re.escape(row.key)}: ", head)), row
