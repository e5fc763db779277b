"""What only a site decides, never part of the plan and never exported: `site.yaml`.

A plan cannot widen a site's limits: where both say something, the stricter holds.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    InstanceOf,
    JsonValue,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from openfed.errors import PlanError, PolicyError
from openfed.parse import Proxy, is_ip, parse_proxy, split_address
from openfed.plan.check import Loc, checked, finding, locate
from openfed.plan.choices import LOSS, metric_name
from openfed.plan.load import problems, read_file, workspace_of
from openfed.plan.local import Device, Isolation, Threads
from openfed.plan.lock import Lock
from openfed.plan.schema import Plan
from openfed.plan.source import Node, Place
from openfed.plan.values import (
    Count,
    Duration,
    Name,
    Positive,
    Text,
    Value,
    refuse,
    shown,
)
from openfed.tensors.record import FLOATING, Kind, Signature, Spec, matches
from openfed.tensors.update import update_signature

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _size(value: object) -> int:
    if type(value) is int and value >= 0:
        raise refuse("P07", f"expected a size such as 500MB or 2GiB, got {value}: say the unit")
    found = _SIZE.fullmatch(value) if isinstance(value, str) and len(value) < 30 else None
    if not found:
        raise refuse("P07", f"expected a size such as 500MB or 2GiB, got {shown(value)}")
    size = float(found[1]) * _UNITS[found[2]]
    if not 1 <= size <= 1 << 60:
        raise refuse("P08", f"expected a size between 1B and 1048576TiB, got {shown(value)}")
    return int(size)


Size = Annotated[
    int,
    BeforeValidator(_size),
    PlainSerializer(lambda size: f"{size}B", return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$"}),
]
"""Bytes; written with a unit (`2GiB`)."""


def _address(text: str) -> str:
    try:
        host, port = split_address(text)
    except ValueError:
        host, port = "", 0
    if not port or (is_ip(host) and host in ("0.0.0.0", "::")):
        message = "expected host:port to dial, as in fl.example.org:50051 or [2001:db8::7]:50051"
        raise refuse("P13", f"{message}, got {shown(text)}")
    return text


def _proxy(value: object) -> Proxy | None:
    """No message shows the value: it may hold a password."""
    if value is None or value == "none":
        return None
    try:
        return parse_proxy(value if isinstance(value, str) else "")
    except ValueError as error:
        message = f"{error}; or none. Write @ : / and % of a password as %40 %3A %2F and %25"
        raise refuse("P13", f"{message}; what the environment says is never used") from None


class Limits(Value):
    """`seconds` of one task; `bytes_out` of all replies of a run; `metrics` that may leave, by
    name; `samples`: the smallest n of an update that may leave. None: no limit."""

    rounds: Count | None = Field(default=None, examples=[100])
    seconds: Duration | None = Field(default=None, examples=["30m"])
    bytes_out: Size | None = Field(default=None, examples=["2GiB"])
    metrics: Annotated[tuple[Text, ...], Field(max_length=1000)] | None = Field(
        default=None, examples=["[accuracy]"]
    )
    samples: Count | None = Field(default=None, examples=[50])


class Noise(Value):
    """Gaussian, of this standard deviation, on every floating parameter of the update."""

    std: Positive = Field(examples=[0.001])


class Filter(Value):
    """One of its keys. `clip_norm`: the largest L2 norm of the update's floating parameters;
    `drop`: globs of the entries that leave as zeros."""

    clip_norm: Positive | None = Field(default=None, examples=[1.0])
    noise: Noise | None = Field(default=None, examples=["{std: 0.001}"])
    drop: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, examples=['["head.*"]']
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            known = " | ".join(type(self).model_fields)
            raise refuse("P40", f"expected one of {known} in each item of the list, got {found}")
        return self


def _ordered(filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
    noisy = False
    for each in filters:
        if noisy and each.clip_norm is not None:
            raise refuse("P41", "clip_norm after noise would clip the noise: put it before it")
        noisy = noisy or each.noise is not None
    return filters


_LEAST_MEMORY = 128 << 20
USER = re.compile(r"(0|[1-9][0-9]{0,9}):(0|[1-9][0-9]{0,9})")
"""UID:GID."""


def _memory(size: int) -> int:
    if size < _LEAST_MEMORY:
        raise refuse("P08", f"expected at least {in_bytes(_LEAST_MEMORY)}, got {in_bytes(size)}")
    return size


def _user(value: object) -> object:
    if value is None or (isinstance(value, str) and USER.fullmatch(value)):
        return value
    raise refuse("P07", f'expected numbers as in "1000:1000", UID:GID, got {shown(value)}')


class Container(Value):
    """What one container may use; each of a site's two. `cpus`: None: one for each of the site's
    `threads`; `user`: UID:GID, None: whom the workspace belongs to."""

    memory: Annotated[Size, AfterValidator(_memory)] = Field(default=4 << 30, examples=["4GiB"])
    cpus: Annotated[float, Field(strict=True, ge=0.01, le=4096)] | None = Field(
        default=None, examples=[2.0]
    )
    pids: Annotated[int, Field(strict=True, ge=16, le=1 << 20)] = Field(default=512, examples=[256])
    user: Annotated[Text | None, BeforeValidator(_user)] = Field(
        default=None, examples=['"1000:1000"']
    )


class Site(Value):
    """`site.yaml`. `data` is handed to the plan's loader as it stands; `address` is dialled instead
    of the plan's; `filters` run in order on every update, last of all before the codecs."""

    name: Name = Field(examples=["one"])
    data: JsonValue = Field(examples=["data/one"])
    device: Device = "auto"
    threads: Threads = 1
    address: Annotated[Text, AfterValidator(_address)] | None = None
    proxy: Annotated[InstanceOf[Proxy] | None, BeforeValidator(_proxy)] = None
    isolation: Isolation = "process"
    limits: Annotated[Limits, BeforeValidator(lambda found: {} if found is None else found)] = (
        Limits()
    )
    filters: Annotated[
        tuple[Filter, ...],
        Field(max_length=100, examples=["[{clip_norm: 1.0}]"]),
        AfterValidator(_ordered),
        BeforeValidator(lambda found: () if found is None else found),
    ] = ()
    container: Annotated[
        Container, BeforeValidator(lambda found: {} if found is None else found)
    ] = Container()


def read_site(path: Path) -> Site:
    """Raises: PlanError: with every problem, in file order."""
    tree, found = read_file(path, workspace_of(path))
    site = None
    if tree is not None:
        site, more = checked(tree, Site)
        found += more
        if site and site.proxy and site.proxy.password and path.stat().st_mode & 0o077:
            message = "others may read this file, and the password in it; run: chmod 600 site.yaml"
            found.append(finding(tree, ("proxy",), "P44", message))
    if found or site is None:
        raise PlanError(problems(found))
    return site


# -- a plan against a site ------------------------------------------------------------------------


@dataclass(frozen=True)
class Objection:
    """What of a plan a site's settings forbid; `at` is the place in `site.yaml`."""

    code: str
    at: Loc
    message: str

    def __str__(self) -> str:
        key = ".".join(map(str, self.at))
        return f"{self.code}  site.yaml  {key}  {self.message}"


def objections(site: Site, plan: Plan, lock: Lock | None = None) -> list[Objection]:
    """All that is certain before anything starts; without `lock`, what takes no model to know."""
    entries = update_signature(lock.signature) if lock else ()
    found = [*_rounds(site, plan), *_metrics(site, plan), *_noise(site, plan), *_sums(site, plan)]
    if lock is not None and _trains(plan):
        found += [*_bytes_out(site, plan, entries), *_drops(site, entries)]
    return found


def refusal(path: Path, found: Sequence[Objection]) -> PolicyError:
    """The error that says them all, with their lines in the `site.yaml` at `path`."""
    tree, _ = read_file(path, workspace_of(path))
    tree = tree or Node({}, Place(0, 0, 0, path.name))
    lines = []
    for each in found:
        at, key = locate(tree, each.at)
        lines.append(f"{each.code}  {at}  {key}  {each.message}")
    code, _, rest = "\n".join(lines).partition("  ")
    return PolicyError(code, rest)


def _trains(plan: Plan) -> bool:
    return any(task.name == "train" for task in plan.tasks)


def _rounds(site: Site, plan: Plan) -> Iterator[Objection]:
    most = site.limits.rounds
    if most is not None and plan.rounds > most:
        message = f"this site takes part in at most {most} rounds, and the plan says rounds: "
        message += f"{plan.rounds}; ask its author for fewer, or raise the limit"
        yield Objection("R30", ("limits", "rounds"), message)


def _metrics(site: Site, plan: Plan) -> Iterator[Objection]:
    allowed = site.limits.metrics
    if allowed is None:
        return
    wanted = {metric_name(metric): "metrics" for metric in plan.metrics}
    for key, rule in (("best", plan.best), ("stop", plan.stop)):
        if rule is not None and rule.metric == LOSS:
            wanted[LOSS] = f"{key}.metric"
    for name, key in wanted.items():
        if name not in allowed:
            listed = ", ".join(allowed) or "none"
            message = f"lets these leave: {listed}; the plan's {key} asks for {name}. Allow it, "
            message += "or ask the plan's author to do without"
            yield Objection("R31", ("limits", "metrics"), message)


def _sums(site: Site, plan: Plan) -> Iterator[Objection]:
    if plan.flow is not None:
        for index, _ in enumerate(site.filters):
            message = f"changes what leaves, and {plan.flow.name} adds up sums that must be exact: "
            message += "the answer of all sites would be wrong; do without it, or leave the run"
            yield Objection("R38", ("filters", index), message)


def _noise(site: Site, plan: Plan) -> Iterator[Objection]:
    if not plan.compression_pipeline.uplink.feedback:
        return
    for index, each in enumerate(site.filters):
        if each.noise is not None:
            message = "adds noise, and the plan's compression_pipeline.uplink.feedback sends in "
            message += "later rounds what it took from an update, noise too: one of the two must go"
            yield Objection("R33", ("filters", index, "noise"), message)


def _bytes_out(site: Site, plan: Plan, entries: Signature) -> Iterator[Objection]:
    most, least = site.limits.bytes_out, _least(plan, entries)
    if most is not None and least > most:
        message = f"at most {in_bytes(most)} may leave, and the plan's rounds: {plan.rounds} send "
        message += f"{in_bytes(least)} or more; raise the limit, or ask for compression_pipeline"
        yield Objection("R32", ("limits", "bytes_out"), message)


def _least(plan: Plan, entries: Signature) -> int:
    """Bytes that the updates of a whole run have at least: of entries that travel as they are,
    where every site is asked in every round."""
    if plan.stop is not None or not plan.cohort.everyone(len(plan.named)):
        return 0
    uplink = plan.compression_pipeline.uplink
    return plan.rounds * sum(spec.size for spec in entries if not uplink.chain(spec.name))


def _drops(site: Site, entries: Signature) -> Iterator[Objection]:
    for index, each in enumerate(site.filters):
        for place, glob in enumerate(each.drop or ()):
            if not any(fnmatchcase(spec.name, glob) for spec in entries):
                names = ", ".join(spec.name for spec in entries[:5])
                message = f"{shown(glob)} matches no entry of the plan's model, so that what it is "
                message += f"to keep here would leave; the entries are: {names}"
                message += ", ..." if len(entries) > 5 else ""
                yield Objection("R35", ("filters", index, "drop", place), message)


def remarks(site: Site, plan: Plan, lock: Lock) -> list[str]:
    """What is no objection and may surprise: a limit that may be reached, what no filter sees."""
    entries = update_signature(lock.signature) if _trains(plan) else ()
    found, most = [], site.limits.bytes_out
    raw = plan.rounds * sum(spec.size for spec in entries)
    if most is not None and _least(plan, entries) <= most < raw:
        found.append(
            f"site.yaml: limits.bytes_out is {in_bytes(most)}; the updates of all rounds have "
            f"{in_bytes(raw)} before codecs: this site leaves the run if they do not save enough"
        )
    dropped = [glob for each in site.filters for glob in each.drop or ()]
    exact = [spec.name for spec in entries if not noised(spec) and not matches(spec.name, dropped)]
    if exact and any(each.drop is None for each in site.filters):
        listed = ", ".join(exact[:5]) + (", ..." if len(exact) > 5 else "")
        found.append(
            f"site.yaml: clip_norm and noise leave buffers and states alone: {listed} leave as they"
            " are; a drop keeps them here"
        )
    return found


def noised(spec: Spec) -> bool:
    """Whether clipping and noise see this entry of an update: a floating parameter, or what a
    method tells of one beside it."""
    return spec.kind in (Kind.PARAMETER, Kind.CONTROL) and spec.dtype in FLOATING


# -- in words -------------------------------------------------------------------------------------


def in_words(site: Site) -> list[str]:
    """What the site has set, a line each, for people."""
    limits = site.limits
    lines = [f"The address that it dials: {site.address}"] if site.address else []
    lines += [f"It reaches the aggregator through the proxy {site.proxy}"] if site.proxy else []
    if site.isolation != "process":
        lines.append(f"The code that sees its data runs in a {site.isolation}, or not at all")
    if limits.rounds is not None:
        lines.append(f"It takes part in plans of at most {limits.rounds} rounds")
    if limits.seconds is not None:
        lines.append(f"A task that takes longer than {limits.seconds:g} seconds is stopped")
    if limits.bytes_out is not None:
        lines.append(f"It sends at most {in_bytes(limits.bytes_out)} in a run, then it leaves it")
    if limits.metrics is not None:
        listed = ", ".join(limits.metrics)
        lines.append(f"Of the metrics only these leave: {listed}" if listed else "No metric leaves")
    if limits.samples is not None:
        lines.append(f"Nothing of a training with fewer than {limits.samples} samples leaves")
    return [*lines, *(f"Before an update leaves, {_filter(each)}" for each in site.filters)]


def _filter(each: Filter) -> str:
    if each.clip_norm is not None:
        return f"its floating parameters are scaled down to an L2 norm of at most {each.clip_norm}"
    if each.noise is not None:
        return f"noise of standard deviation {each.noise.std} is added to its floating parameters"
    return f"the entries {', '.join(each.drop or ())} are set to zero"


def in_bytes(size: int) -> str:
    """`2 GiB`, `1.5 MB`: in the unit that fits."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit] and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]} {unit}"
    for unit in ("TB", "GB", "MB", "kB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.4g} {unit}"
    return f"{size} bytes"
