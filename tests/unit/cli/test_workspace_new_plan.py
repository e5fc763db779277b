"""`fx workspace import` into a workspace that is there: the plan is replaced, nothing else is."""

import json
import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.archive import pack
from openfed.errors import OpenFedError, UsageError
from openfed.files import lock_file
from openfed.launch.node import load_lock
from openfed.plan.digest import digest_of
from openfed.plan.load import load_plan
from openfed.plan.lock import code_files, make_lock, write_lock
from openfed.tensors.record import Spec
from openfed.travel import export, import_archive
from openfed.workspace import Workspace, create, open_workspace

EVIL = runpy.run_path(str(Path(__file__).parents[1] / "test_archive.py"))["EVIL"]
OWN = (
    "cert/mill/node.key",
    "cert/authority.pem",
    "site.yaml",
    "local.yaml",
    "approved/0/mill.json",
    "runs/1/agents/mill/local.sqlite",
    "logs/mill.log",
    "save/line_last.safetensors",
    "data/points.csv",
    "IMPORT.md",
)
"""What is the site's own, and never of the plan."""


def freeze(root: Path, model: str = "0" * 64) -> str:
    """As `fx plan initialize`, without training code being run; the digest."""
    plan = load_plan(root / "plan" / "plan.yaml")
    lock = make_lock(plan, code_files(root), model, (Spec("weight", "float32", (3,)),))
    write_lock(root / "plan" / "plan.lock", lock)
    return lock.digest


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name} of the site")


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def files(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(root).items() if data is not None}


@pytest.fixture(scope="module")
def two_plans(tmp_path_factory) -> Path:
    """old.zip and new.zip of one federation, and `site`, where the old one was imported. The new
    plan has another value, other code, and neither requirements.txt nor a fragment."""
    root = tmp_path_factory.mktemp("plans")
    author = root / "author"
    create(author, "numpy_linear")
    edit(author / "plan" / "plan.yaml", "^", "extends: parts/base.yaml\n")
    write(author, "plan/parts/base.yaml", "src/old.py", "src/deep/old.py")
    (author / "plan" / "parts" / "base.yaml").write_text("seed: 5\n")
    freeze(author)
    (author / "plan" / "plan.sig").write_text("{}")
    export(Workspace(author), root / "old.zip")
    import_archive(root / "old.zip", root / "site")
    write(root / "site", *OWN, "save/line_init.safetensors", "src/__pycache__/old.cpython.pyc")

    edit(author / "plan" / "plan.yaml", "extends: .*\n", "")
    edit(author / "plan" / "plan.yaml", r"rounds: \d+", "rounds: 77")
    edit(author / "src" / "linear.py", "$", "\nNEW = 1\n")
    shutil.rmtree(author / "src" / "deep")
    for name in ("src/old.py", "requirements.txt", "plan/plan.sig", "plan/parts/base.yaml"):
        (author / name).unlink()
    write(author, "src/fresh/new.py")
    freeze(author, model="1" * 64)
    export(Workspace(author), root / "new.zip")
    import_archive(root / "new.zip", root / "expected")
    return root


@pytest.fixture
def site(two_plans, tmp_path) -> Path:
    for name in ("old.zip", "new.zip"):
        shutil.copy(two_plans / name, tmp_path)
    shutil.copytree(two_plans / "site", tmp_path / "site")
    return tmp_path / "site"


def own(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in OWN}


# -- what is replaced, and what stays --------------------------------------------------------------


def test_a_new_plan_takes_the_place_of_the_old_one_and_nothing_else_changes(call, site, two_plans):
    old, new = load_lock(site).digest, load_lock(two_plans / "expected").digest
    before = own(site)
    archive = ("--archive", "../new.zip")
    code, out, err = call("site", "workspace", "import", *archive)
    assert (code, err) == (0, "")
    assert files(site) == files(two_plans / "expected") | before
    assert not list(site.glob(".*")) and not (site / "src" / "deep").exists()
    assert re.search(rf"plan +{new}\nwas +{old}\n", out)
    assert "fx plan diff" in out and "fx collaborator approve" in out
    assert load_lock(open_workspace(site).root).digest == new


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("site", ["--archive", "../new.zip"]),
        ("site", ["--archive", "../new.zip", "--prefix", "."]),
        (".", ["--archive", "new.zip", "--prefix", "site"]),
        (".", ["--archive", "site.zip"]),
    ],
)
def test_the_workspace_is_named_or_is_the_current_folder_or_called_like_the_archive(
    call, site, two_plans, folder, words
):
    shutil.copy(two_plans / "new.zip", site.parent / "site.zip")
    code, out, _ = call(folder, "workspace", "import", *words)
    assert code == 0 and load_lock(site).digest == load_lock(two_plans / "expected").digest
    assert ("cd site  &&  fx plan diff" in out) == (folder == ".")


def test_the_same_archive_again_restores_what_is_missing_and_changes_nothing(call, site):
    before = snapshot(site)
    (site / "src" / "linear.py").unlink()
    shutil.rmtree(site / "src" / "deep")
    shutil.rmtree(site / "plan" / "parts")
    for name in ("requirements.txt", "plan/plan.yaml", "plan/plan.sig"):
        (site / name).unlink()
    assert call("site", "workspace", "import", "--archive", "../old.zip")[0] == 0
    caches = {"src/__pycache__", "src/__pycache__/old.cpython.pyc"}
    assert snapshot(site) == {name: before[name] for name in before.keys() - caches}
    assert "save/line_init.safetensors" in files(site), "it is this plan's"


def test_a_plan_that_another_release_froze_can_be_replaced(call, site, two_plans):
    lock = json.loads((site / "plan" / "plan.lock").read_text())
    lock["schema"] += 1
    covered = {key: lock[key] for key in ("schema", "plan", "files", "codecs", "model")}
    (site / "plan" / "plan.lock").write_text(json.dumps({**lock, "digest": digest_of(covered)}))
    changed(site)
    assert call("site", "workspace", "import", "--archive", "../new.zip")[2].startswith("U81  ")
    shutil.copy(two_plans / "site" / "src" / "linear.py", site / "src")
    assert call("site", "workspace", "import", "--archive", "../new.zip")[0] == 0
    assert load_lock(site).digest == load_lock(two_plans / "expected").digest


# -- what is refused -------------------------------------------------------------------------------


def changed(root: Path) -> None:
    edit(root / "src" / "linear.py", "$", "\nMINE = 1\n")


def added(root: Path) -> None:
    write(root, "src/mine.py")


def linked(root: Path) -> None:
    (root / "src" / "linear.py").rename(root / "linear.py")
    (root / "src" / "linear.py").symlink_to("../linear.py")


def linked_whole(root: Path) -> None:
    (root / "src").rename(root / "code")
    (root / "src").symlink_to("code")


def required(root: Path) -> None:
    edit(root / "requirements.txt", "$", "\nmine\n")


def planned(root: Path) -> None:
    edit(root / "plan" / "plan.yaml", r"rounds: \d+", "rounds: 3")


def planned_below(root: Path) -> None:
    (root / "plan" / "parts" / "base.yaml").write_text("seed: 6\n")


def broken(root: Path) -> None:
    (root / "plan" / "plan.yaml").write_text("rounds: [\n")


def headless(root: Path) -> None:
    (root / "plan" / "plan.yaml").unlink()


def noted(root: Path) -> None:
    write(root, "plan/notes.txt")


def unlocked(root: Path) -> None:
    (root / "plan" / "plan.lock").unlink()


def damaged(root: Path) -> None:
    edit(root / "plan" / "plan.lock", '"digest": "..', '"digest": "zz')


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (changed, "src/linear.py was made or changed here"),
        (added, "src/mine.py"),
        (linked, "src/linear.py"),
        (linked_whole, "src was"),
        (required, "requirements.txt"),
        (planned, "plan/plan.yaml"),
        (planned_below, "plan/plan.yaml"),
        (broken, "plan/plan.yaml"),
        (headless, "plan/parts/base.yaml"),
        (noted, "plan/notes.txt"),
        (unlocked, "plan/plan.lock cannot be read"),
        (damaged, "plan/plan.lock cannot be read"),
    ],
)
def test_what_was_made_here_is_not_lost(call, site, spoil, named):
    spoil(site)
    before = snapshot(site)
    code, out, err = call("site", "workspace", "import", "--archive", "../new.zip")
    assert code == 2 and out == "" and err.startswith("U81  ") and named in err
    assert "--prefix" in err and "Traceback" not in err and snapshot(site) == before


def test_an_archive_of_another_federation_is_refused(call, site, tmp_path):
    create(tmp_path / "other", "numpy_linear")
    edit(tmp_path / "other" / "plan" / "plan.yaml", "federation: line", "federation: curve")
    freeze(tmp_path / "other")
    export(Workspace(tmp_path / "other"), tmp_path / "other.zip")
    before = snapshot(site)
    code, _, err = call("site", "workspace", "import", "--archive", "../other.zip")
    assert code == 2 and err.startswith("U82  ") and "'curve'" in err and "'line'" in err
    assert snapshot(site) == before


@pytest.mark.parametrize(
    "place",
    ["runs/lock", "runs/1/lock", "runs/1/agents/mill/lock", "runs/exchange/mill/lock", "."],
)
def test_a_plan_that_is_in_use_is_not_replaced(call, site, place):
    (site / place).parent.mkdir(parents=True, exist_ok=True)
    held = lock_file(site / place, wait=False)
    before = snapshot(site)
    code, _, err = call("site", "workspace", "import", "--archive", "../new.zip")
    assert code == 2 and err.startswith("U80  ") and snapshot(site) == before
    os.close(held)
    assert call("site", "workspace", "import", "--archive", "../new.zip")[0] == 0


def test_a_node_that_starts_while_the_archive_is_unpacked_keeps_its_plan(site, two_plans):
    (site / "runs" / "lock").touch()
    before, held = snapshot(site), []

    def start(event: str, _: tuple) -> None:
        if event == "os.mkdir" and not held:
            held.append(0)
            lock_file(site / "runs" / "lock", wait=False)

    assert in_a_child(start, two_plans / "new.zip", site) == 80 and snapshot(site) == before


@pytest.mark.parametrize("what", EVIL)
def test_an_evil_archive_changes_nothing_in_a_workspace(what, site, tmp_path):
    _, build = EVIL[what]
    (tmp_path / "evil.zip").write_bytes(build())
    before = snapshot(tmp_path)
    with pytest.raises(UsageError) as refused:
        import_archive(tmp_path / "evil.zip", site)
    assert re.fullmatch("U3[0-6]", refused.value.code) and snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["site.yaml", "cert/mill/node.key", ".import/plan/plan.lock", "approved/0/mill.json"]
)
def test_what_no_workspace_exports_is_refused_in_a_workspace_too(call, site, two_plans, name):
    sent = files(two_plans / "expected") | {name: b"evil"}
    (site.parent / "evil.zip").write_bytes(pack(sent))
    before = snapshot(site)
    code, _, err = call("site", "workspace", "import", "--archive", "../evil.zip")
    assert code == 2 and err.startswith("U35  ") and name in err and snapshot(site) == before


# -- a crash ---------------------------------------------------------------------------------------

STEPS = frozenset(["os.rename", "os.mkdir", "os.remove", "os.rmdir", "open"])


def in_a_child(hook: Callable[[str, tuple], None], archive: Path, site: Path) -> int:
    """Import in a process of its own, which tells `hook` all that it does; its exit code, or
    the number of the refusal."""
    child = os.fork()
    if not child:
        try:
            sys.addaudithook(hook)
            import_archive(archive, site)
            os._exit(0)
        except UsageError as error:
            os._exit(int(error.code[1:]))
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(step: int, archive: Path, site: Path) -> bool:
    """Whether an import was killed before its `step`-th change of the disk; false: it ended."""
    left = [step]

    def hook(event: str, arguments: tuple) -> None:
        writes = event in STEPS and (event != "open" or bool(arguments[2] & os.O_CREAT))
        if writes and not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= writes

    code = in_a_child(hook, archive, site)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def usable(site: Path) -> str:
    """The digest of the plan that a start would take part in; empty: it is refused."""
    try:
        return load_lock(open_workspace(site).root).digest
    except OpenFedError:
        return ""


def test_an_import_that_is_killed_anywhere_leaves_one_plan_or_a_refusal_and_is_mended(
    site, two_plans, tmp_path
):
    old, new = load_lock(site).digest, load_lock(two_plans / "expected").digest
    wanted, found = files(two_plans / "expected") | own(site), []
    for step in range(200):
        here = tmp_path / f"killed{step}"
        shutil.copytree(site, here)
        killed = killed_at(step, tmp_path / "new.zip", here)
        found.append(usable(here))
        assert found[-1] in (old, new, ""), step
        assert own(here) == own(site), step
        import_archive(tmp_path / "new.zip", here)
        assert usable(here) == new and files(here) == wanted and not list(here.glob(".*")), step
        if not killed:
            break
    assert not killed and found[0] == old and found[-1] == new
    ruled = [each for k, each in enumerate(found) if not k or each != found[k - 1]]
    assert ruled == [old, "", new], "old, then refused, then new"


def test_an_import_that_broke_off_is_told_and_another_archive_mends_it_too(call, site, two_plans):
    step = 0
    while usable(site):
        assert killed_at(step, two_plans / "new.zip", site)
        step += 1
    code, _, err = call("site", "plan", "explain")
    assert code == 2 and err.startswith("U83  ") and "Import the archive again" in err
    held = lock_file(site / "runs" / "1" / "lock", wait=False)
    assert call("site", "workspace", "import", "--archive", "../old.zip")[2].startswith("U80  ")
    assert not usable(site), "nothing moves under a node that runs"
    os.close(held)
    (site.parent / "bad.zip").write_text("none")
    assert call("site", "workspace", "import", "--archive", "../bad.zip")[2].startswith("U30  ")
    assert usable(site) == load_lock(two_plans / "expected").digest, "it is whole now"
    assert call("site", "workspace", "import", "--archive", "../old.zip")[0] == 0
    assert usable(site) == load_lock(two_plans / "site").digest
