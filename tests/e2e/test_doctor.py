"""`fx doctor`: faults seeded one at a time in real workspaces, and real servers that misbehave."""

import asyncio
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from openfed.launch.doctor import examine
from openfed.launch.findings import Level, exit_code
from openfed.plan.lock import make_lock, read_lock, write_lock
from openfed.workspace import Workspace
from tests.e2e.faults import (
    AGG,
    AS_WELL,
    DAY,
    GREETINGS,
    LOCAL,
    MILL,
    SERVERS,
    SITE,
    Aggregator,
    aggregator,
    free_port,
    gone,
    key_file,
    stranger,
)
from tests.e2e.folders import FX


@pytest.mark.parametrize("fault", LOCAL)
def test_a_fault_is_found_by_its_code_with_one_thing_to_do(fault, world):
    side, seed, code, words, ends = LOCAL[fault]
    seed(world)
    begun = time.monotonic()
    findings = list(examine(world.side(side)))
    assert time.monotonic() - begun < 2 * 10
    wrong = [each for each in findings if each.level is not Level.PASS]
    found = next(each for each in wrong if each.code == code)
    assert words in found.found and found.remedy.endswith((".", ")"))
    ours = {each.code for each in wrong} - {"T05"}  # no aggregator is up
    assert ours <= {code} | AS_WELL.get(fault, set()), wrong
    assert exit_code([each for each in findings if each.code != "T05"]) == ends


def test_every_problem_of_a_plan_is_told(world):
    world.edit(AGG, "plan/plan.yaml", "rounds: 2", "rounds: -2\ncolour: red")
    codes = [each.code for each in examine(world.agg) if each.level is Level.FAIL]
    assert codes == ["P08", "P01"]


def test_a_clock_that_is_slow_is_told_by_how_much(world):
    world.leaf(MILL, age=-DAY)
    found = next(each for each in examine(world.mill) if each.code == "C06")
    slow = int(found.remedy.rpartition(" is ")[2].split()[0])
    assert DAY - 700 < slow <= DAY - 590  # a leaf begins ten minutes early


def test_a_failure_hides_nothing_that_does_not_depend_on_it(world):
    world.leaf(MILL, age=31 * DAY)
    key_file(world, MILL, "node.key").chmod(0o640)
    gone(world.mill.root / "approved")
    gone(world.mill.root / "data")
    failed = [each.code for each in examine(world.mill) if each.level is Level.FAIL]
    assert failed == ["C11", "C05", "R23", "U62"]


def test_who_is_examined_can_be_said(world):
    whats = {each.what for each in examine(world.agg, "aggregator")}
    assert "port" in whats and not any("mill" in what for what in whats)
    found = [each.found for each in examine(world.mill, "will") if each.code == "U16"]
    assert len(found) == 2 and "it has: mill, farm" in found[0] and "is of 'mill'" in found[1]


def test_a_folder_of_nobody_says_so(world):
    gone(world.mill.cert)
    gone(world.mill.root / "site.yaml")
    found = list(examine(world.mill))
    assert [each.code for each in found if each.level is Level.FAIL] == ["U60"]
    assert exit_code(found) == 2


def test_a_model_that_fits_the_disk_but_not_four_times_is_a_warning(world):
    world.huge(shutil.disk_usage(world.agg.root).free // 2 // 4)
    wrong = [each for each in examine(world.agg) if each.level is not Level.PASS]
    assert [(each.level, each.code) for each in wrong] == [(Level.WARN, "U68")]


def test_the_file_of_an_initial_model_is_missed_by_nobody_who_has_the_lock(world):
    lock = read_lock(world.agg.lock)
    plan = lock.plan.model_copy(update={"init": "save/warm.safetensors"})
    world.edit(AGG, "plan/plan.yaml", "rounds:", "init: save/warm.safetensors\nrounds:")
    assert [each.code for each in examine(world.agg) if each.level is Level.FAIL] == ["P16"]
    made = make_lock(plan, lock.files, lock.model_digest, lock.signature)
    write_lock(world.agg.lock, made)
    assert {each.level for each in examine(world.agg)} == {Level.PASS}


@pytest.mark.parametrize(
    ("data", "is_path"),
    [
        ("owner/set", False),
        ("shard-7", False),
        ("s3://bucket/set", False),
        ("./set", True),
        ("/nowhere/set", True),
        ("data/set", True),  # below a folder that is here
        ("set.csv", True),
    ],
)
def test_only_what_can_be_nothing_but_a_path_has_to_be_there(data, is_path, world):
    world.edit(MILL, "site.yaml", "data/mill.csv", data)
    assert ("U62" in {each.code for each in examine(world.mill)}) == is_path


def test_a_good_aggregators_workspace_only_passes(world):
    assert {each.level for each in examine(world.agg)} == {Level.PASS}
    assert not list(world.agg.root.rglob(".doctor*"))


def test_proxies_of_the_environment_are_told_and_not_used(world, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    warned = [each for each in examine(world.agg) if each.level is Level.WARN]
    assert [each.code for each in warned] == ["U64"]
    assert "HTTPS_PROXY" in warned[0].found and "secret" not in str(warned)


@pytest.mark.skipif("tmpfs /dev/shm " not in Path("/proc/mounts").read_text(), reason="no tmpfs")
def test_a_workspace_in_memory_is_told(world):
    root = Path("/dev/shm") / f"openfed-doctor-{os.getpid()}"
    try:
        shutil.copytree(world.agg.root, root)
        warned = [each for each in examine(Workspace(root)) if each.level is Level.WARN]
    finally:
        shutil.rmtree(root)
    assert [each.code for each in warned] == ["U66"] and "tmpfs" in warned[0].found


# -- the network -----------------------------------------------------------------------------------


def doctor(workspace, *words) -> dict:
    """What `fx doctor --json` says, as a person would run it, and how it ended."""
    begun = time.monotonic()
    command = [*FX, "doctor", "--json", *words]
    done = subprocess.run(
        command, cwd=workspace.root, capture_output=True, text=True, timeout=30, check=False
    )
    assert time.monotonic() - begun < 2 * 10, "it took too long"
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == told["exit_code"], done.stderr
    return told


def dialling(world, address):
    (world.mill.root / "site.yaml").write_text(SITE.format(address=address))
    told = doctor(world.mill)
    return told, [each for each in told["findings"] if each["level"] != "PASS"]


def check(world, address, code, words, ends):
    told, wrong = dialling(world, address)
    assert [each["code"] for each in wrong] == [code], wrong
    assert words in wrong[0]["found"] + wrong[0]["remedy"]
    assert wrong[0]["what"] == "network of mill" and told["exit_code"] == ends


@pytest.mark.parametrize("fault", SERVERS)
def test_a_server_that_is_not_our_aggregator_is_named(fault, world, tmp_path):
    server, code, words, ends = SERVERS[fault]
    with server(world, tmp_path) as port:
        check(world, f"localhost:{port}", code, words, ends)


def test_a_closed_port_is_one_that_start_waits_for(world):
    port = free_port()
    check(world, f"localhost:{port}", "T05", "fx collaborator start waits for it", 4)


def test_a_name_that_does_not_resolve_is_named(world):
    check(world, "nobody.invalid:50051", "T04", "'nobody.invalid' does not resolve", 4)


@pytest.mark.parametrize("fault", GREETINGS)
def test_what_the_aggregator_refuses_is_told(fault, world):
    make, options, code, words, ends = GREETINGS[fault]

    async def main():
        async with aggregator(world, make, **options) as address:
            await asyncio.to_thread(check, world, address, code, words, ends)

    asyncio.run(main())


def test_an_aggregator_that_does_not_take_our_certificate_is_named(world):
    async def main():
        async with aggregator(world, Aggregator, identity=stranger(world)) as address:
            words = "refuses the certificate of collaborator 'mill'"
            await asyncio.to_thread(check, world, address, "C24", words, 3)

    asyncio.run(main())


def test_a_good_sites_workspace_only_passes(world):
    async def main():
        async with aggregator(world, Aggregator) as address:
            told, wrong = await asyncio.to_thread(dialling, world, address)
        assert (wrong, told["exit_code"]) == ([], 0)
        network = [each["found"] for each in told["findings"] if "network" in each["what"]]
        assert "TLS 1.3" in network[0] and "run run-1, running" in network[1]

    asyncio.run(main())


def test_beside_a_real_aggregator_both_sides_pass_and_a_second_one_fails(world):
    """The run waits for the sites; nothing here takes part in it."""
    shutil.copytree(world.agg.root, world.agg.root.parent / "second")
    process = subprocess.Popen(
        [*FX, "aggregator", "start"],
        cwd=world.agg.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        events = world.agg.logs / "events.jsonl"
        until = time.monotonic() + 60
        while not (events.exists() and "run.started" in events.read_text()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        assert {each.level for each in examine(world.agg)} == {Level.PASS}
        told = doctor(world.mill)
        assert [each for each in told["findings"] if each["level"] != "PASS"] == []
        second = doctor(Workspace(world.agg.root.parent / "second"))
        assert second["exit_code"] == 4
        assert [each["code"] for each in second["findings"] if each["level"] == "FAIL"] == ["T02"]
    finally:
        process.terminate()
        process.wait(30)


def test_people_read_lines_with_a_remedy_below_what_is_wrong(world):
    gone(world.agg.cert / "roster.json")
    done = subprocess.run([*FX, "doctor"], cwd=world.agg.root, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[at].startswith("FAIL  roster on aggregator: C12  ")
    assert lines[at + 1].startswith("      -> ") and done.returncode == 3
    assert lines[0].startswith("PASS  python: ") and not done.stderr


def test_an_aggregator_that_may_not_open_enough_files_is_told_and_does_not_start(world):
    scarce = ("sh", "-c", 'ulimit -n 103; exec "$@"', "sh", *FX)
    for words, out in ((("doctor",), "stdout"), (("aggregator", "start"), "stderr")):
        done = subprocess.run([*scarce, *words], cwd=world.agg.root, capture_output=True, text=True)
        assert done.returncode == 1
        told = "expected 104 open files for 2 sites, this process may have 103"
        assert "T20" in getattr(done, out) and told in getattr(done, out)
