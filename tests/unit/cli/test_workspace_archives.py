"""`fx workspace export` and `import`: what travels, what stays, what is refused."""

import hashlib
import os
import re
import stat
import zipfile
from pathlib import Path

import pytest

from openfed.archive import pack
from openfed.plan.load import load_plan
from openfed.plan.lock import code_files, make_lock, read_lock, write_lock
from openfed.tensors.record import Spec
from openfed.workspace import create

STAYS = (
    "cert/one/node.key",
    "cert/authority/authority.key",
    "data/patients.csv",
    "local.yaml",
    "site.yaml",
    "save/model_last.safetensors",
    "runs/1/journal.sqlite",
    "logs/one.log",
    "src/__pycache__/linear.cpython-311.pyc",
    "plan/notes.txt",
    "README.md",
)
TRAVELS = ("plan/plan.lock", "plan/plan.yaml", "requirements.txt", "src/linear.py")


def freeze(root: Path) -> None:
    """As `fx plan initialize`, without training code being run."""
    plan = load_plan(root / "plan" / "plan.yaml")
    lock = make_lock(plan, code_files(root), "0" * 64, (Spec("weight", "float32", (3,)),))
    write_lock(root / "plan" / "plan.lock", lock)


def workspace(root: Path) -> Path:
    create(root, "numpy_linear")
    for name in STAYS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("SECRET")
    freeze(root)
    return root


def write_archive(path: Path, root: Path, **changes: bytes | None) -> None:
    """What export would write of `root`, with changes; None: without that file."""
    files: dict[str, bytes | None] = {name: (root / name).read_bytes() for name in TRAVELS}
    files |= changes
    path.write_bytes(pack({name: data for name, data in files.items() if data is not None}))


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


# -- export ------------------------------------------------------------------------------------


def test_an_archive_holds_plan_lock_and_code_and_no_secret(call, tmp_path):
    root = workspace(tmp_path / "w")
    code, out, err = call("w", "workspace", "export")
    assert (code, err) == (0, "")
    data = (root / "w.zip").read_bytes()
    with zipfile.ZipFile(root / "w.zip") as archive:
        names = archive.namelist()
        assert {name: archive.read(name) for name in names} == {
            name: (root / name).read_bytes() for name in names
        }
    assert tuple(names) == TRAVELS == ("plan/plan.lock", "plan/plan.yaml", *code_files(root))
    assert not set(names) & set(STAYS) and b"SECRET" not in data
    assert str(root / "w.zip") in out and hashlib.sha256(data).hexdigest() in out
    assert read_lock(root / "plan" / "plan.lock").digest in out
    assert all(f"  {name} " in out for name in names) and "goes to every site" in out


def test_the_same_workspace_gives_the_same_bytes(call, tmp_path):
    made = []
    for folder, mask in (("one", 0o000), ("two", 0o077)):
        old = os.umask(mask)
        try:
            root = workspace(tmp_path / folder)
            for age, path in enumerate(root.rglob("*")):
                os.utime(path, (mask + age, mask + age))
            assert call(folder, "workspace", "export", "-o", "../out.zip")[0] == 0
        finally:
            os.umask(old)
        made.append((tmp_path / "out.zip").read_bytes())
        (tmp_path / "out.zip").unlink()
    assert made[0] == made[1]


def test_exporting_again_says_so_and_another_file_is_not_overwritten(call, tmp_path):
    root = workspace(tmp_path / "w")
    assert "(unchanged)" not in call("w", "workspace", "export")[1]
    code, out, _ = call("w", "workspace", "export")
    assert code == 0 and "(unchanged)" in out
    (root / "w.zip").write_text("mine")
    code, _, err = call("w", "workspace", "export")
    assert code == 2 and err.startswith("U18  ") and (root / "w.zip").read_text() == "mine"
    assert call("w", "workspace", "export", "-o", "other.zip")[0] == 0


def test_a_signature_and_fragments_in_the_workspace_go_along(call, tmp_path):
    root = workspace(tmp_path / "w")
    plan = root / "plan" / "plan.yaml"
    plan.write_text(f"extends: parts/base.yaml\n{plan.read_text()}")
    (root / "plan" / "parts").mkdir()
    (root / "plan" / "parts" / "base.yaml").write_text("extends: ../more.yaml\nseed: 99\n")
    (root / "plan" / "more.yaml").write_text("extends: fedadam\n")
    freeze(root)
    (root / "plan" / "plan.sig").write_text("{}")
    code, out, _ = call("w", "workspace", "export")
    assert code == 0 and "who signed the plan" in out
    with zipfile.ZipFile(root / "w.zip") as archive:
        wanted = {"plan/parts/base.yaml", "plan/more.yaml", "plan/plan.sig"}
        assert wanted < set(archive.namelist())
    assert call(".", "workspace", "import", "--archive", "w/w.zip", "--prefix", "v")[0] == 0
    assert load_plan(tmp_path / "v" / "plan" / "plan.yaml") == load_plan(plan)


def without_lock(root: Path) -> None:
    (root / "plan" / "plan.lock").unlink()


def with_changed_code(root: Path) -> None:
    (root / "src" / "linear.py").write_text("x = 1\n")


def with_new_code(root: Path) -> None:
    (root / "src" / "new.py").write_text("x = 1\n")


def with_changed_plan(root: Path) -> None:
    plan = root / "plan" / "plan.yaml"
    plan.write_text(re.sub(r"(?m)^rounds: \d+", "rounds: 999", plan.read_text()))


def extending(root: Path, name: str) -> None:
    plan = root / "plan" / "plan.yaml"
    plan.write_text(f"extends: {name}\n{plan.read_text()}")
    freeze(root)


def with_a_fragment_that_stays(root: Path) -> None:
    (root / "site.yaml").write_text("seed: 99\n")
    extending(root, "../site.yaml")


def with_a_fragment_behind_a_link(root: Path) -> None:
    (root / "site.yaml").write_text("seed: 99\n")
    (root / "plan" / "base.yaml").symlink_to("../site.yaml")
    extending(root, "base.yaml")


def with_a_signature_that_is_a_link(root: Path) -> None:
    (root / "plan" / "plan.sig").symlink_to("../cert/one/node.key")


def with_a_name_that_windows_cannot_write(root: Path) -> None:
    (root / "src" / "aux.py").write_text("")
    freeze(root)


@pytest.mark.parametrize(
    ("spoil", "code", "remedy"),
    [
        (without_lock, "P19", "fx plan initialize"),
        (with_changed_code, "P20", "fx plan initialize"),
        (with_new_code, "P20", "fx plan initialize"),
        (with_changed_plan, "U37", "fx plan initialize"),
        (with_a_fragment_that_stays, "U37", "move it into plan/"),
        (with_a_fragment_behind_a_link, "U37", "put the file itself there"),
        (with_a_signature_that_is_a_link, "U37", "put the file itself there"),
        (with_a_name_that_windows_cannot_write, "U31", "aux.py"),
    ],
)
def test_what_sites_could_not_use_is_not_exported(call, tmp_path, spoil, code, remedy):
    root = workspace(tmp_path / "w")
    spoil(root)
    before = snapshot(tmp_path)
    left, out, err = call("w", "workspace", "export")
    assert left == 2 and out == "" and code in err and remedy in err
    assert "Traceback" not in err and snapshot(tmp_path) == before


# -- import ------------------------------------------------------------------------------------


def test_an_imported_workspace_is_the_exported_one(call, tmp_path):
    root = workspace(tmp_path / "w")
    assert call("w", "workspace", "export", "-o", "../study.zip")[0] == 0
    code, out, err = call(".", "workspace", "import", "--archive", "study.zip")
    assert (code, err) == (0, "")
    made = snapshot(tmp_path / "study")
    files = {name: data for name, data in made.items() if data is not None}
    assert files == {name: (root / name).read_bytes() for name in TRAVELS}
    assert read_lock(root / "plan" / "plan.lock").digest in out
    assert "cd study" in out and "fx plan explain" in out
    assert "fx collaborator create -n NAME -d DATA" in out
    assert call("study", "workspace", "export", "-o", "../again.zip")[0] == 0
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "study.zip").read_bytes()


def test_an_imported_plan_can_be_explained(call, tmp_path):
    workspace(tmp_path / "w")
    assert call("w", "workspace", "export", "-o", "../study.zip")[0] == 0
    assert call(".", "workspace", "import", "--archive", "study.zip", "--prefix", "v")[0] == 0
    code, out, _ = call("v", "plan", "explain")
    assert code == 0 and "What leaves a site" in out


def test_a_folder_with_something_in_it_is_left_alone(call, tmp_path):
    write_archive(tmp_path / "study.zip", workspace(tmp_path / "w"))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine").write_text("mine")
    before = snapshot(tmp_path)
    code, _, err = call(".", "workspace", "import", "--archive", "study.zip")
    assert code == 2 and err.startswith("U03  ") and snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "cert/one/node.key",
        "site.yaml",
        "local.yaml",
        "conftest.py",
        "sitecustomize.py",
        "plan/other.yaml",
        "src/__pycache__/linear.cpython-311.pyc",
        "data/x",
        "save/model.safetensors",
        ".git/hooks/post-checkout",
        "IMPORT.md",
    ],
)
def test_what_no_workspace_exports_is_refused_by_name(call, tmp_path, name):
    write_archive(tmp_path / "study.zip", workspace(tmp_path / "w"), **{name: b"evil"})
    before = snapshot(tmp_path)
    code, out, err = call(".", "workspace", "import", "--archive", "study.zip")
    assert code == 2 and err.startswith("U35  study.zip: ") and repr(name) in err
    assert out == "" and snapshot(tmp_path) == before


def test_a_plan_that_extends_what_never_travels_does_not_smuggle_it_in(call, tmp_path):
    root = workspace(tmp_path / "w")
    with_a_fragment_that_stays(root)
    write_archive(tmp_path / "study.zip", root, **{"site.yaml": b"seed: 99\n"})
    code, _, err = call(".", "workspace", "import", "--archive", "study.zip")
    assert code == 2 and err.startswith("U35  ") and "'site.yaml'" in err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("src/linear.py", b"evil", "src/linear.py is not the file"),
        ("src/linear.py", None, "src/linear.py is missing"),
        ("src/new.py", b"evil", "'src/new.py'"),
        ("plan/plan.lock", None, "plan/plan.lock is not there"),
        ("plan/plan.lock", b"{}", "plan/plan.lock"),
        ("plan/plan.yaml", None, "plan/plan.yaml"),
        ("plan/plan.yaml", b"rounds: [\n", "plan/plan.yaml:"),
        ("plan/plan.yaml", b"extends: ../../../../etc/passwd\n", "plan/plan.yaml:"),
    ],
)
def test_an_archive_that_does_not_fit_its_lock_never_appears(call, tmp_path, name, data, told):
    write_archive(tmp_path / "study.zip", workspace(tmp_path / "w"), **{name: data})
    before = snapshot(tmp_path)
    code, out, err = call(".", "workspace", "import", "--archive", "study.zip")
    assert code == 2 and re.match("U3[56]  study.zip: ", err) and told in err
    assert out == "" and "Traceback" not in err and snapshot(tmp_path) == before
    assert "run fx plan initialize: every site" not in err, "that is not for who imports"


def test_a_plan_that_says_other_than_its_lock_never_appears(call, tmp_path):
    root = workspace(tmp_path / "w")
    with_changed_plan(root)
    write_archive(tmp_path / "study.zip", root)
    code, _, err = call(".", "workspace", "import", "--archive", "study.zip")
    assert code == 2 and err.startswith("U36  ") and not (tmp_path / "study").exists()


def test_what_is_no_archive_is_told(call, tmp_path):
    (tmp_path / "study.zip").write_text("no archive")
    for name in ("study.zip", "nothing.zip"):
        code, _, err = call(".", "workspace", "import", "--archive", name)
        assert code == 2 and err.startswith(f"U30  {name}: ")
    assert os.listdir(tmp_path) == ["study.zip"]


def test_the_archive_of_a_frozen_template_travels(call, tmp_path):
    """With the initial model that a task process really makes."""
    create(tmp_path / "w", "numpy_linear")
    assert call("w", "plan", "initialize", "-a", "localhost")[0] == 0
    assert call("w", "workspace", "export")[0] == 0
    mode = stat.S_IMODE((tmp_path / "w" / "w.zip").stat().st_mode)
    assert mode == 0o644
    assert call(".", "workspace", "import", "--archive", "w/w.zip", "--prefix", "v")[0] == 0
    assert not (tmp_path / "v" / "save").exists()
