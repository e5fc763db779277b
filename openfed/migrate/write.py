"""`fx workspace import-openfl`: an OpenFL workspace into a new one of openfed's, whole or not."""

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.errors import PlanError, Problem, UsageError
from openfed.migrate.code import (
    ADAPTER,
    brought_by_openfl,
    missing_imports,
    not_installed,
    read_sources,
)
from openfed.migrate.source import OpenFL, read_openfl
from openfed.migrate.translate import DROPPED, KEPT, NAMES, TODO, Draft, Row, translate
from openfed.plan.choices import METRICS
from openfed.plan.load import load_plan, problems
from openfed.plan.source import Finding, Place

SKIPPED = ("__pycache__", ".ipynb_checkpoints")
TOP = frozenset({"plan", "src", "requirements.txt", ".workspace"})
READ = frozenset({"plan.yaml", "cols.yaml", "data.yaml", "defaults"})
NOT_COPIED: Mapping[str, str] = {
    "cert": "keys and certificates: openfed makes its own, in its own authority",
    "save": "models as .pbuf, which openfed does not read",
    "logs": "of earlier runs",
    "local_state": "of earlier runs",
    "data": "stays where it is: local.yaml has the paths of data.yaml; what your code opens below "
    "data/ by itself it looks for in the new folder: move or copy that there",
}
"""Folders of an OpenFL workspace, and why each stays behind."""


@dataclass(frozen=True)
class Imported:
    """What was written, and what became of every key."""

    root: Path
    files: tuple[Path, ...]
    rows: tuple[Row, ...]


def import_openfl(root: Path, prefix: Path | None = None) -> Imported:
    """Write the workspace that says the same in openfed's words to `prefix`, a folder that is not
    there or empty (by default `<name of root>_openfed`, here).

    Nothing of `root` is changed or imported. Raises: UsageError: U03, U50. PlanError: everything
    that keeps it from being translated (U51 to U57); nothing is written then.
    """
    openfl = read_openfl(root)
    prefix = Path(f"{root.resolve().name}_openfed") if prefix is None else prefix
    if prefix.exists() and (not prefix.is_dir() or any(prefix.iterdir())):
        raise UsageError("U03", f"{prefix} exists and is not an empty folder; nothing was written")
    sources, found = read_sources(root, _modules(openfl))
    draft = translate(openfl, sources, federation_name(root.resolve().name))
    found += draft.problems
    if not any(each.code == "U52" for each in found):  # else nothing of the rest would help
        found += [*_unfit_files(root), *missing_imports(sources)]
    if found:
        raise PlanError(problems(found))
    requirements = _requirements(root, brought_by_openfl(sources))
    for name, file in not_installed(sources, root).items():
        says = f"{file} imports it: pip install -r requirements.txt, here and at every site"
        draft.row("requirements.txt", name, TODO, f"is not installed here, and {says}")
    return _write(openfl, draft, requirements, prefix)


def _modules(openfl: OpenFL) -> tuple[str, ...]:
    templates = (openfl.section(name).template for name in ("task_runner", "data_loader"))
    return tuple(template.rpartition(".")[0] for template in templates if template[:4] == "src.")


def federation_name(text: str) -> str:
    """A name of letters, digits, - and _ that is nearest to `text`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)[:63].strip("-_") or "federation"


def _unfit_files(root: Path) -> Iterator[Finding]:
    """Files that cannot be taken over."""
    requirements = [root / "requirements.txt"] if (root / "requirements.txt").is_symlink() else []
    for path in (*_below(root / "src"), *requirements):
        name = path.relative_to(root).as_posix()
        at = Place(0, 0, 0, name)
        if path.is_symlink() or not stat.S_ISREG(path.lstat().st_mode):
            yield Finding(at, "U56", "", "is a link or no plain file: put the file itself there")
        elif name in ("src/openfl_adapter.py", f"{NAMES.replace('.', '/')}.py"):
            yield Finding(at, "U56", "", "openfed writes a file of that name: rename yours")


def _below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, and every link; caches apart."""
    if folder.is_symlink():
        yield folder
        return
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = sorted(set(folders) - set(SKIPPED) - set(links))
        yield from (Path(parent, name) for name in sorted([*files, *links]) if name[-4:] != ".pyc")


# -- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requirements:
    """The lines of requirements.txt, and what there is to say of them."""

    lines: tuple[str, ...]
    rows: tuple[Row, ...]


def _write(openfl: OpenFL, draft: Draft, requirements: Requirements, prefix: Path) -> Imported:
    """Make it beside its place, check it there as `fx plan check` does, and move it."""
    rows = (*draft.rows, *requirements.rows, *_left_behind(openfl.root))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{prefix.name}.", dir=prefix.parent))
    try:
        stage.chmod(0o755)
        _fill(stage, openfl.root, _texts(openfl.root, draft, requirements.lines, rows))
        _check(stage)
        os.replace(stage, prefix)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    files = tuple(sorted(path for path in prefix.rglob("*") if path.is_file()))
    return Imported(prefix, files, rows)


def _fill(stage: Path, root: Path, texts: Mapping[str, str]) -> None:
    for path in _below(root / "src"):
        target = stage / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target, follow_symlinks=False)
    for name, text in texts.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _texts(
    root: Path, draft: Draft, requirements: Sequence[str], rows: Sequence[Row]
) -> dict[str, str]:
    """The files that are new, by name."""
    texts = {
        "plan/plan.yaml": _HEAD + yaml_text(draft.plan),
        "local.yaml": _LOCAL + yaml_text({"sites": draft.local}),
        "src/openfl_adapter.py": ADAPTER.read_text(encoding="utf-8"),
        "requirements.txt": "".join(f"{line}\n" for line in requirements),
        "IMPORT.md": report(root, rows),
    }
    if own := [name for name in draft.metrics if name not in METRICS]:
        texts[f"{NAMES.replace('.', '/')}.py"] = _metrics_module(own)
    return texts


def _check(stage: Path) -> None:
    try:
        load_plan(stage / "plan" / "plan.yaml")
    except PlanError as error:
        told = "what OpenFL's plan says is not a plan of openfed's; nothing was written. In it:"
        first = Problem("U57", "plan/plan.yaml, translated", "", told)
        raise PlanError((first, *error.problems)) from None


def _metrics_module(names: Sequence[str]) -> str:
    lines = ['"""Names of the metrics that the code from OpenFL returns by itself.', ""]
    lines += [
        "The plan's `metrics` can only refer to what is there. The adapter reports the values;"
    ]
    lines += ["nothing calls these functions.", '"""']
    for name in names:
        lines += ["", "", f"def {name}(outputs, targets):", "    raise NotImplementedError"]
    return "\n".join(lines) + "\n"


_LEAST = {"torch": (2, 6), "numpy": (2, 0)}
"""What the adapter needs of the packages that a workspace may have pinned to an older version."""


def _requirements(root: Path, brought: Mapping[str, str]) -> Requirements:
    """Those of the workspace: OpenFL itself left out, and what came with it added (`brought`: the
    packages that the code imports, and where)."""
    path, key = root / "requirements.txt", "requirements.txt"
    text = "numpy\ntorch"
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    lines, rows = [], []
    for line in text.splitlines():
        if re.match(r"\s*openfl\b", line) or "/openfl" in line:
            rows.append(Row(key, line.strip(), DROPPED, "src/openfl_adapter.py stands for it"))
            continue
        lines.append(line)
        if old := _too_old(line):
            rows.append(Row(key, line.strip(), TODO, f"{old}: raise it, and what goes with it"))
    named = {re.split(r"[^A-Za-z0-9_.-]", line.strip(), maxsplit=1)[0].lower() for line in lines}
    for package, file in brought.items():
        if package.lower() not in named:
            lines.append(package)
            rows.append(Row(key, package, KEPT, f"added: {file} imports it, and OpenFL brought it"))
    return Requirements(tuple(lines), tuple(rows))


def _too_old(line: str) -> str:
    """What is wrong with a pin, if it is to a version that the adapter does not run with."""
    pin = re.match(r"\s*(torch|numpy)\s*(?:==|<=|~=)\s*(\d+)\.(\d+)", line)
    if pin is None or (int(pin[2]), int(pin[3])) >= _LEAST[pin[1]]:
        return ""
    return f"openfed needs {pin[1]} {'.'.join(map(str, _LEAST[pin[1]]))} or later"


def _left_behind(root: Path) -> list[Row]:
    """What else lies in the workspace."""
    rows = []
    for path in sorted((root / "plan").iterdir()):
        if path.name not in READ:
            rows.append(
                Row(f"plan/{path.name}", "file", DROPPED, "not read: the plan does not name it")
            )
    for path in sorted(root.iterdir()):
        if path.name not in TOP and path.name != ".git":
            why = NOT_COPIED.get(path.name, "not copied: openfed takes plan, src and requirements")
            rows.append(Row(path.name, "folder" if path.is_dir() else "file", DROPPED, why))
    return rows


# -- texts ----------------------------------------------------------------------------------------

_HEAD = """\
# Imported from OpenFL by `fx workspace import-openfl`; IMPORT.md says what became of every key.
# `fx plan explain` says in plain words what will happen, `fx plan schema` lists every key.
"""

_LOCAL = """\
# For runs on this machine: what each collaborator's data loader gets as its data_path.
"""

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
"""What some reader of YAML takes for something else than text."""


def yaml_text(value: Mapping[str, Any], indent: str = "") -> str:
    """Mappings in lines, everything below a list in one, every text that needs it in quotes."""
    lines = []
    for key, child in value.items():
        if isinstance(child, dict) and child:
            lines.append(f"{indent}{_scalar(key)}:\n{yaml_text(child, indent + '  ')}")
        else:
            lines.append(f"{indent}{_scalar(key)}: {_flow(child)}\n")
    return "".join(lines)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{_scalar(key)}: {_flow(child)}" for key, child in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value, ensure_ascii=False, allow_nan=False)


def report(root: Path, rows: Sequence[Row]) -> str:
    """IMPORT.md."""
    todo = [row for row in rows if row.verdict == TODO]
    lines = [f"# {root.resolve().name}, imported from OpenFL", ""]
    lines += ["`plan/plan.yaml` and `local.yaml` are new, `src/` is as it was. Next: `fx run`.", ""]
    if todo:
        lines += ["## To do", "", *(f"- {row.key}: {row.found}: {row.says}" for row in todo), ""]
    lines += ["## Key by key", "", "| OpenFL | found | | openfed |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(map(_cell, _fields(row)))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _fields(row: Row) -> tuple[str, ...]:
    return (f"`{row.key}`", row.found, row.verdict, row.says)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
