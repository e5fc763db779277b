"""Federated averaging, with any server optimiser: the flow that ships."""

from openfed.flow.federation import Federation, State
from openfed.plan.schema import Plan
from openfed.strategy.base import Strategy
from openfed.tensors.update import add
from openfed.typing import Json, Tensors


def fedavg(fed: Federation, strategy: Strategy) -> Tensors:
    """Validate, train, reduce, step; once more validate; the model after the last reduction.

    Model k is the model after k reductions. Round r validates model r-1 and makes model r.
    Source: McMahan et al. 2017, arXiv:1602.05629, algorithm 1; the server's step: Reddi et al.
    2021, arXiv:2003.00295, algorithm 1.
    """
    state: State = {"k": 0, "model": fed.begin()}
    state["server"] = strategy.init(fed.parameters(state["model"]))
    for r in fed.rounds(state):
        validate(fed, state)
        if fed.stopped():
            validate_exactly(fed, state)
            break
        settings = task_settings(fed.plan, "train")
        update = fed.reduce("train", state["model"], settings=settings, state=state)
        delta = fed.parameters(update)
        state["server"], move = strategy.step(state["server"], delta, fed.share)
        state["model"] = add(state["model"], {**update, **move})
        state["k"] = r
    else:
        validate(fed, state, final=True)
    return fed.whole(state["model"])


def validate(fed: Federation, state: State, *, final: bool = False) -> None:
    """Score model k at every site, if the plan has it validated at this k.

    Where the downlink loses something, what is scored is what the sites have decoded; the final
    model is scored as it is, too.
    """
    asked = any(task.name == "validate" for task in fed.plan.tasks)
    if not asked or (not final and state["k"] % fed.plan.validation.every):
        return
    score(fed, state, exact=False)
    if final:
        validate_exactly(fed, state)


def validate_exactly(fed: Federation, state: State) -> None:
    """Score the model of record, if the sites have worked on something else."""
    if fed.lossy:
        score(fed, state, exact=True)


def score(fed: Federation, state: State, *, exact: bool) -> None:
    settings = task_settings(fed.plan, "validate")
    answers = fed.ask("validate", state["model"], settings=settings, exact=exact)
    fed.report(state["k"], state["model"], answers, exact=exact)


def task_settings(plan: Plan, task: str) -> dict[str, Json]:
    """What the plan says of a task; for `train`, also whether the site's tuned model is validated,
    and what the strategy needs to know of the training.

    A site runs a task with these settings only. Raises: KeyError: the plan has no such task.
    """
    settings = {each.name: each.settings for each in plan.tasks}
    tuned = {"tuned": "validate_tuned" in settings} if task == "train" else {}
    needed = {"reports": list(plan.reports)} if task == "train" and plan.reports else {}
    return {**settings[task], **tuned, **needed}
