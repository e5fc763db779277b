from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.plan.explain import code_lines, explain
from openfed.plan.lock import make_lock
from openfed.plan.schema import Plan
from openfed.tensors.record import Kind, Spec

SIGNATURE = (
    Spec("bias", "float32", (3,)),
    Spec("stem", "float32", (1000,), Kind.FROZEN),
    Spec("weight", "float32", (500_000,)),
)

UP = "compression_pipeline.uplink.codecs"

GOLDEN = """\
The plan digits of the federation consortium
  2 sites train one model
    - one
    - two
  The aggregator waits for them at localhost
  Plan digest: DIGEST
  Signed by its author: aggregator, on Monday
  Initial model: 3 tensors, 2.0 MB, of which 4.0 kB stay as they are

What happens
  10 rounds. In each of them
    - every site gets the model
    - validate: the site scores that model on its own validation data
    - train: the site trains it on its own data (torch, 3 epochs, loss cross_entropy,
      optimizer adam [lr 0.003])
    - validate_tuned: the site scores what its training has made, before it is averaged
    - the aggregator makes the next model of the updates: fedavg, a site counts by its
      number of samples, of which 10000 at most

What leaves a site
  To the aggregator, after training: the update (how the training moved the model), the
      number of samples used, the seconds it took
    - weight: 2.0 MB
    - bias: 12 bytes
  That is 2.0 MB a round, about 440.0 kB as coded below; about 4.4 MB in all 10 rounds
  To the aggregator, as sums over all samples: loss, accuracy, dice (of every task; a sum
      over very few samples says something about them)
  To the aggregator, if the code fails: its error message (which may quote a value) and the
      lines of code that it came from
  Nothing is added to an update: no noise, no masks

How it travels
  An update, to the aggregator: rounded to 8 bits a number, packed by zstd; something is
      lost; about 22.0% of its size is left to send
    - entries *.bias: packed by zstd; nothing is lost
  What the codecs take from an update is added to the site's next one
  A model, to the sites: packed by zstd; nothing is lost
  Only trained numbers are rounded: buffers, whole numbers and truth values never are

What stays at the site
  The data: no record leaves the site
  The parts of the model that match head.*: every site keeps its own, and the saved model
      does not have them
  What the codecs took from its updates so far
  Private keys, and what the site's own settings say

Who sees what
  The aggregator sees each site's update and sums, one by one, in the clear
  An update can carry information about the data that it was trained on
  A site sees the averaged models, never another site's update
  Nobody between them can read anything: every connection is encrypted, and both ends show
      certificates of this federation

Whose code runs at the sites
  The code below runs at every site, in the process that can read the data; review it
    model: src.model:Net
    data loader: src.data:Digits
    metric: src.metrics:dice
  Files (a node whose files differ from these refuses to run):
    src/data.py (7 lines, SHA-256 111111111111)
    src/model.py (6 lines, SHA-256 222222222222)

What is kept
  At the aggregator: no update, once its round is over; their digests are
  At the aggregator: the models (first, last, best), the metrics, a journal of the run,
      until its operator deletes them
  At each site: a journal, the logs of its own tasks, the plans and the code that it
      approved, until it deletes them

When it ends
  After 10 rounds at the latest
  Earlier, when accuracy has not risen by more than 0.001 in 5 validations
  The best model is the one with the highest accuracy
  Every site that is asked must answer, within 10 minutes; otherwise the run fails
  Where too few have answered by then and some are gone, it waits for them to return
  A site of which nothing is heard for 1 minute is taken for gone
  A site that cannot reach the aggregator for 10 minutes gives up

What this site has set for itself
  At most 2 hours a task
"""


def test_explanation_of_the_plan_of_the_design(load: Callable[..., Plan], workspace: Path) -> None:
    files = {"src/data.py": "1" * 64, "src/model.py": "2" * 64}
    lock = make_lock(load(), files, "a" * 64, SIGNATURE)
    said = explain(
        lock.plan,
        lock,
        code_lines(workspace, lock),
        {"uplink": 0.22},
        "aggregator, on Monday",
        ["At most 2 hours a task"],
    )
    assert said + "\n" == GOLDEN.replace("DIGEST", lock.digest)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rounds=1", "After 1 round at the latest"),
        ("collaborators=[one]", "1 site trains one model"),
        ("cohort={fraction: 0.5}", "1 of the 2 sites, drawn by lot, get the model"),
        ("cohort={quorum: 1, deadline: 90s}", "after 90 seconds"),
        ("cohort={deadline: null}", "however long it takes"),
        ("retention.updates=all", "every update, so that the result can be computed again"),
        ("retention={updates: {rounds: 3}}", "the updates of the last 3 rounds"),
        ("strategy.fedadam.lr=1", "fedadam [lr 1.0], a site counts"),
        ("weights=uniform", "every site counts the same"),
        ("strategy=median", "median, every site counts the same"),
        ("strategy={trimmed_mean: {f: 0}}", "trimmed_mean [f 0], every site counts the same"),
        ("strategy=geometric_median", "geometric_median, a site counts by its number of samples"),
        ("tasks=[validate, {train: {steps: 7}}]", "torch, 7 steps, loss"),
        ("task_runner.optimizer_state=keep", "The state of the optimizer"),
        ("task_runner.optimizer_state=average", "after training: the state of the optimizer"),
        ("validation.every=3", "Validation takes place every 3 rounds, and after the last"),
        ("best={metric: loss, mode: min}", "the lowest loss"),
        ("compression_pipeline.downlink.codecs=[]", "to the sites: as it is; nothing is lost"),
        (f"{UP}=[rotate, {{lloyd: {{bits: 1}}}}]", "rotation, rounded to 1 bit a number (Lloyd"),
        (f"{UP}=[{{topk: {{fraction: 0.001}}}}]", "the largest 0.1% of its numbers only; some"),
        (f"{UP}=[{{randomk: {{fraction: 0.5}}}}]", "50% of its numbers only, drawn by lot"),
        (f"{UP}=[{{ternary: {{fraction: 0.01}}}}]", "the signs of the largest 1% of its"),
        (f"{UP}=[{{grid: {{step: 0.5}}}}, entropy]", "a grid of 0.5 times their root mean"),
        (f"{UP}=[{{kmeans: {{centers: 6}}}}]", "rounded to 6 values"),
        (f"{UP}=[bf16, zstd]", "rounded to 16 bits (bf16), packed by zstd"),
        ("compression_pipeline.downlink=[fp16]", "own model, the one that is saved, is exact"),
    ],
)
def test_what_the_plan_says_is_said(
    load: Callable[..., Plan], plan_text: str, override: str, sentence: str
) -> None:
    assert sentence in " ".join(explain(load(plan_text, override)).split())
    assert sentence not in " ".join(explain(load(plan_text)).split())


def test_a_size_is_said_where_it_is_another(load: Callable[..., Plan]) -> None:
    said = explain(load(), sizes={"uplink": 1.0, "downlink": 0.123})
    assert said.count("of its size") == 1
    assert "nothing is lost; about 12.3% of its size is left to send" in " ".join(said.split())


def test_a_plan_without_a_signature_says_so(load: Callable[..., Plan]) -> None:
    said = explain(load(), make_lock(load(), {}, "a" * 64, SIGNATURE))
    assert "\n  Nobody has signed it\n" in said
    assert "has set for itself" not in said


def leaving(load: Callable[..., Plan], *specs: Spec) -> list[str]:
    """What is said of the parts of an update."""
    said = explain(load(), make_lock(load(), {}, "a" * 64, specs)).splitlines()
    begin = next(i for i, line in enumerate(said) if line.startswith("    - ") and "bytes" in line)
    end = next(i for i, line in enumerate(said) if line.startswith("  That is"))
    return [line.strip() for line in said[begin : end + 1]]


def test_an_update_is_told_by_the_parts_of_the_model(load: Callable[..., Plan]) -> None:
    assert leaving(
        load,
        Spec("net.head.bias", "float32", (2,)),
        Spec("net.head.weight", "float32", (2, 3)),
        Spec("net.stem.weight", "float16", (10,)),  # its difference travels in 32 bits
        Spec("net.stem.fixed", "float32", (10,), Kind.FROZEN),
        Spec("net.head.weight/exp_avg", "float32", (2, 3), Kind.STATE),
    ) == [
        "- net.stem: 1 tensor, 40 bytes",
        "- net.head: 2 tensors, 32 bytes",
        "- the state of the optimizer: 1 tensor, 24 bytes",
        "That is 96 bytes a round; 960 bytes in all 10 rounds",
    ]


def test_many_parts_are_summed_up_and_the_largest_stand_first(load: Callable[..., Plan]) -> None:
    specs = [Spec(f"layer{n:02}.weight", "float32", (n,)) for n in range(1, 21)]
    said = leaving(load, *specs)
    assert said[0] == "- layer20: 1 tensor, 80 bytes"
    assert said[7] == "- 13 other parts: 13 tensors, 364 bytes"
    assert said[8] == "That is 840 bytes a round; 8.4 kB in all 10 rounds"
    assert len(said) == 9


@pytest.mark.parametrize(
    ("runner", "sentence"),
    [
        (
            '{sklearn: {estimator: {"sklearn.linear_model:SGDClassifier": {alpha: 0.1}}, '
            "features: 4, classes: [0, 1], epochs: 2}}",
            "scikit-learn, sklearn.linear_model:SGDClassifier [alpha 0.1], 2 epochs",
        ),
        (
            '{numpy: {train: "src.numeric:train", validate: "src.numeric:train", '
            "shapes: {w: [2]}}}",
            "numpy, by the function src.numeric:train",
        ),
        ('"src.data:Digits"', "by src.data:Digits"),
    ],
)
def test_every_runner_is_explained(
    load: Callable[..., Plan], plan_text: str, runner: str, sentence: str
) -> None:
    text = plan_text.split("task_runner:")[0] + plan_text[plan_text.index("metrics:") :]
    if runner.startswith('"'):
        runner = '{"src.data:Digits": {batch_size: 1}}'
    text = explain(load(text + f"task_runner: {runner}\n"))
    assert sentence in " ".join(text.split())
