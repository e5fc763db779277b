"""What to do next in this folder, for `fx` alone."""

from openfed.observe.files import EVENTS
from openfed.workspace import Workspace


def next_step(workspace: Workspace) -> str:
    if not workspace.plan.is_file():
        return "fx workspace create --prefix my_workspace --template torch_digits"
    if not (workspace.logs / EVENTS).exists():
        return "fx plan explain, then fx run"
    return "fx status says how the latest run went; fx run trains again, or resumes"
