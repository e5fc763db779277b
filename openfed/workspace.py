"""Where everything of a workspace lies, and how one is made from a template."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from openfed.errors import UsageError
from openfed.files import shipped

TEMPLATES = shipped("workspace_templates")

NOT_COPIED = shutil.ignore_patterns(
    "__pycache__",
    "*.pyc",
    ".ipynb_checkpoints",
    "cert",
    "save",
    "logs",
    "runs",
    "approved",
    "plan.lock",
    ".*",
)


@dataclass(frozen=True)
class Workspace:
    """Names only: looking one up creates nothing."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan" / "plan.yaml"

    @property
    def lock(self) -> Path:
        return self.root / "plan" / "plan.lock"

    @property
    def local(self) -> Path:
        return self.root / "local.yaml"

    @property
    def cert(self) -> Path:
        return self.root / "cert"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def desk(self) -> Path:
        """Where the authority of a workspace is asked to renew: a Unix socket."""
        return self.runs / "authority.sock"

    @property
    def importing(self) -> Path:
        """A new plan on its way in: there while an import goes on, or after one that broke off."""
        return self.root / ".import"

    def strangers(self, node: str) -> tuple[Path, ...]:
        """Folders below `cert/` that are not this node's: the authority's above all."""
        found = (path for path in self.cert.iterdir() if path.is_dir())
        return tuple(sorted(path for path in found if path.name != node))

    def log(self, node: str) -> Path:
        return self.logs / f"{node}.log"

    def model(self, name: str, which: str) -> Path:
        """`which` is init, last or best."""
        return self.root / "save" / f"{name}_{which}.safetensors"


def open_workspace(path: str | Path = ".") -> Workspace:
    """The workspace at `path`: its folder, or its plan file.

    Raises: UsageError: U01 there is none, U83 its plan is not all in place.
    """
    path = Path(path).resolve()
    root = path.parent.parent if path.name == "plan.yaml" else path
    workspace = Workspace(root)
    if workspace.importing.exists():
        message = f"an import into {root} goes on, or broke off: plan and code may not be whole"
        raise UsageError("U83", f"{message}. Import the archive again")
    if not workspace.plan.is_file():
        raise UsageError(
            "U01",
            f"{root} is not a workspace: it has no plan/plan.yaml. Go to one, or create one: "
            "fx workspace create --prefix my_workspace --template torch_digits",
        )
    return workspace


def templates() -> dict[str, Path]:
    """Name and folder of every template, in name order."""
    found = (plan.parents[1] for plan in sorted(TEMPLATES.glob("*/plan/plan.yaml")))
    return {folder.name: folder for folder in found}


def about(template: Path) -> str:
    """The first line of text of its README."""
    readme = template / "README.md"
    lines = readme.read_text(encoding="utf-8").splitlines() if readme.is_file() else []
    return next((line.strip() for line in lines if line.strip() and line[0] != "#"), "")


def create(prefix: Path, template: str) -> tuple[Path, ...]:
    """Copy a template to `prefix`, a folder that is not there or empty; the files written.

    Raises `UsageError`: U02 for a name that is no template, U03 for a folder with something in it.
    """
    if template not in templates():
        known = ", ".join(templates())
        raise UsageError("U02", f"there is no template {template!r}; there are: {known}")
    if prefix.exists() and (not prefix.is_dir() or any(prefix.iterdir())):
        raise UsageError("U03", f"{prefix} exists and is not an empty folder; nothing was written")
    shutil.copytree(templates()[template], prefix, ignore=NOT_COPIED, dirs_exist_ok=True)
    return tuple(sorted(path for path in prefix.rglob("*") if path.is_file()))


PURPOSES = (
    ("plan/plan.lock", "the plan frozen: digest, code, initial model; goes to every site"),
    ("plan/plan.sig", "who signed the plan; goes to every site"),
    ("plan", "what will happen, for everyone to read and approve; goes to every site"),
    ("src", "your code: runs at every site, never at the aggregator; goes to every site"),
    ("requirements.txt", "what your code imports; goes to every site"),
    ("compose.yaml", "what runs here in containers; stays here"),
    ("local.yaml", "where each site's data is, for runs on this machine; stays here"),
    ("site.yaml", "what only this site decides; stays here"),
    ("approved", "what this site approved, and copies for later comparison; stays here"),
    ("save/ledger.jsonl", "what the run did, signed, for `fx ledger verify`; names the sites"),
    ("save", "the model, for anyone you give it to"),
    ("cert/authority.pem", "the authority's certificate, public; goes to every node"),
    ("cert/roster.json", "who takes part and who no longer does, signed; public"),
    ("cert/authority", "the authority's key: stays here, and decides who may take part"),
    ("cert", "this node's keys and certificate: never anyone else's"),
    ("logs", "what happened; stays here"),
    ("runs", "the state of the runs; stays here"),
)
"""Path below a workspace -> what it is, and who gets it. The first that fits."""


def purpose(path: Path) -> str:
    """What the file at `path` (relative to its workspace) is for; empty for other files."""
    place = path.as_posix()
    fits = (why for start, why in PURPOSES if place == start or place.startswith(f"{start}/"))
    return next(fits, "")
