"""Trees of a plan: choices in one shape, fragments merged, overrides applied."""

from openfed.plan.source import Finding, Node, Place, parse
from openfed.plan.values import CODE, Among, Below, Code, Part, Value, part

_LONG = (frozenset({"template"}), frozenset({"template", "settings"}))
"""The keys of OpenFL's shape of a choice."""


def normalised(node: Node, model: type[Value], base: Node | None = None) -> Node:
    """`node` with every choice as `{name, settings}`, where `model` says that one stands.

    `base`, for overrides: the normalised plan below, which knows the names that an override such
    as `strategy.lr` leaves out.
    """
    if not isinstance(node.value, dict):
        return node
    below = base.value if base and isinstance(base.value, dict) else {}
    values = {
        key: _normalised(child, part(model, key), below.get(key))
        for key, child in node.value.items()
    }
    return Node(values, node.at, node.keys)


def _normalised(node: Node, kind: Part, base: Node | None) -> Node:
    if kind is None or isinstance(kind, Code):
        return node
    if isinstance(node.value, list):
        if isinstance(kind, type) and kind.short:
            whole = Node({kind.short: node}, node.at, {kind.short: node.at})
            return normalised(whole, kind)
        return Node([_normalised(child, kind, None) for child in node.value], node.at)
    if isinstance(kind, Below):
        return _below(node, kind)
    if isinstance(kind, Among):
        return _choice(node, kind, base if base and base.choice else None)
    return normalised(node, kind, base)


def _below(node: Node, kind: Below) -> Node:
    if not isinstance(node.value, dict):
        return node
    values = {key: _normalised(child, kind.part, None) for key, child in node.value.items()}
    return Node(values, node.at, node.keys)


def _choice(node: Node, among: Among, base: Node | None) -> Node:
    """A bare name, `{name: {settings}}` and `{template: name, settings: {...}}` as one shape;
    anything else as it is, to be refused."""
    if isinstance(node.value, str):
        return Node({"name": node}, node.at, {"name": node.at}, choice=True)
    if not isinstance(node.value, dict) or not node.value:
        return node
    keys = frozenset(node.value)
    if keys in _LONG and isinstance(node.value["template"].value, str):
        name, settings = node.value["template"], node.value.get("settings")
        return _chosen(node, among, name, settings, None)
    if base and not any(key in among.table or CODE.fullmatch(key) for key in keys):
        assert isinstance(base.value, dict)
        return _chosen(node, among, base.value["name"], node, base.value.get("settings"))
    if len(keys) == 1:
        ((key, settings),) = node.value.items()
        return _chosen(node, among, Node(key, node.keys[key]), settings, _settings(base, key))
    return node


def _settings(base: Node | None, name: str) -> Node | None:
    if base and isinstance(base.value, dict) and base.value["name"].value == name:
        return base.value.get("settings")
    return None


def _chosen(node: Node, among: Among, name: Node, settings: Node | None, base: Node | None) -> Node:
    values = {"name": name}
    if settings is not None and settings.value is not None:
        model = among.table.get(str(name.value))
        values["settings"] = normalised(settings, model, base) if model else settings
    return Node(values, node.at, {"name": name.at, "settings": name.at}, choice=True)


def merged(base: Node, over: Node) -> Node:
    """`over` on top of `base`: mappings are merged key by key, everything else is replaced.
    A choice of another name replaces the whole choice."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if base.choice != over.choice:
        return over
    if base.choice and base.value["name"].value != over.value["name"].value:
        return over
    values = dict(base.value)
    for key, child in over.value.items():
        values[key] = merged(values[key], child) if key in values else child
    return Node(values, over.at, {**base.keys, **over.keys}, over.choice)


def override(text: str, rank: int) -> tuple[Node | None, list[Finding]]:
    """The tree of `key.path=value`; the value is YAML."""
    path, equals, value = text.partition("=")
    at = Place(rank, 0, 0, f"-s {text}")
    steps = [step.strip() for step in path.split(".")]
    if not equals or not all(steps):
        message = "expected key.path=value, as in -s strategy.lr=0.1"
        return None, [Finding(at, "P17", path.strip(), message)]
    node, found = parse(value.encode(errors="replace") or b"null", at.file, rank)
    key = ".".join(steps)
    found = [Finding(at, each.code, each.path or key, each.message) for each in found]
    if node is None:
        return None, found
    node = _moved(node, at)
    for step in reversed(steps):
        node = Node({step: node}, at, {step: at})
    return node, found


def _moved(node: Node, at: Place) -> Node:
    """The same values, all at one place."""
    if isinstance(node.value, dict):
        values = {key: _moved(child, at) for key, child in node.value.items()}
        return Node(values, at, dict.fromkeys(values, at))
    if isinstance(node.value, list):
        return Node([_moved(child, at) for child in node.value], at)
    return Node(node.value, at)
