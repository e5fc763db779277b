"""What a sandbox is made of, without one: the words before a command, and control groups."""

import os
from pathlib import Path

import pytest

from openfed.launch import cgroups
from openfed.launch.sandbox import Limits, View, Walls, by_signal, interpreter, limits_of, wrapped
from openfed.launch.status import as_told, status_lines
from openfed.observe.view import fold_all
from openfed.plan.site import read_site

ALL = frozenset({"--size", "--disable-userns"})
HERE = Walls("/usr/bin/bwrap", "bubblewrap 0.8.0", ALL, 7, {})
ROOT = Path("/w")
VIEW = View(
    hidden=ROOT,
    home=ROOT / "runs/home/one.task",
    packages=(Path("/opt/python"), ROOT / ".venv"),
    reads=(ROOT / "src", Path("/data/one")),
    writes=(ROOT / "runs/exchange/one/out",),
)


def mounts(words: list[str]) -> list[str]:
    """The places that are mounted, in order, with how."""
    two = ("--ro-bind", "--ro-bind-try", "--dev-bind", "--bind", "--symlink")
    found = []
    for index, word in enumerate(words):
        if word in two:
            found.append(f"{word} {words[index + 2]}")
        elif word in ("--tmpfs", "--remount-ro"):
            found.append(f"{word} {words[index + 1]}")
    return found


def test_the_workspace_is_hidden_before_anything_in_it_is_shown() -> None:
    words = wrapped(VIEW, HERE, Limits(memory=1 << 30))
    told = mounts(words)
    hidden = told.index("--tmpfs /w")
    assert told.index("--ro-bind /opt/python") < hidden
    for shown in ("--ro-bind /w/.venv", "--ro-bind /w/src", "--bind /w/runs/exchange/one/out"):
        assert hidden < told.index(shown)
    assert told[-3:] == ["--remount-ro /w", "--remount-ro /proc", "--remount-ro /"]
    assert "--tmpfs /w/runs/home/one.task" in told
    assert [each for each in told if each.startswith("--bind")] == [
        "--bind /w/runs/exchange/one/out"
    ]
    assert not [each for each in told if "/sys" in each and "devices/system" not in each]
    assert words[-1] == "--"


def test_walls_that_every_sandbox_has() -> None:
    words = wrapped(VIEW, HERE, Limits(memory=1 << 30))
    for wall in ("net", "user", "pid", "ipc"):
        assert f"--unshare-{wall}" in words
    assert {"--die-with-parent", "--new-session", "--disable-userns"} <= set(words)
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert words[words.index("--size") + 1] == str(1 << 28)


def test_an_older_bubblewrap_is_asked_for_what_it_knows() -> None:
    words = wrapped(VIEW, Walls("bwrap", "bubblewrap 0.4.0", frozenset(), 0, {}), Limits())
    assert not ALL & set(words)
    assert "--tmpfs" in words


def test_devices_of_a_gpu_come_with_what_their_driver_reads() -> None:
    view = View(ROOT, VIEW.home, (), (), VIEW.writes, (Path("/dev/nvidia0"),))
    told = mounts(wrapped(view, HERE, Limits()))
    assert {"--dev-bind /dev/nvidia0", "--ro-bind-try /sys"} <= set(told)


def test_a_checkout_of_openfed_is_shown_as_its_package_only(tmp_path: Path) -> None:
    import openfed

    package = Path(openfed.__file__).parent
    shown = interpreter(tmp_path)
    if package.parent.name not in ("site-packages", "dist-packages"):
        assert package in shown and package.parent not in shown
    assert Path.home() not in shown and Path("/") not in shown and tmp_path not in shown


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (5, 5), (-9, -9), (137, -9), (139, -11)])
def test_an_exit_by_signal_is_told_as_one(code: int, wanted: int) -> None:
    assert by_signal(code) == wanted


def test_what_is_missing_is_said() -> None:
    whole = Walls("bwrap", "bubblewrap 0.8.0", ALL, 7, {"pids": ROOT, "memory": ROOT})
    assert list(whole.gaps) == []
    assert whole.words == "sandbox (bubblewrap 0.8.0, Landlock 7, control group)"
    poor = Walls("bwrap", "bubblewrap 0.8.0", ALL, 0, {})
    assert poor.words == "sandbox (bubblewrap 0.8.0, no Landlock, limits of each process)"
    first, second = poor.gaps
    assert "no Landlock" in first
    assert ("for root" in second) == (os.getuid() == 0)


def test_the_limits_of_a_sites_containers_hold_for_its_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("name: one\ndata: x\nisolation: sandbox\n")
    assert limits_of(read_site(path)) == limits_of(None) == Limits()
    assert 0 < Limits().bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path.write_text("name: one\ndata: x\ncontainer: {memory: 2GiB, pids: 99}\n")
    assert limits_of(read_site(path)) == Limits(memory=2 << 30, pids=99)


# -- control groups -------------------------------------------------------------------------------


def test_version_2_offers_the_group_beside_ours_or_the_top(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "app" / "fx.scope").mkdir(parents=True)
    own = "0::/app/fx.scope\n"
    assert cgroups.parents(own, tmp_path) == {}
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert set(cgroups.parents(own, tmp_path).values()) == {tmp_path}
    (tmp_path / "app" / "cgroup.subtree_control").write_text("memory pids\n")
    assert set(cgroups.parents(own, tmp_path).values()) == {tmp_path / "app"}
    (tmp_path / "app" / "cgroup.subtree_control").write_text("pids\n")
    assert set(cgroups.parents(own, tmp_path).values()) == {tmp_path}


def test_version_1_offers_our_own_group_of_both_hierarchies(tmp_path: Path) -> None:
    (tmp_path / "memory" / "a").mkdir(parents=True)
    own = "9:name=systemd:/\n8:pids:/b\n4:memory:/a\n0::/\n"
    assert cgroups.parents(own, tmp_path) == {}
    (tmp_path / "pids" / "b").mkdir(parents=True)
    wanted = {"memory": tmp_path / "memory" / "a", "pids": tmp_path / "pids" / "b"}
    assert cgroups.parents(own, tmp_path) == wanted


def test_groups_are_made_limited_and_removed() -> None:
    """For real, where this user may: elsewhere there is nothing to make."""
    if where := cgroups.here():
        name = f"openfed-test-{os.getpid()}"
        groups = cgroups.make(where, name, 64 << 20, 17)
        try:
            limits = [path.read_text().strip() for each in groups for path in each.glob("*.max")]
            assert "17" in limits
            assert cgroups.make(where, name, 64 << 20, 17) == groups
        finally:
            cgroups.remove(groups)
        assert not any(group.exists() for group in groups)


# -- what people see ------------------------------------------------------------------------------


def test_status_names_what_holds_each_sites_code() -> None:
    started = {"event": "run.started", "at": 1.0, "run": "r", "plan_digest": "d" * 64, "name": "n"}
    started |= {"federation": "f", "rounds": 1, "collaborators": ["one", "two"], "fewest": 2}
    told = {"event": "node.described", "at": 2.0, "collaborator": "one", "isolation": "sandbox (x)"}
    view = fold_all([started, told, told])
    assert view.sites["one"].isolation == "sandbox (x)" and not view.sites["two"].isolation
    ended = {"event": "run.ended", "at": 3.0, "status": "completed", "rounds": 1, "reason": ""}
    view = fold_all([started, told, ended])
    assert view.ended is not None
    found = as_told(view.ended, view)
    assert found["isolation"] == {"one": "sandbox (x)"}
    assert "one: sandbox (x)" in list(status_lines(found, view))
