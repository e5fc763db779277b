"""A plan in plain words, for those who decide whether their data takes part."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openfed.data.column import Column
from openfed.data.contract import contract_of
from openfed.plan.chains import ways
from openfed.plan.choices import (
    ESTIMATORS,
    FLOWS,
    LOSS,
    LOSSES,
    OPTIMIZERS,
    STRATEGIES,
    SUPPRESSING,
    UNWEIGHTED,
    metric_name,
)
from openfed.plan.lock import Lock
from openfed.plan.schema import Codecs, Cohort, KeptRounds, Plan, Stop, Timeouts, is_lossy
from openfed.plan.values import Choice, Table
from openfed.tensors.record import Kind, Signature, Spec
from openfed.tensors.update import update_signature


def explain(
    plan: Plan,
    lock: Lock | None = None,
    lines: Mapping[str, int] | None = None,
    sizes: Mapping[str, float] | None = None,
    signed: str = "",
    limits: Sequence[str] = (),
) -> str:
    """What runs where, what travels, what stays, who sees what, who signed it.

    `lines`: how many lines each file of code has (see `code_lines`). `sizes`: what share of its
    bytes travels, of an "uplink" and of a "downlink" (see `codec/advice.py`). `signed`: by whom.
    `limits`: what the site has set for itself, a line each.
    """
    parts = (
        (f"The plan {plan.name} of the federation {plan.federation}", _head(plan, lock, signed)),
        *([("What every site's data have to be", _demanded(plan))] if plan.data_contract else []),
        ("What happens", _happens(plan)),
        ("What leaves a site", _leaves(plan, lock, (sizes or {}).get("uplink", 1.0))),
        ("How it travels", _travels(plan, sizes or {})),
        ("What stays at the site", _stays(plan)),
        ("Who sees what", _seen(plan)),
        ("Whose code runs at the sites", _code(plan, lock, lines or {})),
        ("What is kept", _kept(plan)),
        ("When it ends", _limits(plan)),
        *([("What this site has set for itself", iter(limits))] if limits else []),
    )
    return "\n\n".join("\n".join((title, *map(_wrapped, body))) for title, body in parts)


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 92, initial_indent="  ", subsequent_indent="      ")


def code_lines(workspace: Path, lock: Lock) -> dict[str, int]:
    """The number of lines of each file of the lock that is there."""
    files = {name: workspace / name for name in lock.files}
    return {
        name: file.read_bytes().count(b"\n")
        for name, file in files.items()
        if file.is_file() and not file.is_symlink()
    }


def _head(plan: Plan, lock: Lock | None, signed: str) -> Iterator[str]:
    least = _many(plan.fewest, "site")
    one = plan.fewest == 1
    what = f"{'trains' if one else 'train'} one model"
    if plan.flow is not None:
        what = f"{'takes' if one else 'take'} part in one computation: {plan.flow.name}"
    if plan.named:
        yield f"{least} {what}"
        yield from (f"  - {name}" for name in plan.named)
    else:
        yield (
            f"Every site that the federation certifies may train, {least} at least; which they "
            "are is not in this plan, and others may join while it runs"
        )
    yield f"The aggregator waits for them at {', '.join(plan.aggregator.advertise)}"
    if lock is not None:
        yield f"Plan digest: {lock.digest}"
        yield f"Signed by its author: {signed}" if signed else "Nobody has signed it"
        yield f"Initial model: {_model(lock)}"
    else:
        yield "The plan is not frozen yet: fx plan initialize"


def _model(lock: Lock) -> str:
    numbers = sum(spec.size for spec in lock.signature)
    frozen = sum(spec.size for spec in lock.signature if spec.kind is Kind.FROZEN)
    fixed = f", of which {_bytes(frozen)} stay as they are" if frozen else ""
    return f"{_many(len(lock.signature), 'tensor')}, {_bytes(numbers)}{fixed}"


def _demanded(plan: Plan) -> Iterator[str]:
    contract = contract_of(plan.data_contract)
    yield f"At least {_many(contract.samples, 'sample')}"
    if contract.columns:
        yield "A table with the columns (it may have others)"
        yield from (f"  - {_column(column)}" for column in contract.columns)
    if contract.shape is not None:
        sizes = " x ".join("any length" if each is None else str(each) for each in contract.shape)
        yield f"Arrays: each sample {sizes or 'one number'}"
    if contract.dtype is not None:
        yield f"Numbers stored as {contract.dtype}"
    if contract.classes:
        where = f"in the column {contract.target}" if contract.target else "as targets"
        yield f"Nothing but the classes {', '.join(map(str, contract.classes))} {where}"
    yield (
        "Each site checks this by itself before the first round. Where it does not hold, the "
        "aggregator is told which of these rules, never a value or a number of samples"
    )


def _column(column: Column) -> str:
    bounds = {"from": column.least, "to": column.most}
    said = [column.kind, *(f"{word} {each}" for word, each in bounds.items() if each is not None)]
    listed = f", one of {', '.join(map(str, column.values))}" if column.values else ""
    return f"{column.name}: {' '.join(said)}{listed}{', may be missing' * column.may_miss}"


def _happens(plan: Plan) -> Iterator[str]:
    if plan.flow is not None:
        yield from _sums(plan, plan.flow)
        return
    yield f"{_many(plan.rounds, 'round')}. In each of them"
    yield f"  - {_asked(plan)} the model"
    yield from (f"  - {_task(plan, task.name, task.settings)}" for task in plan.tasks)
    if any(task.name == "train" for task in plan.tasks):
        yield f"  - the aggregator makes the next model of the updates: {_strategy(plan)}"
    if plan.validation.every > 1:
        yield f"Validation takes place every {plan.validation.every} rounds, and after the last"


def _sums(plan: Plan, flow: Choice) -> Iterator[str]:
    yield f"At most {_many(plan.rounds, 'round')}, until the method is done. In each of them"
    yield f"  - {_asked(plan)} what the method has found so far"
    chosen = _choice(flow.model_dump(), FLOWS)
    yield f"  - lift: the site computes sums over all its rows ({chosen})"
    yield "  - the aggregator adds the sites' sums, and the method goes on from the totals"


def _asked(plan: Plan) -> str:
    sites, cohort = len(plan.named), plan.cohort
    if cohort.everyone(sites):
        return "every site gets" if sites else "every site that is there when it begins gets"
    if sites:
        return f"{cohort.asked(sites)} of the {sites} sites, drawn by lot, get"
    share = f"{cohort.count} of" if cohort.count else f"{cohort.fraction:.0%} of"
    return f"{share} the sites that are there, drawn by lot, get"


def _task(plan: Plan, name: str, settings: Mapping[str, Any]) -> str:
    if name == "validate":
        return "validate: the site scores that model on its own validation data"
    if name == "validate_tuned":
        return "validate_tuned: the site scores what its training has made, before it is averaged"
    return f"train: the site trains it on its own data ({_training(plan, settings)})"


def _training(plan: Plan, over: Mapping[str, Any]) -> str:
    runner = plan.task_runner
    if runner.name == "torch":
        chosen: dict[str, Any] = {key: runner.settings.get(key) for key in ("epochs", "steps")}
        chosen = {"epochs": None, "steps": None, **over} if over else chosen
        length = [_many(int(n), key[:-1]) for key, n in chosen.items() if n is not None]
        loss = _choice(runner.settings["loss"], LOSSES)
        optimizer = _choice(runner.settings["optimizer"], OPTIMIZERS)
        loop = runner.settings.get("train")
        how = f"by the loop {loop}" if loop else f"loss {loss}"
        return f"torch, {', '.join(length)}, {how}, optimizer {optimizer}"
    if runner.name == "sklearn":
        estimator = _choice(runner.settings["estimator"], ESTIMATORS)
        epochs: Any = over.get("epochs") or runner.settings["epochs"]
        return f"scikit-learn, {estimator}, {_many(epochs, 'epoch')}"
    if runner.name == "numpy":
        return f"numpy, by the function {runner.settings['train']}"
    return f"by {runner.name}"


def _choice(value: Any, table: Table) -> str:
    """The name, and those settings that are not the defaults."""
    fields = table[value["name"]].model_fields if value["name"] in table else {}
    told = [
        f"{key} {each}"
        for key, each in value["settings"].items()
        if key not in fields or each != fields[key].get_default()
    ]
    return f"{value['name']} [{', '.join(told)}]" if told else str(value["name"])


def _strategy(plan: Plan) -> str:
    """How many updates become one, and what a site counts in that."""
    chosen = _choice(plan.strategy.model_dump(), STRATEGIES)
    if plan.strategy.name in UNWEIGHTED:
        return f"{chosen}, every site counts the same"
    weights = {
        "uniform": "every site counts the same",
        "samples": "a site counts by its number of samples",
    }[plan.weights.name]
    if cap := plan.weights.settings.get("cap"):
        weights += f", of which {cap} at most"
    return f"{chosen}, {weights}"


_REPORTS = {
    "steps": "the number of steps taken",
    "loss_before": "the mean loss of the received model on the training data",
}


def _leaves(plan: Plan, lock: Lock | None, share: float) -> Iterator[str]:
    if plan.flow is not None:
        yield from _sums_leave(plan.flow)
        return
    names = ", ".join([LOSS, *map(metric_name, plan.metrics)])
    trains = any(task.name == "train" for task in plan.tasks)
    reports = "".join(f"{_REPORTS[name]}, " for name in plan.reports)
    if trains:
        yield (
            "To the aggregator, after training: the update (how the training moved the model), "
            f"the number of samples used, {reports}the seconds it took"
        )
        if lock is not None:
            yield from _update(update_signature(lock.signature), share, plan.rounds)
        if plan.task_runner.settings.get("optimizer_state") == "average":
            yield "To the aggregator, after training: the state of the optimizer"
    yield (
        f"To the aggregator, as sums over all samples: {names} (of every task; a sum over very "
        "few samples says something about them)"
    )
    yield _FAILS
    yield "Nothing is added to an update: no noise, no masks"


_FAILS = (
    "To the aggregator, if the code fails: its error message (which may quote a value) and the "
    "lines of code that it came from"
)


def _sums_leave(flow: Choice) -> Iterator[str]:
    least = flow.settings.get("least") if flow.name in SUPPRESSING else None
    count = "the seconds it took" if least else "the number of rows, the seconds it took"
    yield f"To the aggregator, in every round: the sums that {flow.name} needs, {count}"
    yield "A sum over one row is that row: a site with very few rows tells them"
    if least:
        yield f"A site tells nothing of groups of fewer than {least} rows but that it has some"
    yield _FAILS
    yield "Nothing is added to a sum: no noise, no masks"


MOST_GROUPS = 8


def _update(update: Signature, share: float, rounds: int) -> Iterator[str]:
    """The parts of an update with their sizes, and what that comes to."""
    groups = sorted(_groups(update).items(), key=lambda group: -sum(s.size for s in group[1]))
    shown = groups if len(groups) <= MOST_GROUPS else groups[: MOST_GROUPS - 1]
    for name, specs in shown:
        count = (
            "" if [spec.name for spec in specs] == [name] else f"{_many(len(specs), 'tensor')}, "
        )
        yield f"  - {name}: {count}{_bytes(sum(spec.size for spec in specs))}"
    if rest := [spec for _, specs in groups[len(shown) :] for spec in specs]:
        size = _bytes(sum(spec.size for spec in rest))
        yield f"  - {len(groups) - len(shown)} other parts: {_many(len(rest), 'tensor')}, {size}"
    whole = sum(spec.size for spec in update)
    coded = f", about {_bytes(round(whole * share))} as coded below" if share != 1.0 else ""
    total = f"{'about ' if coded else ''}{_bytes(round(whole * share) * rounds)}"
    yield f"That is {_bytes(whole)} a round{coded}; {total} in all {_many(rounds, 'round')}"


def _groups(update: Signature) -> dict[str, list[Spec]]:
    """Entries by the part of the model that they belong to: the first words of their names, as few
    as tell parts apart."""
    state = [spec for spec in update if spec.kind is Kind.STATE]
    names = {spec.name: spec.name.split(".") for spec in update if spec.kind is not Kind.STATE}
    longest = max(map(len, names.values()), default=1)
    depths = range(1, longest + 1)
    parts = {depth: {tuple(words[:depth]) for words in names.values()} for depth in depths}
    depth = next((depth for depth in depths if len(parts[depth]) > 1), longest)
    found: dict[str, list[Spec]] = {"the state of the optimizer": state} if state else {}
    for spec in update:
        if spec.name in names:
            found.setdefault(".".join(names[spec.name][:depth]), []).append(spec)
    return found


def _travels(plan: Plan, sizes: Mapping[str, float]) -> Iterator[str]:
    if plan.flow is not None:
        yield "Sums, and what comes of them: as they are; nothing is lost"
        return
    for way, direction in ways(plan.compression_pipeline):
        whole = {"uplink": "An update, to the aggregator", "downlink": "A model, to the sites"}[way]
        share = sizes.get(way, 1.0)
        size = f"; about {share:.1%} of its size is left to send" if share != 1.0 else ""
        yield f"{whole}: {_coded(direction.codecs)}{size}"
        for rule in direction.except_:
            yield from (f"  - entries {glob}: {_coded(codecs)}" for glob, codecs in rule.items())
        if way == "uplink" and direction.feedback:
            yield "What the codecs take from an update is added to the site's next one"
        elif way == "downlink" and any(map(is_lossy, direction.chains().values())):
            yield (
                "Every site decodes the same model, trains and scores it, and its update is how it "
                "moved from there; the aggregator's own model, the one that is saved, is exact"
            )
    if any(is_lossy(c) for _, d in ways(plan.compression_pipeline) for c in d.chains().values()):
        yield "Only trained numbers are rounded: buffers, whole numbers and truth values never are"


_CODECS = {
    "topk": "the largest {fraction} of its numbers only",
    "randomk": "{fraction} of its numbers only, drawn by lot",
    "rotate": "mixed by a random rotation",
    "fp16": "rounded to 16 bits (fp16)",
    "bf16": "rounded to 16 bits (bf16)",
    "quantize": "rounded to {bits} a number",
    "lloyd": "rounded to {bits} a number (Lloyd-Max levels)",
    "grid": "rounded to a grid of {step:g} times their root mean square",
    "ternary": "the signs of the largest {fraction} of its numbers only",
    "kmeans": "rounded to {centers} values",
    "entropy": "packed by an entropy coder",
    "zstd": "packed by zstd",
}


def _coded(codecs: Codecs) -> str:
    said = [_CODECS[codec.name].format(**_amounts(codec.settings)) for codec in codecs]
    loss = "something is lost" if is_lossy(codecs) else "nothing is lost"
    return f"{', '.join(said) or 'as it is'}; {loss}"


def _amounts(settings: Mapping[str, Any]) -> dict[str, Any]:
    told = dict(settings)
    if "bits" in told:
        told["bits"] = _many(told["bits"], "bit")
    if "fraction" in told:
        told["fraction"] = f"{100 * told['fraction']:g}%"
    return told


def _stays(plan: Plan) -> Iterator[str]:
    yield "The data: no record leaves the site"
    local = [glob for glob, where in plan.scope if where == "local"]
    if local:
        yield (
            f"The parts of the model that match {', '.join(local)}: every site keeps its own, and "
            "the saved model does not have them"
        )
    if plan.task_runner.settings.get("optimizer_state") == "keep":
        yield "The state of the optimizer"
    if plan.compression_pipeline.uplink.feedback:
        yield "What the codecs took from its updates so far"
    yield "Private keys, and what the site's own settings say"


def _seen(plan: Plan) -> Iterator[str]:
    if plan.flow is not None:
        yield "The aggregator sees each site's sums, one by one, in the clear"
        yield "A site sees what came of the added sums, never another site's"
    else:
        yield "The aggregator sees each site's update and sums, one by one, in the clear"
        yield "An update can carry information about the data that it was trained on"
        yield "A site sees the averaged models, never another site's update"
    yield (
        "Nobody between them can read anything: every connection is encrypted, and both ends "
        "show certificates of this federation"
    )


def _code(plan: Plan, lock: Lock | None, lines: Mapping[str, int]) -> Iterator[str]:
    yield "The code below runs at every site, in the process that can read the data; review it"
    for what, name in _named(plan):
        yield f"  {what}: {name}"
    if lock is None:
        return
    yield "Files (a node whose files differ from these refuses to run):"
    for name, digest in sorted(lock.files.items()):
        count = f"{_many(lines[name], 'line')}, " if name in lines else ""
        yield f"  {name} ({count}SHA-256 {digest[:12]})"


def _named(plan: Plan) -> Iterator[tuple[str, str]]:
    """Every reference to user code in the plan, and what it is."""
    if plan.task_runner.is_code:
        yield "task runner", plan.task_runner.name
    for key, value in plan.task_runner.settings.items():
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str) and name.startswith("src."):
            yield key.replace("_", " "), name
    yield "data loader", plan.data_loader.name
    for metric in plan.metrics:
        if ":" in metric:
            yield "metric", metric


def _kept(plan: Plan) -> Iterator[str]:
    updates = plan.retention.updates
    if isinstance(updates, KeptRounds):
        yield f"At the aggregator: the updates of the last {_many(updates.rounds, 'round')}"
    elif updates == "all":
        yield "At the aggregator: every update, so that the result can be computed again"
    else:
        yield "At the aggregator: no update, once its round is over; their digests are"
    yield (
        "At the aggregator: the models (first, last, best), the metrics, a journal of the run, "
        "until its operator deletes them"
    )
    yield (
        "At each site: a journal, the logs of its own tasks, the plans and the code that it "
        "approved, until it deletes them"
    )


def _limits(plan: Plan) -> Iterator[str]:
    yield f"After {_many(plan.rounds, 'round')} at the latest"
    if plan.stop is not None:
        yield from _stops(plan.stop)
    if plan.best is not None:
        most = "highest" if plan.best.mode == "max" else "lowest"
        yield f"The best model is the one with the {most} {plan.best.metric}"
    yield from _waits(plan.cohort)
    yield from _gives_up(plan.timeouts)


def _stops(stop: Stop) -> Iterator[str]:
    way, beyond = ("risen", "above") if stop.mode == "max" else ("fallen", "below")
    if stop.reaches is not None:
        yield f"Earlier, when {stop.metric} is {stop.reaches:g} or {beyond}"
    if stop.patience is not None:
        length = _many(stop.patience, "validation")
        yield f"Earlier, when {stop.metric} has not {way} by more than {stop.min_delta} in {length}"
    if stop.after is not None:
        yield f"Earlier, when it has been up for {_seconds(stop.after)}, with the last whole round"


def _waits(cohort: Cohort) -> Iterator[str]:
    if cohort.over > 1:
        yield f"{cohort.over:g} times as many sites are asked as are wanted: the first count"
    if cohort.quorum == "all":
        late = f"within {_seconds(cohort.deadline)}" if cohort.deadline else "however long it takes"
        who = "As many as are wanted" if cohort.over > 1 else "Every site that is asked"
        yield f"{who} must answer, {late}; otherwise the run fails"
    else:
        deadline, grace = cohort.deadline, cohort.grace
        ends = [f"after {_seconds(deadline)} if {cohort.quorum} have by then"] if deadline else []
        ends += [f"{_seconds(grace)} after {cohort.quorum} have"] if grace else []
        every = "every site that is asked has answered"
        yield f"A round ends when {every}, or {', or '.join(ends)}"
    if cohort.deadline:
        yield "Where too few have answered by then and some are gone, it waits for them to return"
    late = "count in the next round" if cohort.late == "next_round" else "are discarded"
    if cohort.over > 1 or cohort.quorum != "all":
        yield f"Answers that come later {late}"


def _gives_up(timeouts: Timeouts) -> Iterator[str]:
    yield f"A site of which nothing is heard for {_seconds(timeouts.idle)} is taken for gone"
    yield f"A site that cannot reach the aggregator for {_seconds(timeouts.connect)} gives up"
    if timeouts.task is not None:
        yield f"A task that computes for more than {_seconds(timeouts.task)} is stopped"


def _seconds(seconds: float) -> str:
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= size and seconds % size == 0:
            return _many(int(seconds // size), unit)
    return f"{seconds:g} seconds"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return _many(size, "byte")
