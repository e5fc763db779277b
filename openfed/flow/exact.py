"""A method on sums as a flow: ask for sums at the state, add them, take the next state."""

from openfed.errors import OpenFedError
from openfed.exact.base import Method, done
from openfed.exact.methods import sums_signature
from openfed.flow.federation import Federation, State
from openfed.tasks.base import LIFT
from openfed.typing import Tensors


def exact(fed: Federation, method: Method) -> Tensors:
    """The method's last state, on the rows of all sites of the first round.

    Model k is the state after k steps. Sums of one round must be over the same rows as those of
    the next, so whoever is there in round 1 is asked to the end.
    Raises: OpenFedError: F06: the plan's rounds are over, and the method is not done. K52, K53:
    the sites' rows have no answer.
    """
    state: State = {"k": 0, "model": fed.begin(), "sites": []}
    for r in fed.rounds(state):
        if done(state["model"]):
            break
        state["sites"] = state["sites"] or list(fed.roster)
        entries = sums_signature(method, state["model"])
        sums = fed.added(LIFT, state["model"], entries, state["sites"])
        state["model"] = method.step(state["model"], dict(sums))
        state["k"] = r
    if not done(state["model"]):
        name = type(method).__name__
        raise OpenFedError("F06", f"{name} is not done after rounds: {fed.plan.rounds}")
    return fed.whole(state["model"])
