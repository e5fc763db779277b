"""Whether `src.module:Name` is there and takes its settings: by syntax tree, nothing is imported.

What the syntax tree cannot tell (a decorator, a base class from elsewhere, an attribute that is
assigned) is let pass; the task process finds out.
"""

import ast
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from openfed.plan.check import Loc, finding
from openfed.plan.source import Finding, Node, plain
from openfed.plan.values import CODE, Among, Code, Part, Value, part, shown, suggest

MAX_SOURCE = 1 << 20
_MAX_HOPS = 8

Definition = ast.ClassDef | ast.FunctionDef | None


class Misfit(Exception):
    """What is wrong; `key` is the setting that it is about, if there is one."""

    def __init__(self, code: str, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.key = code, message, key


@dataclass(frozen=True)
class Reference:
    """A place in a plan where user code is named."""

    loc: Loc  # of the name
    name: str
    settings: Mapping[str, object] | None  # None: takes none
    code: Code


def references(tree: Node, model: type[Value], at: Loc = ()) -> Iterator[Reference]:
    """Every reference to user code in a normalised tree."""
    if isinstance(tree.value, dict):
        for key, child in tree.value.items():
            yield from _references(child, part(model, key), (*at, key))


def _references(node: Node, kind: Part, at: Loc) -> Iterator[Reference]:
    if isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _references(child, kind, (*at, index))
    elif isinstance(kind, Code):
        if isinstance(node.value, str) and CODE.fullmatch(node.value):
            yield Reference(at, node.value, None, kind)
    elif isinstance(kind, Among) and node.choice and isinstance(node.value, dict):
        name, settings = str(node.value["name"].value), node.value.get("settings")
        if name in kind.table and settings is not None:
            yield from references(settings, kind.table[name], (*at, "settings"))
        elif kind.code and CODE.fullmatch(name):
            given = plain(settings) if settings is not None else {}
            yield Reference(
                (*at, "name"), name, given if isinstance(given, dict) else {}, kind.code
            )
    elif isinstance(kind, type):
        yield from references(node, kind, at)


def code_findings(tree: Node, model: type[Value], workspace: Path) -> Iterator[Finding]:
    """What is wrong with the user code that a plan names, and with its settings."""
    for reference in references(tree, model):
        try:
            definition = find(workspace, reference.name)
            misfits = list(_misfits(definition, reference))
        except Misfit as error:
            misfits = [error]
        for misfit in misfits:
            loc = reference.loc
            if misfit.key is not None:
                loc = (*loc[:-1], "settings", misfit.key)
            yield finding(tree, loc, misfit.code, misfit.message, key=misfit.code == "P01")


# -- finding the definition ---------------------------------------------------------------------


def find(workspace: Path, reference: str, hops: int = 0) -> Definition:
    """The class or function that `src.module:Name` names; None where it is neither.

    Raises: Misfit: there is no such file, it is not Python, or has no such name.
    """
    module, _, name = reference.partition(":")
    file = _file(workspace, module)
    shown_file = file.relative_to(workspace).as_posix()
    top = dict(_named(_parsed(file, shown_file)))
    if name not in top:
        hint = suggest(name, top)
        listed = ", ".join(key for key in top if not key.startswith("_")) or "nothing"
        raise Misfit("P10", f"{shown_file} has no {name}. {hint}it has: {listed}"[:300])
    node = top[name]
    if isinstance(node, ast.ImportFrom) and hops < _MAX_HOPS:
        original = next(a.name for a in node.names if (a.asname or a.name) == name)
        if not node.level and node.module and CODE.fullmatch(f"{node.module}:{original}"):
            return find(workspace, f"{node.module}:{original}", hops + 1)
    if isinstance(node, ast.ClassDef):
        return _with_init(node, top)
    return node if isinstance(node, ast.FunctionDef) else None


def _file(workspace: Path, module: str) -> Path:
    base = workspace.joinpath(*module.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    wanted = base.with_suffix(".py").relative_to(workspace).as_posix()
    folder = base.parent
    there = sorted(file.stem for file in folder.glob("*.py")) if folder.is_dir() else []
    hint = suggest(base.name, there)
    raise Misfit("P10", f"there is no file {wanted}. {hint}".rstrip())


def _parsed(file: Path, name: str) -> ast.Module:
    try:
        data = file.read_bytes()
        if len(data) > MAX_SOURCE:
            raise ValueError(f"larger than {MAX_SOURCE} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user's "\d" is not our concern
            return ast.parse(data, name)
    except SyntaxError as error:
        raise Misfit("P10", f"{name}:{error.lineno} is not Python: {error.msg}") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise Misfit("P10", f"{name} cannot be read: {str(error)[:100]}") from None


def _named(module: ast.Module | ast.If | ast.Try) -> Iterator[tuple[str, ast.stmt]]:
    """The names at the top of a module, also below `if` and `try`."""
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (((a.asname or a.name).partition(".")[0], node) for a in node.names)
        elif isinstance(node, ast.Assign):
            yield from ((t.id, node) for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node
        elif isinstance(node, ast.If | ast.Try):
            yield from _named(node)


# -- comparing settings with a signature ----------------------------------------------------------


def _with_init(node: ast.ClassDef, top: Mapping[str, ast.stmt], hops: int = 0) -> Definition:
    """The class, with the `__init__` of a base of the same module if it has none."""
    if node.decorator_list or node.keywords or hops > _MAX_HOPS:
        return None
    if _init(node) is not None or not node.bases:
        return node
    base = node.bases[0]
    known = top.get(base.id) if isinstance(base, ast.Name) and len(node.bases) == 1 else None
    return _with_init(known, top, hops + 1) if isinstance(known, ast.ClassDef) else None


def _init(node: ast.ClassDef) -> ast.FunctionDef | None:
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name in ("__init__", "__new__"):
            return member
    return None


def _misfits(definition: Definition, reference: Reference) -> Iterator[Misfit]:
    supplied = reference.code.positional
    if definition is None or supplied is None:
        return
    init = _init(definition) if isinstance(definition, ast.ClassDef) else definition
    name = reference.name.partition(":")[2]
    if init is not None and init.decorator_list:
        return
    arguments = init.args if init else ast.arguments([], [], None, [], [], None, [])
    own = 1 if isinstance(definition, ast.ClassDef) and init else 0
    positional = [*arguments.posonlyargs, *arguments.args][own:]
    if len(positional) < supplied and not arguments.vararg:
        given = "1 argument" if supplied == 1 else f"{supplied} arguments"
        raise Misfit("P11", f"{name} takes {len(positional)} by position; openfed gives {given}")
    yield from _settings(name, arguments, positional, supplied, reference.settings or {})


def _settings(
    name: str,
    arguments: ast.arguments,
    positional: list[ast.arg],
    supplied: int,
    given: Mapping[str, object],
) -> Iterator[Misfit]:
    only = len(arguments.posonlyargs)  # cannot be given by keyword
    free = [arg for arg in positional[supplied:] if arg not in arguments.posonlyargs[:only]]
    known = {arg.arg: arg for arg in [*free, *arguments.kwonlyargs]}
    taken = [arg.arg for arg in positional[:supplied]]
    for key, value in given.items():
        if key in taken:
            yield Misfit("P11", f"{name} gets {key} from openfed: remove it", key)
        elif key in known:
            yield from _literal(key, value, known[key].annotation)
        elif not arguments.kwarg:
            listed = f"it takes: {', '.join(known)}" if known else "it takes no settings"
            yield Misfit("P01", f"{name} has no argument {key}. {suggest(key, known)}{listed}", key)
    for missing in sorted(_required(arguments, positional[supplied:]) - given.keys()):
        yield Misfit("P06", f"{name} needs {missing}: add it, as in {{{name}: {{{missing}: ...}}}}")


def _required(arguments: ast.arguments, free: list[ast.arg]) -> set[str]:
    defaults = len(arguments.defaults)
    bare = free[: max(0, len(free) - defaults)]
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {arg.arg for arg in bare} | {arg.arg for arg, default in pairs if default is None}


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "list": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "None": (type(None),),
}


def _literal(key: str, value: object, annotation: ast.expr | None) -> Iterator[Misfit]:
    """A value against `int`, `float | None`, `list[int]`, `Optional[str]`; others are let pass."""
    names = _names(annotation)
    if not names or any(name not in _TYPES for name in names):
        return
    allowed = {kind for name in names for kind in _TYPES[name]}
    if type(value) not in allowed:
        yield Misfit("P07", f"expected {' or '.join(names)}, got {shown(value)}", key)


def _names(annotation: ast.expr | None) -> list[str]:
    """The alternatives of an annotation by name; empty where they cannot be told."""
    if isinstance(annotation, ast.Name):
        return [annotation.id]
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return ["None"]
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        left, right = _names(annotation.left), _names(annotation.right)
        return [*left, *right] if left and right else []
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Optional":
            inner = _names(annotation.slice)
            return [*inner, "None"] if inner else []
        return [annotation.value.id]
    return []
