"""`fx plan freeze`, `sign`, `diff`, `fx collaborator approve`: from the author to a site."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openfed.cli.main import main
from openfed.errors import OpenFedError, PlanError, PolicyError
from openfed.launch.consent import approval_for, approve
from openfed.pki.files import ensure_federation, load_identity_key
from openfed.pki.keys import create_identity_key, identity_public
from openfed.plan.approval import sign_digest, verify_approval
from openfed.plan.lock import Lock, read_lock, write_lock
from openfed.workspace import Workspace, create

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a frozen plan and everybody's keys."""
    root = tmp_path_factory.mktemp("made") / "w"
    create(root, "numpy_linear")
    fx = [sys.executable, "-m", "openfed", "plan", "initialize", "-a", "127.0.0.1"]
    subprocess.run(fx, cwd=root, check=True, capture_output=True)
    ensure_federation(root / "cert", "line", ("localhost",), ("mill", "farm"), time.time())
    return root


@pytest.fixture
def w(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return Workspace(tmp_path / "w")


@pytest.fixture
def call(w: Workspace, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `fx` in this process, without a terminal: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        assert type(left.value.code) is int
        return left.value.code, captured.out, captured.err

    return call


def lock(w: Workspace) -> Lock:
    return read_lock(w.lock)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# -- freeze -------------------------------------------------------------------------------------


def test_freezing_again_changes_nothing_and_keeps_the_address(call: Call, w: Workspace) -> None:
    before = files(w.root)
    code, out, err = call("plan", "freeze")
    assert (code, out) == (0, f"plan {lock(w).digest} (unchanged)\n")
    assert "the address stays 127.0.0.1" in err
    change(w.plan, "rounds: 20", "rounds: 20  # twenty")
    assert call("plan", "freeze")[1] == f"plan {lock(w).digest} (unchanged)\n"
    assert {path for path, data in files(w.root).items() if data != before[path]} == {w.plan}


def test_freezing_takes_what_has_changed_and_tells_of_the_stale_signature(
    call: Call, w: Workspace
) -> None:
    assert call("plan", "sign")[0] == 0
    before = lock(w)
    change(w.plan, "rounds: 20", "rounds: 21")
    code, out, err = call("plan", "freeze")
    assert code == 0 and lock(w).digest != before.digest and lock(w).plan.rounds == 21
    assert out.startswith(f"plan {lock(w).digest}\n") and "plan/plan.lock" in out
    assert lock(w).advertise == ("127.0.0.1",)
    assert "plan/plan.sig is not of this plan: fx plan sign" in err


def test_only_what_was_initialized_is_frozen_again(call: Call, w: Workspace) -> None:
    w.lock.unlink()
    code, _, err = call("plan", "freeze")
    assert code == 2 and "fx plan initialize" in err and not w.lock.exists()


# -- sign ---------------------------------------------------------------------------------------


def test_the_author_signs_and_everybody_sees_who(call: Call, w: Workspace) -> None:
    assert "signed by: nobody" in call("plan", "show")[2]
    assert "Nobody has signed it" in call("plan", "explain")[1]
    code, out, _ = call("plan", "sign")
    assert code == 0 and out.startswith(f"plan {lock(w).digest}\nsigned by aggregator, ")
    assert "plan/plan.sig" in out
    told = " ".join(call("plan", "explain")[1].split())
    assert "Signed by its author: aggregator, 20" in told and "authority's roster" in told
    assert "signed by: aggregator" in call("plan", "show")[2]
    before = files(w.root)
    assert "(signed already)" in call("plan", "sign")[1]
    assert files(w.root) == before
    assert "signed by farm" in call("plan", "sign", "-n", "farm")[1]


def test_a_key_that_no_roster_has_is_to_be_compared(call: Call, w: Workspace) -> None:
    assert call("plan", "sign")[0] == 0
    (w.cert / "roster.json").unlink()
    assert "compare the key with its owner" in " ".join(call("plan", "explain")[1].split())


@pytest.mark.parametrize("what", ["plan", "code", "new file", "link"])
def test_an_outdated_lock_is_never_signed(call: Call, w: Workspace, what: str) -> None:
    if what == "plan":
        change(w.plan, "rounds: 20", "rounds: 21")
        code, named = "P30", "rounds: 20 -> 21; freeze it first: fx plan freeze"
    elif what == "code":
        change(w.root / "src" / "linear.py", "import", "import ")
        code, named = "P20", "src/linear.py"
    elif what == "new file":
        (w.root / "src" / "new.py").write_text("")
        code, named = "P20", "src/new.py"
    else:
        (w.root / "src" / "link.py").symlink_to("linear.py")
        code, named = "P20", "src/link.py"
    left, _, err = call("plan", "sign")
    assert left == 2 and code in err and named in err
    assert not (w.root / "plan" / "plan.sig").exists()


def test_a_node_without_a_key_here_signs_nothing(call: Call, w: Workspace) -> None:
    code, _, err = call("plan", "sign", "-n", "nobody")
    assert code == 3 and err.startswith("C12  ") and not (w.root / "plan" / "plan.sig").exists()


@pytest.mark.parametrize("words", [("plan", "show"), ("plan", "explain"), ("approve",)])
@pytest.mark.parametrize("what", ["R20 changed", "R20 forged", "R21 other"])
def test_a_signature_that_is_not_one_of_this_plan_is_refused(
    call: Call, w: Workspace, words: tuple[str, ...], what: str
) -> None:
    signature = w.root / "plan" / "plan.sig"
    if words == ("approve",):
        words = ("collaborator", "approve", "-n", "mill", "--silent")
    if what == "R20 changed":
        assert call("plan", "sign")[0] == 0
        change(signature, '"aggregator"', '"farm"')
    else:  # by a key that is not the aggregator's, or for another plan
        digest = lock(w).digest if what == "R20 forged" else "ab" * 32
        key = create_identity_key()
        signature.write_bytes(
            sign_digest("signature", digest, "line", "aggregator", key, 1.0).data()
        )
    code, _, err = call(*words)
    assert code == 6 and f"\n{err}".find(f"\n{what[:3]}  plan/plan.sig: ") >= 0
    assert not (w.root / "approved").exists()


# -- approve ------------------------------------------------------------------------------------


def test_the_first_time_the_whole_plan_is_explained(call: Call, w: Workspace) -> None:
    assert call("plan", "sign")[0] == 0
    digest = lock(w).digest
    code, out, _ = call("collaborator", "approve", "-n", "mill", digest)
    assert code == 0 and digest in out and "Signed by its author: aggregator" in out
    assert "What leaves a site" in out and f"plan {digest} approved by mill, " in out
    folder = w.root / "approved" / digest
    kept = {path.relative_to(folder).as_posix() for path in files(folder)}
    assert kept == {"mill.json", "plan.lock", "requirements.txt", "src/linear.py"}
    for name in kept:
        assert f"approved/{digest}/{name}" in out
    assert read_lock(folder / "plan.lock") == lock(w)
    public = identity_public(load_identity_key(w.cert, "mill"))
    sent = (folder / "mill.json").read_bytes()
    assert verify_approval(sent, public, digest, "mill") == approval_for(w, lock(w), "mill")


def test_later_only_what_differs_is_shown(call: Call, w: Workspace) -> None:
    assert call("collaborator", "approve", "-n", "mill", "--silent")[0] == 0
    first = lock(w).digest
    change(w.plan, "lr: 0.1", "lr: 0.2")
    change(w.root / "src" / "linear.py", "import numpy as np", "import numpy as np  # \x1b[2J")
    (w.root / "src" / "more.py").write_text("x = 1\n")
    assert call("plan", "freeze")[0] == 0
    code, out, _ = call("collaborator", "approve", "-n", "mill", "--silent")
    assert code == 0 and "What leaves a site" not in out and "\x1b" not in out
    assert f"What differs from plan {first[:16]}, which mill approved last:" in out
    assert "  task_runner.numpy.settings.lr: 0.1 -> 0.2\n" in out
    assert "      -import numpy as np\n      +import numpy as np  # \\x1b[2J\n" in out
    assert "src/more.py: added" in out and "      +x = 1\n" in out
    assert approval_for(w, lock(w), "mill").digest == lock(w).digest != first


def test_approving_again_writes_nothing(call: Call, w: Workspace) -> None:
    assert call("collaborator", "approve", "-n", "mill", "--silent")[0] == 0
    before = files(w.root)
    assert call("collaborator", "approve", "-n", "mill", "--silent")[0] == 0
    assert files(w.root) == before


def test_each_site_approves_for_itself(call: Call, w: Workspace) -> None:
    assert call("collaborator", "approve", "-n", "mill", "--silent")[0] == 0
    with pytest.raises(PolicyError, match="site farm has not approved"):
        approval_for(w, lock(w), "farm")
    assert call("collaborator", "approve", "-n", "farm", "--silent")[0] == 0
    assert approval_for(w, lock(w), "farm").name == "farm"
    assert approval_for(w, lock(w), "mill").name == "mill"


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        ((), 6, "R25  there is no terminal to ask at"),
        (("ab" * 32,), 6, f"R24  you consent to plan {'ab' * 32}"),
        (("ab" * 32, "--silent"), 6, "R24  "),
        (("",), 6, "R24  "),
    ],
)
def test_without_consent_nothing_is_written(
    call: Call, w: Workspace, words: tuple[str, ...], exit_code: int, says: str
) -> None:
    before = files(w.root)
    code, _, err = call("collaborator", "approve", "-n", "mill", *words)
    assert code == exit_code and err.startswith(says) and files(w.root) == before
    if says.startswith("R25"):
        assert f"fx collaborator approve -n mill {lock(w).digest}" in err and "--silent" in err


@pytest.mark.parametrize(("answer", "exit_code"), [("y", 0), ("n", 6), ("", 6)])
def test_a_person_at_a_terminal_is_asked(w: Workspace, answer: str, exit_code: int) -> None:
    ours, theirs = pty.openpty()
    fx = [sys.executable, "-m", "openfed", "collaborator", "approve", "-n", "mill"]
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(fx, cwd=w.root, stdin=theirs, capture_output=True, text=True, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == exit_code
    assert f"Approve plan {lock(w).digest[:16]} for mill? [y/N]" in done.stdout
    assert (w.root / "approved").exists() is (answer == "y")
    if answer != "y":
        assert done.stderr.startswith("R26  the plan was not approved; nothing was written")


def test_the_site_is_the_one_of_the_workspace(call: Call, w: Workspace) -> None:
    code, _, err = call("collaborator", "approve", "--silent")
    assert code == 2 and err.startswith("P32  which site") and "farm, mill" in err
    (w.root / "site.yaml").write_text("name: farm\ndata: x\n")
    assert "approved by farm" in call("collaborator", "approve", "--silent")[1]
    assert "approved by mill" in call("collaborator", "approve", "--silent", "-n", "mill")[1]
    (w.root / "site.yaml").write_text("name: [farm\n")
    code, _, err = call("collaborator", "approve", "--silent")
    assert code == 2 and err.startswith("site.yaml:") and "Traceback" not in err
    (w.root / "site.yaml").unlink()
    shutil.rmtree(w.cert / "mill")
    assert "approved by farm" in call("collaborator", "approve", "--silent")[1]
    shutil.rmtree(w.cert)
    code, _, err = call("collaborator", "approve", "--silent")
    assert code == 2 and "no site has its keys here" in err


@pytest.mark.parametrize("name", ["nobody", "aggregator", "../farm", ""])
def test_only_a_site_of_the_plan_approves(call: Call, w: Workspace, name: str) -> None:
    before = files(w.root)
    code, _, err = call("collaborator", "approve", "--silent", "-n", name)
    assert code in (2, 3) and "Traceback" not in err and files(w.root) == before


def test_what_plan_yaml_says_otherwise_is_noted(call: Call, w: Workspace) -> None:
    change(w.plan, "rounds: 20", "rounds: 2")
    code, out, _ = call("collaborator", "approve", "-n", "mill", "--silent")
    assert code == 0 and "20 rounds. In each" in out
    assert "what runs is plan.lock. plan.lock -> plan.yaml: rounds: 20 -> 2" in out
    w.plan.write_text("rounds: {")
    assert "what runs is plan.lock" in call("collaborator", "approve", "-n", "farm", "--silent")[1]


# -- the approval that an agent asks for --------------------------------------------------------


def refused(w: Workspace, name: str = "mill") -> OpenFedError:
    with pytest.raises((PolicyError, PlanError)) as caught:
        approval_for(w, lock(w), name)
    return caught.value


def test_a_plan_that_was_never_approved_is_refused_with_the_command(w: Workspace) -> None:
    error = refused(w)
    assert error.code == "R23" and lock(w).digest[:16] in error.message
    assert error.message.endswith("fx collaborator approve -n mill")


@pytest.mark.parametrize("what", ["byte", "file", "link", "folder link", "gone", "requirements"])
def test_code_that_is_not_as_approved_is_refused_by_its_name(w: Workspace, what: str) -> None:
    approve(w, lock(w), "mill", 1.0)
    code = w.root / "src" / "linear.py"
    name = "src/linear.py"
    if what == "byte":
        code.write_bytes(code.read_bytes()[:-1])
    elif what == "file":
        name = "src/a.txt"
        (w.root / name).write_text("")
    elif what == "link":
        shutil.move(code, w.root / "elsewhere.py")
        code.symlink_to("../elsewhere.py")
    elif what == "folder link":
        name = "src"
        (w.root / "src").rename(w.root / "other")
        (w.root / "src").symlink_to("other")
    elif what == "gone":
        code.unlink()
    else:
        name = "requirements.txt"
        (w.root / name).write_text("evil\n")
    error = refused(w)
    assert error.code == "P20" and error.message.startswith(f"{name}  P20  ")


@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("value", "rounds: 20 -> 21"),
        ("byte", "src/linear.py: SHA-256 "),
        ("file", "src/new.py: added, SHA-256 e3b0c44298fc"),
    ],
)
def test_a_plan_frozen_anew_is_refused_with_its_first_difference(
    call: Call, w: Workspace, what: str, first: str
) -> None:
    approve(w, lock(w), "mill", 1.0)
    if what == "value":
        change(w.plan, "rounds: 20", "rounds: 21")
    elif what == "byte":
        change(w.root / "src" / "linear.py", "import numpy as np", "import  numpy as np")
    else:
        (w.root / "src" / "new.py").write_text("")
    assert call("plan", "freeze")[0] == 0
    error = refused(w)
    assert error.code == "R23" and f"which it approved: {first}" in error.message
    assert error.message.endswith("fx collaborator approve -n mill")


@pytest.mark.parametrize("what", ["another site's", "another key's", "another plan's", "damaged"])
def test_an_approval_that_is_not_this_sites_own_does_not_count(w: Workspace, what: str) -> None:
    approve(w, lock(w), "mill", 1.0)
    approve(w, lock(w), "farm", 1.0)
    folder = w.root / "approved" / lock(w).digest
    mine = folder / "mill.json"
    if what == "another site's":
        mine.write_bytes((folder / "farm.json").read_bytes())
    elif what == "another key's":
        key = create_identity_key()
        mine.write_bytes(sign_digest("approval", folder.name, "line", "mill", key, 1.0).data())
    elif what == "another plan's":
        key = load_identity_key(w.cert, "mill")
        mine.write_bytes(sign_digest("approval", "ab" * 32, "line", "mill", key, 1.0).data())
    else:
        mine.write_bytes(mine.read_bytes()[:-10])
    assert refused(w).code == "R22"
    approve(w, lock(w), "mill", 2.0)
    assert approval_for(w, lock(w), "mill").at == 2.0


def test_a_damaged_copy_is_not_compared_with(call: Call, w: Workspace) -> None:
    first = lock(w)
    approve(w, first, "mill", 1.0)
    change(w.plan, "rounds: 20", "rounds: 21")
    assert call("plan", "freeze")[0] == 0
    approve(w, lock(w), "mill", 2.0)
    change(w.root / "approved" / lock(w).digest / "plan.lock", '"rounds": 21', '"rounds": 22')
    change(w.plan, "rounds: 21", "rounds: 23")
    assert call("plan", "freeze")[0] == 0
    assert "rounds: 20 -> 23" in refused(w).message
    shutil.rmtree(w.root / "approved" / first.digest / "src")
    change(w.root / "src" / "linear.py", "import numpy as np", "import  numpy as np")
    assert call("plan", "freeze")[0] == 0
    out = call("collaborator", "approve", "-n", "mill", "--silent")[1]
    assert "rounds: 20 -> 23" in out and "(not shown: it is too large, or not at hand" in out


def frozen_with(call: Call, w: Workspace, rounds: int) -> Lock:
    w.plan.write_text(re.sub(r"rounds: \d+", f"rounds: {rounds}", w.plan.read_text()))
    assert call("plan", "freeze")[0] == 0
    return lock(w)


def test_the_last_approved_is_the_one_signed_last(call: Call, w: Workspace) -> None:
    for at, rounds in ((2.0, 5), (3.0, 6), (1.0, 7), (2.5, 8)):
        approve(w, frozen_with(call, w, rounds), "mill", at)
    approve(w, frozen_with(call, w, 9), "farm", 4.0)
    assert "which it approved: rounds: 6 -> 9; " in refused(w).message
    for _ in range(2):  # a plan is never compared with itself
        said = call("collaborator", "approve", "-n", "mill", "--silent")[1]
        assert "  rounds: 6 -> 9\n" in said
    frozen_with(call, w, 6)
    again = call("collaborator", "approve", "-n", "mill", "--silent")[1]
    assert "  rounds: 9 -> 6\n" in again
    assert approval_for(w, lock(w), "mill").at == 3.0


def test_a_copy_of_another_plan_is_not_compared_with(call: Call, w: Workspace) -> None:
    locks = [frozen_with(call, w, rounds) for rounds in (5, 6)]
    approve(w, locks[1], "mill", 1.0)
    folder = w.root / "approved" / locks[1].digest
    write_lock(folder / "plan.lock", locks[0])
    frozen_with(call, w, 7)
    assert "nor any other before" in refused(w).message


# -- diff ---------------------------------------------------------------------------------------


def test_what_differs_is_said_and_decides_the_exit_code(
    call: Call, w: Workspace, tmp_path: Path
) -> None:
    shutil.copytree(w.root, tmp_path / "old")
    assert call("collaborator", "approve", "-n", "mill", "--silent")[0] == 0
    old = lock(w)
    w.plan.write_text("# reordered\n" + w.plan.read_text())
    assert call("plan", "diff")[0] == 0
    change(w.plan, "rounds: 20", "rounds: 21")
    assert call("plan", "freeze")[0] == 0
    for arguments in ((), (old.digest,), ("../old",), ("../old/plan/plan.lock", ".")):
        code, out, _ = call("plan", "diff", *arguments)
        assert code == 1 and out.endswith("\nrounds: 20 -> 21\n")
        assert old.digest in out and lock(w).digest in out
    assert "rounds: 21 -> 20" in call("plan", "diff", ".", "../old")[1]
    assert call("plan", "diff", "../old", old.digest)[0] == 0
    code, out, _ = call("plan", "diff", "--json")
    assert code == 1 and json.loads(out) == {
        "same": False,
        "old": old.digest,
        "new": lock(w).digest,
        "changes": [{"part": "plan", "path": "rounds", "old": "20", "new": "21"}],
    }


@pytest.mark.parametrize(
    "arguments", [(), ("ab" * 32,), ("no/such",), ("plan/plan.yaml",), ("src",), ("/dev/zero",)]
)
def test_what_cannot_be_compared_is_said(call: Call, arguments: tuple[str, ...]) -> None:
    code, out, err = call("plan", "diff", *arguments)
    assert (code, out) == (2, "") and err.startswith("P31  ")
    assert all(argument in err for argument in arguments)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(call: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert call("plan", "diff", str(tmp_path / "pipe"))[0] == 2
