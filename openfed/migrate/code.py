"""What the workspace's code is and needs, from its syntax trees: nothing is imported."""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from openfed.plan.source import Finding, Place

MAX_SOURCE = 1 << 20
ADAPTER = Path(__file__).with_name("adapter.txt")
"""The text of `src/openfl_adapter.py`."""

_REFUSED = {
    "KerasTaskRunner": "Keras",
    "TensorFlowTaskRunner": "TensorFlow",
    "XGBoostTaskRunner": "XGBoost",
    "FederatedAnalyticsTaskRunner": "federated analytics",
    "GaNDLFTaskRunner": "GaNDLF",
    "FlowerTaskRunner": "Flower",
    "FastEstimatorTaskRunner": "FastEstimator",
    "CoreTaskRunner": "OpenFL's interactive API",
    "TaskRunner": "no framework, which moves its tensors itself",
}
"""Classes of OpenFL that openfed has no runner for: what each is for."""


@dataclass(frozen=True)
class Source:
    """One file of `src`, with what it takes from where: local name -> `module:name`."""

    name: str  # src.models.net
    path: str  # src/models/net.py
    package: str  # src.models
    tree: ast.Module
    taken: Mapping[str, str]


def offered() -> dict[str, frozenset[str]]:
    """The modules of OpenFL that the adapter stands in for, with the names in each."""
    tree = ast.parse(ADAPTER.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES":
            assert isinstance(node.value, ast.Dict)
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {_text(key): frozenset(map(_text, _keys(names))) for key, names in pairs}
    raise AssertionError("the adapter has no MODULES")


def _text(node: ast.expr | None) -> str:
    assert isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value


def _keys(node: ast.expr) -> list[ast.expr | None]:
    assert isinstance(node, ast.Dict)
    return node.keys


# -- the files --------------------------------------------------------------------------------


def read_sources(root: Path, modules: tuple[str, ...]) -> tuple[dict[str, Source], list[Finding]]:
    """`modules` (as `src.net`) and every module of `src` that they import, by name."""
    sources: dict[str, Source] = {}
    found: list[Finding] = []
    wanted = list(modules)
    while wanted:
        name = wanted.pop()
        if name in sources or (path := _file(root, name)) is None:
            continue
        read = _read(root, path, name)
        if isinstance(read, Finding):
            found.append(read)
            continue
        sources[name] = read
        for taken in read.taken.values():
            module, _, attribute = taken.partition(":")
            if module == "src" or module.startswith("src."):
                wanted += [module, f"{module}.{attribute}"] if attribute else [module]
    return sources, found


def _file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file() and not path.is_symlink():
            return path
    return None


def _read(root: Path, path: Path, name: str) -> Source | Finding:
    shown = path.relative_to(root).as_posix()
    try:
        data = path.read_bytes()
        if len(data) > MAX_SOURCE:
            raise ValueError(f"larger than {MAX_SOURCE} bytes")
        tree = ast.parse(data, shown)
    except SyntaxError as error:
        at = Place(0, error.lineno or 0, error.offset or 1, shown)
        return Finding(at, "U55", "", f"is not Python: {error.msg}")
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return Finding(Place(0, 0, 0, shown), "U55", "", f"cannot be read: {str(error)[:100]}")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return Source(name, shown, package, tree, dict(_taken(tree, package)))


def _taken(tree: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """`import a.b` is a -> a, and a.b -> a.b; `from a import b as c` is c -> a:b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, package)
            for alias in node.names:
                yield alias.asname or alias.name, f"{module}:{alias.name}"


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


# -- what it needs of OpenFL --------------------------------------------------------------------


def missing_imports(sources: Mapping[str, Source]) -> Iterator[Finding]:
    """Every import of something of OpenFL's that the adapter has nothing for."""
    known = offered()
    for source in sources.values():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            at = Place(0, node.lineno, node.col_offset + 1, source.path)
            for module, name in _imports(node, source.package):
                if not _stands(module, name, known):
                    what = f"{module}.{name}" if name else module
                    told = f"imports {what}, and the adapter has nothing that stands for it"
                    yield Finding(at, "U55", what, f"{told}: write that part without it")


def _stands(module: str, name: str, known: Mapping[str, frozenset[str]]) -> bool:
    """Whether an import is none of OpenFL's, or one that the adapter stands in for."""
    if module.partition(".")[0] != "openfl":
        return True
    return module in known and (not name or name in known[module] or f"{module}.{name}" in known)


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    else:
        yield from ((_absolute(node, package), alias.name) for alias in node.names)


# -- what kind of runner it is --------------------------------------------------------------------


def class_finding(
    sources: Mapping[str, Source], reference: str, at: Place, path: str, *, runner: bool
) -> Finding | None:
    """What keeps the class `src.module:Name` from being run, if anything does."""
    module, _, name = reference.partition(":")
    source = sources.get(module)
    if source is None:
        file = module.replace(".", "/")
        return Finding(at, "U55", path, f"there is no readable file {file}.py")
    if not runner:
        known = name in _top(source.tree) or name in source.taken
        return None if known else Finding(at, "U55", path, f"{source.path} has no {name}")
    line = list(_line(sources, source, name, 0))
    if any(each.node is None and each.name == "PyTorchTaskRunner" for each in line):
        return None
    base = next((each.name for each in line if each.name in _REFUSED), line[-1].name)
    if told := refused_runner(name, base):
        return Finding(at, "U52", path, told)
    told = f"{name} of {source.path} is no subclass of PyTorchTaskRunner that can be seen"
    return Finding(at, "U52", path, told + (f": it comes from {base}" if base != name else ""))


def refused_runner(name: str, base: str) -> str:
    """Why the runner `name`, which comes from OpenFL's `base`, is not run; "" where that is none
    of those that are known."""
    if base not in _REFUSED:
        return ""
    told = f"{name} is a task runner for {_REFUSED[base]}"
    told += f" ({base})" if base != name else ""
    remedy = "openfed runs PyTorchTaskRunner of OpenFL; for others, write a runner (README)"
    return f"{told}: {remedy}"


@dataclass(frozen=True)
class Ancestor:
    """A class that another comes from, itself included: `source` and `node` where it is in src."""

    name: str
    source: Source | None = None
    node: ast.ClassDef | None = None


def _line(
    sources: Mapping[str, Source], source: Source, name: str, hops: int
) -> Iterator[Ancestor]:
    """A class and what it comes from, as far as it can be followed, in the order of look-up."""
    node = _top(source.tree).get(name)
    if isinstance(node, ast.ClassDef) and hops < 12:
        yield Ancestor(name, source, node)
        for base in node.bases:
            if isinstance(base, ast.Name | ast.Attribute):
                yield from _line(sources, source, ast.unparse(base), hops + 1)
        return
    head, _, rest = name.rpartition(".") if "." in name else (name, "", "")
    taken = source.taken.get(head, "")
    module, _, attribute = taken.partition(":")
    target = rest or attribute
    inner = f"{module}.{attribute}" if rest and attribute else module
    if inner in sources and hops < 12:
        yield from _line(sources, sources[inner], target, hops + 1)
    else:
        yield Ancestor(target if inner.partition(".")[0] == "openfl" else (taken or name))


def _top(tree: ast.Module) -> dict[str, ast.stmt]:
    kinds = ast.ClassDef | ast.FunctionDef
    return {node.name: node for node in ast.walk(tree) if isinstance(node, kinds)}


@dataclass(frozen=True)
class Class:
    """What can be seen of the class `reference`, `src.module:Name`: its ancestors, itself first,
    and the methods that it has from those in src. "" is none at all."""

    reference: str
    line: tuple[Ancestor, ...]
    methods: Mapping[str, tuple[Source, ast.FunctionDef]]

    @property
    def name(self) -> str:
        return self.reference.partition(":")[2]


def look(sources: Mapping[str, Source], reference: str) -> Class:
    """The class that `src.module:Name` names."""
    module, _, name = reference.partition(":")
    line = tuple(_line(sources, sources[module], name, 0)) if module in sources else ()
    methods: dict[str, tuple[Source, ast.FunctionDef]] = {}
    for each in line:
        for node in each.node.body if each.node else ():
            if isinstance(node, ast.FunctionDef) and each.source:
                methods.setdefault(node.name, (each.source, node))
    return Class(reference, line, methods)


_MOVES = {
    "state_dict": "what travels is the state of the module itself",
    "load_state_dict": "what travels is the state of the module itself",
    "get_tensor_dict": "what travels is the module's parameters and buffers",
    "set_tensor_dict": "what travels is the module's parameters and buffers",
}


def own_transfer(runner: Class) -> Iterator[Finding]:
    """Every method with which a runner decides itself what travels: openfed would not ask it."""
    for name, why in _MOVES.items():
        if name in runner.methods:
            source, node = runner.methods[name]
            at = Place(0, node.lineno, node.col_offset + 1, source.path)
            told = f"defines {name}, but in openfed {why}"
            yield Finding(at, "U55", name, f"{told}: remove it, or write a runner (README)")


def made_without_data(loader: Class) -> bool:
    """Whether the loader's constructor looks whether there is a data_path: OpenFL 1.9 makes it with
    None where only the model is wanted."""
    if "__init__" not in loader.methods:
        return False
    return any(map(_asks_for_path, ast.walk(loader.methods["__init__"][1])))


def _asks_for_path(node: ast.AST) -> bool:
    """Whether it is `data_path is None`, `data_path is not None` or `not data_path`."""
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
        return {"data_path", "None"} == {ast.unparse(node.left), ast.unparse(node.comparators[0])}
    negated = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return negated and ast.unparse(node) == "not data_path"


def returned_metric(runner: Class, methods: tuple[str, ...], default: str | None) -> str | None:
    """The name of the metric that the first of `methods` that the class defines returns: None where
    it is made up at run time, `default` where it is left to PyTorchTaskRunner."""
    for method in methods:
        if method in runner.methods:
            names = set(_metric_names(runner.methods[method][1]))
            return names.pop() if len(names) == 1 else None
    return default


def _metric_names(function: ast.FunctionDef) -> Iterator[str | None]:
    """Of every Metric(...) that the function makes, None for one that is no literal; and the
    literal ones of TensorKey(...), which names other things too."""
    for node in ast.walk(function):
        made = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if made not in ("Metric", "TensorKey"):
            continue
        assert isinstance(node, ast.Call)
        keywords = {each.arg: each.value for each in node.keywords}
        given = keywords.get("name") or keywords.get("tensor_name") or next(iter(node.args), None)
        if isinstance(given, ast.Constant) and isinstance(given.value, str):
            yield given.value
        elif made == "Metric":
            yield None


def asked_of_data(runner: Class) -> tuple[str, ...]:
    """What the runner's modules ask its data loader for, as far as `data_facts` can answer it."""
    asked = set()
    trees = {each.source.path: each.source.tree for each in runner.line if each.source}
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute):
            name = node.attr.removeprefix("get_")
            loader = ast.unparse(node.value).endswith("data_loader")
            if name in ("feature_shape", "num_classes") and (loader or name == "feature_shape"):
                asked.add(name)
    return tuple(sorted(asked))


# -- what it needs of others ----------------------------------------------------------------------

_BROUGHT = {
    "flatten_json": "flatten_json",
    "pandas": "pandas",
    "psutil": "psutil",
    "requests": "requests",
    "sklearn": "scikit-learn",
    "tensorboardX": "tensorboardX",
    "tqdm": "tqdm",
}
"""What OpenFL installs and openfed does not: by import, the name to install."""


def not_installed(sources: Mapping[str, Source], root: Path) -> dict[str, str]:
    """The packages that are not here, by the names that the code imports, and the file that imports
    each. Nothing is imported; imports inside of functions and of `try` count like all others."""
    found: dict[str, str] = {}
    for source in sources.values():
        for taken in source.taken.values():
            top = taken.partition(":")[0].partition(".")[0]
            own = (root / top).is_dir() or (root / f"{top}.py").is_file()
            if top not in ("", "openfl", "src") and not own and not _installed(top):
                found.setdefault(top, source.path)
    return dict(sorted(found.items()))


def _installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def brought_by_openfl(sources: Mapping[str, Source]) -> dict[str, str]:
    """The packages that the code imports and had from OpenFL, and the file that imports each."""
    found: dict[str, str] = {}
    for source in sources.values():
        for taken in source.taken.values():
            top = taken.partition(":")[0].partition(".")[0]
            if top in _BROUGHT:
                found.setdefault(_BROUGHT[top], source.path)
    return dict(sorted(found.items()))
