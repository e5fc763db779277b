"""The shape of the house: what may import what, and what no file may do. Read from syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import openfed

PACKAGE = Path(openfed.__file__).parent


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ORDER = words(
    """errors failpoints typing parse files archive tensors data pki plan codec strategy exact
    privacy tasks ask wire store transport flow node registry assemble workspace migrate travel
    observe simulate launch cli __main__"""
)
"""Lowest first: a module imports from its own part and from parts to the left, nothing else."""

ONLY_IN = {
    "torch": tuple(f"tasks/torch{part}.py" for part in ("", "_batches", "_methods", "_state")),
    "sklearn": ("tasks/sklearn.py",),
    "grpc": ("transport/",),
    "pydantic": ("plan/",),
    "cryptography": ("pki/", "transport/probe.py"),
    "yaml": ("plan/", "pki/disk.py"),
    "sqlite3": ("store/",),
    "safetensors": ("tensors/model_file.py",),
    "rich": ("observe/",),
    "click": ("cli/",),
    "docker": ("launch/containers.py", "launch/reaper.py", "launch/dockerize.py"),
    "pandas": ("launch/result.py",),
    "google": ("wire/",),
    "zstandard": ("codec/zstd.py",),
    "constriction": ("codec/entropy.py",),
    "pyarrow": ("data/parquet.py",),
    "PIL": ("data/images.py",),
}
"""Where a library may be imported, at module level or in a function."""

PURE = (
    "tensors/",
    "strategy/",
    "exact/",
    "ask/",
    "codec/",
    *(f"data/{each}.py" for each in words("table contract partition")),
)
TOUCH_FILES = ("tensors/frame.py", "tensors/model_file.py")
EFFECTS = words(
    """os time datetime random secrets threading asyncio multiprocessing subprocess socket ssl
    pathlib shutil tempfile signal click grpc requests urllib http logging"""
)
"""What a pure part may not import: clocks, disks, sockets, threads, chance."""

UNPICKLERS = words("pickle cPickle _pickle marshal shelve dill cloudpickle joblib")
CALLS = words(
    """eval exec compile __import__ torch.load torch.hub.load yaml.load yaml.load_all
    yaml.full_load yaml.unsafe_load yaml.unsafe_load_all os.system os.popen numpy.fromregex
    grpc.insecure_channel grpc.aio.insecure_channel"""
)
METHODS = words("add_insecure_port insecure_channel insecure_server_credentials")
BY_NAME = ("cli/main.py", "tasks/runners.py")
"""Where a module may be imported by a name that is only known at run time."""


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.endswith("_pb2.py")]


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that the tree imports, whole, in any form, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join(([*base] if node.level else []) + [node.module or ""]).strip(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(module: str) -> str:
    """`openfed.plan.load.load_plan` -> `plan`; what the root itself offers counts as lowest."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in ORDER else ORDER[0]


def wrong_imports(source: str, where: str) -> list[str]:
    """What a file at `where` (in the package) imports and may not."""
    part = where.split("/")[0].removesuffix(".py")
    package = "openfed." + where.rsplit("/", 1)[0].replace("/", ".")
    found = []
    for module in imported(ast.parse(source), package):
        top = module.split(".")[0]
        if top == "openfed" and ORDER.index(part_of(module)) > ORDER.index(part):
            found.append(f"{where} imports {module}, which lies above it")
        if top in ONLY_IN and not where.startswith(ONLY_IN[top]):
            found.append(f"{where} imports {top}, which belongs in {ONLY_IN[top]}")
        if top in UNPICKLERS:
            found.append(f"{where} imports {top}, which runs what it reads")
        if top in EFFECTS and where.startswith(PURE) and where not in TOUCH_FILES:
            found.append(f"{where} imports {top}, and should be pure")
    return found


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def wrong_calls(source: str, where: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"{where} imports {name}" for name in sorted(named & set(CALLS))]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func).replace("np.", "numpy.")
        keywords = {k.arg: getattr(k.value, "value", "?") for k in node.keywords}
        if name in CALLS or name.rpartition(".")[2] in METHODS:
            found.append(f"{where}:{node.lineno} calls {name}")
        if keywords.get("allow_pickle", name == "numpy.load") or keywords.get("shell", False):
            found.append(f"{where}:{node.lineno} {name} with {keywords}")
        if name.endswith("import_module") and where not in BY_NAME:
            found.append(f"{where}:{node.lineno} imports by name")
    return found


@pytest.mark.parametrize("path", sources(), ids=place)
def test_imports_point_down_and_frameworks_stay_in_their_place(path):
    if path == PACKAGE / "__init__.py":
        return
    assert not wrong_imports(path.read_text(), place(path))


@pytest.mark.parametrize("path", sources(), ids=place)
def test_nothing_is_unpickled_evaluated_or_sent_in_the_clear(path):
    assert not wrong_calls(path.read_text(), place(path))


def test_every_part_of_the_package_has_its_place_in_the_order():
    assert {place(path).split("/")[0].removesuffix(".py") for path in sources()} <= {
        *ORDER,
        "__init__",
    }


def test_importing_openfed_itself_imports_nothing_of_it():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in at_once:
        assert "openfed" not in ast.unparse(node)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("plan/x.py", "import openfed.node.agent"),
        ("plan/x.py", "from openfed.node import agent"),
        ("plan/x.py", "from openfed import node"),
        ("plan/x.py", "from ..node import agent"),
        ("plan/x.py", "from .. import launch"),
        ("plan/x.py", "def f():\n    from openfed.launch.node import main"),
        ("plan/x.py", "if TYPE_CHECKING:\n    import openfed.cli"),
        ("node/x.py", "import torch"),
        ("tasks/numpy_function.py", "from torch import nn"),
        ("tasks/torch.py", "import sklearn.linear_model"),
        ("node/x.py", "def f():\n    import grpc"),
        ("cli/x.py", "import rich.table"),
        ("tensors/record.py", "import os"),
        ("ask/x.py", "from time import monotonic"),
        ("strategy/x.py", "from pathlib import Path"),
        ("store/x.py", "import pickle"),
        ("store/x.py", "from marshal import loads"),
    ],
)
def test_a_wrong_import_would_be_found(where, source):
    assert len(wrong_imports(source, where)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "torch.load(path)",
        "from torch import load",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.unsafe_load(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.lib.format.read_array(f, allow_pickle=True)",
        "grpc.aio.insecure_channel(address)",
        "server.add_insecure_port(address)",
        "grpc.insecure_server_credentials()",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "importlib.import_module(name)",
        "import_module(name)",
    ],
)
def test_a_wrong_call_would_be_found(source):
    assert len(wrong_calls(source, "x.py")) == 1


def test_allowed_things_are_not_found():
    assert not wrong_imports("from openfed.errors import OpenFedError\nimport numpy", "ask/x.py")
    assert not wrong_imports("import os", "tensors/frame.py")
    assert not wrong_calls("np.load(path, allow_pickle=False); yaml.safe_load(text)", "x.py")


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_processes_that_reach_the_network_never_import_a_framework():
    frameworks = {"torch", "sklearn", "scipy", "pandas", "rich", "click"}
    assert not frameworks & modules_after("import openfed.launch.node")


def test_the_task_process_never_imports_the_network_or_certificates():
    network = {"grpc", "cryptography", "google", "pydantic", "rich", "click"}
    assert not network & modules_after("import openfed.tasks.child, openfed.tasks.numpy_function")
