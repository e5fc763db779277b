"""The table of bad plans: each is answered at once, with the line and what to do."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.errors import PlanError
from openfed.plan.schema import Plan

TORCH = 'task_runner:\n  torch:\n    model: {"src.model:Net": {classes: 10}}\n'
UP, DOWN = "[{quantize: {bits: 8}}, zstd]", "downlink: [zstd]"
WAYS = f'  uplink: {{feedback: true, codecs: {UP}, except: [{{"*.bias": [zstd]}}]}}\n  {DOWN}\n'
PIPELINE = f"\n{WAYS}"
SGD = '{estimator: {"sklearn.linear_model:SGDClassifier": {alpha: 0.1}}, features: 4, '

# (what is wrong, what to replace in the plan, by what, code, line, part of the message)
BAD: tuple[tuple[str, str, str, str, int, str], ...] = (
    # spelling
    ("typo in a key", "rounds: 10", "ronds: 10", "P01", 3, "did you mean 'rounds'?"),
    ("typo below a key", "listen:", "lisen:", "P01", 6, "did you mean 'listen'?"),
    ("typo in a setting", "{lr: 3.0e-3}", "{rl: 0.1}", "P01", 13, "known here: lr, betas"),
    ("typo in a name", "{adam:", "{adm:", "P09", 13, "did you mean 'adam'?"),
    ("unknown strategy", "strategy: fedavg", "strategy: fedsgd", "P09", 20, "fedavg | fedavgm"),
    ("unknown loss", "cross_entropy", "cross_entopy", "P09", 12, "did you mean 'cross_entropy'?"),
    ("unknown runner", "  torch:", "  tourch:", "P09", 10, "did you mean 'torch'?"),
    ("unknown task", "[validate, train,", "[validate, trian,", "P09", 19, "'train'?"),
    ("unknown template", "strategy: fedavg", "strategy: {template: fx}", "P09", 20, "expected a"),
    ("unknown optimizer state", "reset", "resett", "P09", 14, "reset | keep | average"),
    ("unknown weights", "{samples: {cap: 10000}}", "sampels", "P09", 21, "samples | uniform"),
    ("key of the runner on top", "seed: 7", "epochs: 7", "P01", 4, "below task_runner"),
    # methods
    ("a formula for sgd", "strategy: fedavg", "strategy: scaffold", "P25", 13, "not for adam"),
    ("two things kept", "strategy: fedavg", "strategy: ditto", "P25", 24, "remove scope"),
    ("nothing kept to score", "strategy: fedavg", "strategy: fedrecon", "P25", 19, "remove it"),
    # missing
    ("no federation", "federation: consortium\n", "", "P06", 1, "add federation: consortium"),
    ("no rounds", "rounds: 10\n", "", "P06", 1, "add rounds: 10"),
    ("no collaborators", "collaborators: [one, two]\n", "", "P06", 1, "add collaborators:"),
    ("no model", TORCH, "task_runner:\n  torch:\n", "P06", 10, "add model:"),
    ("no patience", "patience: 5, ", "", "P15", 26, "or patience: 5"),
    ("no argument of a class", "{batch_size: 32}", "{}", "P06", 18, "needs batch_size"),
    ("empty file", "*", "", "P02", 1, "got an empty file"),
    ("only a comment", "*", "# nothing\n", "P02", 2, "got an empty file"),
    # types
    ("text for a number", "rounds: 10", "rounds: ten", "P07", 3, "a whole number, got 'ten'"),
    ("quoted number", "rounds: 10", 'rounds: "10"', "P07", 3, "without quotes"),
    ("fraction of a round", "rounds: 10", "rounds: 1.5", "P07", 3, "a whole number, got 1.5"),
    ("1e3 rounds", "rounds: 10", "rounds: 1e3", "P07", 3, "a whole number, got 1000.0"),
    ("truth for a number", "rounds: 10", "rounds: true", "P07", 3, "got true"),
    ("number for a name", "name: digits", "name: 7", "P07", 2, "put it in quotes"),
    ("nothing for a number", "rounds: 10", "rounds:", "P07", 3, "got nothing"),
    ("text for a list", "collaborators: [one, two]", "collaborators: one", "P07", 8, "[one]"),
    ("a list on top", "*", "- a\n", "P07", 1, "expected a mapping"),
    ("text on top", "*", "hello\n", "P07", 1, "expected a mapping"),
    ("list for a mapping", "{metric: accuracy, mode: max}", "[a]", "P07", 25, "a mapping"),
    ("two names of one choice", "strategy: fedavg", "strategy: {a: {}, b: {}}", "P07", 20, "name"),
    ("number for a choice", "strategy: fedavg", "strategy: 3", "P07", 20, "expected a name"),
    ("duration without unit", "deadline: 10m", "deadline: 600", "P07", 22, "as in 600s"),
    ("unknown unit", "deadline: 10m", "deadline: 10min", "P07", 22, "30s, 10m or 2h"),
    ("wrong literal", "{classes: 10}", "{classes: ten}", "P07", 11, "expected int, got 'ten'"),
    ("odd scope", '{"*": global}', '{"*": locale}', "P07", 24, "expected {"),
    ("odd retention", "{updates: none}", "{updates: some}", "P07", 27, "none, all or"),
    # ranges
    ("no rounds at all", "rounds: 10", "rounds: 0", "P08", 3, "expected a number >= 1"),
    ("too many rounds", "rounds: 10", "rounds: 10000000", "P08", 3, "<= 1000000"),
    ("negative rate", "lr: 3.0e-3", "lr: -1", "P08", 13, "expected a number > 0, got -1"),
    ("not a number", "lr: 3.0e-3", "lr: .nan", "P08", 13, "expected a finite number"),
    ("infinite", "lr: 3.0e-3", "lr: .inf", "P08", 13, "expected a finite number"),
    ("overflow", "lr: 3.0e-3", "lr: 1e999", "P08", 13, "expected a finite number"),
    ("seed of 80 bits", "seed: 7", "seed: 1208925819614629174706176", "P08", 4, "64 bits"),
    ("negative seed", "seed: 7", "seed: -7", "P08", 4, "expected a number >= 0"),
    ("fraction of nobody", "fraction: 1.0", "fraction: 0", "P08", 22, "> 0"),
    ("quorum of nobody", "quorum: all", "quorum: 0", "P07", 22, "1 or more"),
    ("retention of no rounds", "{updates: none}", "{updates: {rounds: 0}}", "P08", 27, ">= 1"),
    # YAML
    ("duplicate key", "seed: 7", "rounds: 7", "P03", 4, "first in line 3"),
    ("duplicate setting", "{lr: 3.0e-3}", "{lr: 1, lr: 2}", "P03", 13, "Keep one"),
    ("unclosed bracket", "[one, two]", "[one, two", "P02", 9, "expected YAML"),
    ("tab", "  listen:", "\tlisten:", "P02", 6, "expected YAML"),
    ("no is a word", "[one, two]", "[no, two]", "P05", 8, "'no' in quotes"),
    ("on is a word", "name: digits", "name: on", "P05", 2, "write true for the truth value"),
    ("octal", "rounds: 10", "rounds: 010", "P05", 3, "plain decimal number"),
    ("sexagesimal", "deadline: 10m", "deadline: 1:30", "P05", 22, "plain decimal number"),
    ("a date", "name: digits", "name: 2024-01-01", "P05", 2, "'2024-01-01' in quotes"),
    ("underscores", "rounds: 10", "rounds: 1_000", "P05", 3, "plain decimal number"),
    ("a tag", "rounds: 10", "rounds: !!python/name:os.system ''", "P04", 3, "tags such as"),
    ("an alias", "[one, two]", "&a [one, two]", "P04", 8, "anchors"),
    ("a merge key", "rounds: 10", "<<: {rounds: 10}", "P04", 3, "merge keys"),
    ("two documents", "rounds: 10", "---\nrounds: 10", "P04", 3, "one document"),
    ("deep nesting", "[one, two]", "[" * 99 + "]" * 99, "P04", 8, "levels"),
    # code
    ("no such file", "src.model:Net", "src.modle:Net", "P10", 11, "did you mean 'model'?"),
    ("no such class", "src.model:Net", "src.model:Nett", "P10", 11, "did you mean 'Net'?"),
    ("not Python", "src.model:Net", "src.broken:f", "P10", 11, "src/broken.py:1 is not Python"),
    ("not in src", "src.model:Net", "model:Net", "P09", 11, "src.module:Name"),
    ("unknown argument", "{classes: 10}", "{clases: 10}", "P01", 11, "did you mean 'classes'?"),
    ("argument of openfed", "{batch_size: 32}", "{batch_size: 1, source: a}", "P11", 18, "remove"),
    ("loader without source", "src.data:Digits", "src.data:Bare", "P11", 18, "openfed gives 1"),
    ("too many hostile", "strategy: fedavg", "strategy: {krum: {f: 1}}", "P24", 20, "needs 5"),
    ("no f", "strategy: fedavg", "strategy: krum", "P06", 20, "add f: 1"),
    ("steps of adam", "strategy: fedavg", "strategy: fednova", "P25", 13, "write sgd"),
    ("own strategy", "strategy: fedavg", 'strategy: "src.s:S"', "P18", 20, "later release"),
    ("no such metric file", "src.metrics:dice", "src.metric:dice", "P10", 16, "'metrics'?"),
    ("metric path", "src.metrics:dice", "src/metrics.py:dice", "P10", 16, "src.module:Name"),
    # metrics
    ("unknown metric", "[accuracy,", "[acuracy,", "P12", 16, "did you mean 'accuracy'?"),
    ("best of nothing", "best: {metric: accuracy", "best: {metric: auc", "P12", 25, "metrics"),
    ("stop of nothing", "stop: {metric: accuracy", "stop: {metric: dise", "P12", 26, "'dice'?"),
    ("two of one name", "metrics:dice", "metrics:accuracy", "P15", 16, "reported as accuracy"),
    ("mode", "mode: max", "mode: maximum", "P09", 25, "max | min"),
    ("the wrong way", "mode: max", "mode: min", "P15", 25, "write mode: max"),
    ("no validation", "[validate, train, validate_tuned]", "[train]", "P15", 25, "add it"),
    # addresses and names
    ("no port", "0.0.0.0:50051", "0.0.0.0", "P13", 6, "expected host:port"),
    ("port out of range", "0.0.0.0:50051", '":99999"', "P13", 6, "0 to 65535"),
    ("no host", "0.0.0.0:50051", '":50051"', "P13", 6, "expected host:port"),
    ("bare IPv6", "0.0.0.0:50051", '"::1:50051"', "P13", 6, "IPv6 in brackets"),
    ("bad IPv4", "0.0.0.0:50051", "300.0.0.1:50051", "P13", 6, "expected host:port"),
    ("nobody can dial it", "[localhost]", "[0.0.0.0]", "P13", 7, "nobody can dial 0.0.0.0"),
    ("nor this", "[localhost]", '["::"]', "P13", 7, "nobody can dial ::"),
    ("a space in a host", "[localhost]", "[my host]", "P13", 7, "expected a host name"),
    ("port in a name", "[localhost]", '["localhost:5"]', "P13", 7, "leave the port out"),
    ("listens to itself", "0.0.0.0:50051\n  advertise: [localhost]",
     "127.0.0.1:5\n  advertise: [fl.example.org]", "P13", 6, "answers this machine only"),
    ("the same site twice", "[one, two]", "[one, one]", "P14", 8, "there twice"),
    ("the same file name", "[one, two]", "[one, One]", "P14", 8, "one file name"),
    ("a reserved name", "[one, two]", "[one, Aggregator]", "P14", 8, "choose another"),
    ("a space in a name", "[one, two]", "[one, site two]", "P14", 8, "letters, digits"),
    ("a path for a name", "name: digits", "name: ../digits", "P14", 2, "letters, digits"),
    ("a word for the sites", "[one, two]", "enroled", "P07", 8, "write [enroled]"),
    ("enrolled by number", "[one, two]", "{enrolled: 3}", "P07", 8, "a mapping (key: value)"),
    ("typo in a minimum", "[one, two]", "{enrolled: {minium: 3}}", "P01", 8, "mean 'minimum'?"),
    ("typo in enrolled", "[one, two]", "{enroled: {}}", "P01", 8, "did you mean 'enrolled'?"),
    ("no site at least", "[one, two]", "{enrolled: {minimum: 0}}", "P08", 8, ">= 1"),
    ("no sites", "[one, two]", "[]", "P08", 8, "at least 1"),
    # contradictions
    ("nothing is trained", "tasks: [validate, train, validate_tuned]", "tasks: [validate]", "P15",
     19, "expected train"),
    ("no epochs, no steps", "epochs: 3", "epochs: null", "P15", 10, "got neither"),
    ("epochs and steps", "epochs: 3", "epochs: 3\n    steps: 5", "P15", 10, "epochs or steps"),
    ("tuned before train", "[validate, train, validate_tuned]", "[validate, validate_tuned]",
     "P15", 19, "put train before it"),
    ("a task twice", "[validate, train,", "[validate, validate,", "P15", 19, "there twice"),
    ("quorum without deadline", "quorum: all, deadline: 10m", "quorum: 1", "P15", 22, "deadline"),
    ("quorum of too many", "quorum: all", "quorum: 3", "P15", 22, "at most 2"),
    ("count and fraction", "fraction: 1.0", "fraction: 0.5, count: 1", "P15", 22, "keep one"),
    ("over where all are asked", "fraction: 1.0", "over: 1.5", "P15", 22, "nobody else to ask"),
    ("over by less", "fraction: 1.0", "over: 0.5", "P08", 22, ">= 1"),
    ("grace where all must", "late: discard", "grace: 5s", "P15", 22, "add quorum: N"),
    ("grace beyond the deadline", "quorum: all", "quorum: 1, grace: 10m", "P15", 22, "less than"),
    ("late where all must", "late: discard", "late: next_round", "P15", 22, "nobody can be late"),
    ("late, how", "late: discard", "late: never", "P09", 22, "discard | next_round"),
    ("a stop at nothing", "{metric: accuracy, patience: 5, min_delta: 0.001}", "{}", "P15", 26,
     "what is it to stop at?"),
    ("patience of what", "metric: accuracy, patience", "patience", "P15", 26, "of which metric?"),
    ("a value of what", "metric: accuracy, patience: 5", "reaches: 0.9", "P15", 26, "metric?"),
    ("over before its deadline", "min_delta: 0.001", "after: 10m", "P15", 22, "stop.after"),
    ("a short idle", "seed: 7", "timeouts: {idle: 4s}", "P15", 4, "at least 5s"),
    ("idle beyond connect", "seed: 7", "timeouts: {connect: 60s}", "P15", 4, "timeouts.connect"),
    ("a task beyond its round", "seed: 7", "timeouts: {task: 10m}", "P15", 4, "cohort.deadline"),
    ("a number for a timeout", "seed: 7", "timeouts: {idle: 60}", "P07", 4, "say the unit"),
    ("classifier without classes", TORCH, f"task_runner: {{sklearn: {SGD}}}}}\nx:\n  torch:\n",
     "P06", 9, "needs classes"),
    # codecs
    ("a codec that is none", UP, "[gzip]", "P09", 29, "expected a codec: topk | randomk | rotate"),
    ("typo in a codec", DOWN, "downlink: [ztsd]", "P09", 30, "did you mean 'zstd'?"),
    ("typo in its setting", UP, "[{quantize: {bit: 8}}]", "P01", 29, "did you mean 'bits'?"),
    ("no bits", UP, "[rotate, lloyd]", "P06", 29, "add bits: 8"),
    ("no fraction", UP, "[topk]", "P06", 29, "add fraction: 0.01"),
    ("three bits", UP, "[{quantize: {bits: 3}}]", "P09", 29, "expected 8 | 4 | 2 | 1, got 3"),
    ("bits that are a truth", UP, "[{lloyd: {bits: true}}]", "P09", 29, "got true"),
    ("level of zstd", DOWN, "downlink: [{zstd: {level: 20}}]", "P08", 30, "<= 19"),
    ("fraction above 1", UP, "[{topk: {fraction: 1.5}}]", "P08", 29, "<= 1"),
    ("small step", UP, "[{grid: {step: 0.01}}]", "P08", 29, ">= 0.05"),
    ("one center", UP, "[{kmeans: {centers: 1}}]", "P08", 29, ">= 2"),
    ("large group", UP, "[{quantize: {bits: 8, group: 65537}}]", "P08", 29, "<= 65536"),
    ("fraction by itself", UP, "[{topk: 0.1}]", "P07", 29, "as in {topk: {fraction: 0.1}}"),
    ("a wrong one by itself", UP, "[{topk: 10}]", "P07", 29, "as in {topk: {fraction: 0.01}}"),
    ("rate by itself", "{lr: 3.0e-3}", "0.1", "P07", 13, "as in {adam: {lr: 0.1}}"),
    ("no setting at all", UP, "[{rotate: 1}]", "P07", 29, "expected a mapping (key: value), got 1"),
    ("exceptions without a list", '[{"*.bias": [zstd]}]', "{a: []}", "P07", 29,
     'as in except: [{"*.bias": []}]'),
    ("rounding", UP, "[{quantize: {bits: 8, rounding: up}}]", "P09", 29, "stochastic | nearest"),
    ("codec without a list", DOWN, "downlink: zstd", "P07", 30, "a list of codecs, as in [zstd]"),
    ("pipeline of OpenFL", PIPELINE, " {template: openfl.pipelines.KCPipeline}\n", "P07", 28,
     "write uplink: [{kmeans: {centers: 6}}, zstd]"),
    ("pipeline is a list", PIPELINE, " [zstd]\n", "P07", 28, "{uplink: [zstd]}"),
    ("a third way", "  downlink:", "  sidelink:", "P01", 30, "known here: uplink, downlink"),
    ("code for a codec", DOWN, 'downlink: ["src.model:Net"]', "P09", 30, "expected a codec"),
    ("two globs at once", '{"*.bias": [zstd]}', "{a: [zstd], b: []}", "P07", 29, '"*.bias": []'),
    ("glob without a list", '{"*.bias": [zstd]}', "{a: zstd}", "P07", 29, '"*.bias": []'),
    ("glob that is empty", '{"*.bias": [zstd]}', '{"": []}', "P07", 29, '"*.bias": []'),
    ("codec below a glob", '"*.bias": [zstd]', '"*.bias": [gzip]', "P09", 29, "a codec"),
    ("zstd before quantize", UP, "[zstd, {quantize: {bits: 8}}]", "P22", 29, "[quantize, zstd]"),
    ("entropy before topk", UP, "[{lloyd: {bits: 2}}, entropy, {topk: {fraction: 0.1}}]", "P22",
     29, "write [topk, lloyd, entropy]"),
    ("bf16 and quantize", UP, "[bf16, {quantize: {bits: 8}}]", "P22", 29, "bf16 before it does"),
    ("fp16 twice", UP, "[fp16, fp16]", "P22", 29, "keep one of them"),
    ("topk twice", UP, "[{topk: {fraction: 0.1}}, {randomk: {fraction: 0.1}}]", "P22", 29,
     "randomk chooses numbers, and topk"),
    ("ternary after topk", UP, "[{topk: {fraction: 0.1}}, {ternary: {fraction: 0.1}}]", "P22", 29,
     "ternary chooses numbers, and topk"),
    ("entropy of floats", UP, "[{topk: {fraction: 0.1}}, entropy]", "P22", 29, "else write zstd"),
    ("entropy of nothing", DOWN, "downlink: [entropy]", "P22", 30, "or lloyd or grid or kmeans, "),
    ("entropy of a cast", UP, "[bf16, entropy]", "P22", 29, "else write zstd"),
    ("chance under feedback", "{bits: 8}", "{bits: 8, rounding: stochastic}", "P22", 29,
     "not for chance: remove it"),
    ("feedback downlink", DOWN, "downlink: {feedback: true, codecs: [zstd]}", "P22", 30,
     "the next one brings what this one lost"),
    ("feedback without loss", UP, "[zstd]", "P23", 29, "nothing is lost on the way up: remove it"),
    ("zstd twice", DOWN, "downlink: [zstd, zstd]", "P23", 30, "zstd before it has packed"),
    ("zstd after entropy", UP, "[{grid: {step: 1}}, entropy, zstd]", "P23", 29, "keep one"),
    ("entropy after zstd", UP, "[{grid: {step: 1}}, zstd, entropy]", "P23", 29, "keep one"),
    ("zstd after one bit", UP, "[rotate, {lloyd: {bits: 1}}, zstd]", "P23", 29,
     "one bit a number is what lloyd gives: remove it"),
    ("entropy after one bit", UP, "[{quantize: {bits: 1}}, entropy]", "P23", 29, "remove it"),
    ("zstd after ternary", UP, "[{ternary: {fraction: 0.1}}, zstd]", "P23", 29, "is packed"),
    ("all of topk", UP, "[{topk: {fraction: 1}}, fp16]", "P23", 29, "topk sends every number"),
    ("all of randomk", UP, "[{randomk: {fraction: 1.0}}]", "P23", 29, "a fraction below 1"),
    ("rotate alone", UP, "[rotate]", "P23", 29, "put lloyd, grid or quantize after it"),
    ("rotate before zstd", UP, "[rotate, zstd]", "P23", 29, "smaller by itself"),
    ("rotate before a cast", UP, "[rotate, bf16]", "P23", 29, "changes nothing for bf16"),
    ("rotate twice", UP, "[rotate, rotate, {lloyd: {bits: 2}}]", "P23", 29, "there twice"),
    ("a rule in an exception", '"*.bias": [zstd]', '"*.bias": [zstd, zstd]', "P23", 29, "packed"),
    ("an exception too late", '"*.bias": [zstd]', '"*": []}, {"*.bias": [zstd]', "P15", 29,
     "* before it takes these entries"),
    ("an exception twice", '"*.bias": [zstd]', '"a": []}, {"a": [zstd]', "P15", 29,
     "a before it takes these entries"),
    # files
    ("no such ready plan", "seed: 7", "extends: fedadm", "P16", 4, "did you mean 'fedadam'?"),
    ("no such plan file", "seed: 7", "extends: base.yaml", "P16", 4, "no file base.yaml"),
    ("a plan outside", "seed: 7", "extends: ../../x.yaml", "P16", 4, "inside the workspace"),
    ("extends itself", "seed: 7", "extends: plan.yaml", "P16", 4, "extends itself"),
    ("no such model", "seed: 7", "init: a.safetensors", "P16", 4, "no file a.safetensors"),
    ("a model outside", "seed: 7", "init: /a.safetensors", "P16", 4, "inside the workspace"),
)  # fmt: skip


def spoilt(text: str, old: str, new: str) -> str:
    if old == "*":
        return new
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize("bad", BAD, ids=[bad[0] for bad in BAD])
def test_bad_plan_is_answered_with_code_line_and_remedy(
    bad: tuple[str, str, str, str, int, str], load: Callable[..., Plan], plan_text: str
) -> None:
    _, old, new, code, line, remedy = bad
    text = spoilt(plan_text, old, new)
    began = time.perf_counter()
    with pytest.raises(PlanError) as caught:
        load(text)
    assert time.perf_counter() - began < 1
    assert caught.value.exit_code == 2
    found = [(p.code, p.where.split(":")[:2], p.message) for p in caught.value.problems]
    wanted = ["plan/plan.yaml", str(line)]
    hits = [m for c, at, m in found if c == code and at == wanted]
    assert any(remedy in message for message in hits), found


def test_table_is_long_and_its_names_differ() -> None:
    assert len(BAD) >= 40
    assert len({bad[0] for bad in BAD}) == len(BAD)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("[localhost]", "[localhost:50051]", "P13"),
        ("[one, two]", "[1]", "P07"),
    ],
)
def test_a_list_of_wrong_items_is_not_called_too_short(
    load: Callable[..., Plan], plan_text: str, old: str, new: str, code: str
) -> None:
    with pytest.raises(PlanError) as caught:
        load(spoilt(plan_text, old, new))
    assert [problem.code for problem in caught.value.problems] == [code]


SCRIPT = """
import sys
from pathlib import Path
from openfed.errors import PlanError
from openfed.plan.load import load_plan
try:
    load_plan(Path("plan/plan.yaml"))
except PlanError as error:
    print(error)
heavy = {"torch", "sklearn", "grpc", "numpy", "rich", "cryptography", "src"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    files = (path for path in folder.rglob("*"))
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


@pytest.mark.parametrize("index", [0, 40, 66, 72, -1])
def test_a_bad_plan_imports_nothing_and_writes_nothing(
    index: int, workspace: Path, plan_text: str
) -> None:
    _, old, new, code, _, _ = BAD[index]
    (workspace / "plan" / "plan.yaml").write_text(spoilt(plan_text, old, new))
    before = snapshot(workspace)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=workspace,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert code in done.stdout
    assert "Traceback" not in done.stderr
    assert snapshot(workspace) == before


def test_all_problems_are_reported_at_once_in_file_order(
    load: Callable[..., Plan], plan_text: str
) -> None:
    text = plan_text
    for old, new in (
        ("rounds: 10", "ronds: 10"),
        ("[one, two]", "[one, one]"),
        ("{classes: 10}", "{clases: 10}"),
        ("lr: 3.0e-3", "lr: fast"),
        ("[accuracy,", "[acuracy,"),
        ("deadline: 10m", "deadline: soon"),
    ):
        text = spoilt(text, old, new)
    with pytest.raises(PlanError) as caught:
        load(text)
    lines = [int(problem.where.split(":")[1]) for problem in caught.value.problems]
    assert lines == sorted(lines)
    assert set(lines) == {1, 3, 8, 11, 13, 16, 22}


def test_a_problem_shows_where_code_path_and_message(
    load: Callable[..., Plan], plan_text: str
) -> None:
    with pytest.raises(PlanError) as caught:
        load(spoilt(plan_text, "strategy: fedavg", "strategy: {fedadam: {lr: fast}}"))
    assert str(caught.value) == (
        "plan/plan.yaml:20:26  P07  strategy.fedadam.lr  expected a number, got 'fast'"
    )
