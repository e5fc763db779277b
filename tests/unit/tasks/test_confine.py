"""The inner walls alone, put up by a process around itself: no namespaces help here."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openfed.tasks.confine import landlock_abi

TRY = """
import json, os, resource, socket, sys
from pathlib import Path
from openfed.tasks import confine
told = json.loads(sys.argv[1])
confine.limit(told)
if told["landlock"]:
    confine.landlock(told["landlock"], [Path(told["writes"][0])])

def tried(attack):
    try:
        attack()
    except OSError as error:
        return error.strerror
    return "done"

def connect(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.connect(address)

inside, outside = Path(told["writes"][0]), Path(told["outside"])
print(json.dumps({
    "write inside": tried(lambda: (inside / "new").write_text("x")),
    "write outside": tried(lambda: (outside / "new").write_text("x")),
    "cut outside": tried(lambda: os.truncate(outside / "kept", 0)),
    "remove outside": tried(lambda: (outside / "kept").unlink()),
    "move outside": tried(lambda: os.rename(inside / "new", outside / "moved")),
    "read outside": tried(lambda: (outside / "kept").read_text()),
    "null": tried(lambda: Path(os.devnull).write_text("x")),
    "tcp": tried(lambda: connect(("127.0.0.1", told["port"]))),
    "abstract": tried(lambda: connect("\\0" + told["abstract"])),
    "signal": tried(lambda: os.kill(told["pid"], 0)),
    "child": os.waitstatus_to_exitcode(os.system("echo x > " + str(outside / "new") + " 2>&-")),
    "large": tried(lambda: (inside / "large").write_bytes(bytes(told["file_size"] + 1))),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "data": resource.getrlimit(resource.RLIMIT_DATA),
    "processes": resource.getrlimit(resource.RLIMIT_NPROC),
}))
"""


@pytest.fixture
def confined(tmp_path: Path) -> Any:
    """What a process that confines itself can do, with Landlock of an ABI."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()

    def run(abi: int) -> dict[str, Any]:
        (tmp_path / "out" / "kept").write_text("kept")
        name = f"openfed-confined-{os.getpid()}"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as own:
            own.bind("\0" + name)
            own.listen()
            told = {"landlock": abi, "writes": [str(tmp_path / "in")], "abstract": name}
            told |= {"outside": str(tmp_path / "out"), "port": server.getsockname()[1]}
            told |= {"memory": 1 << 30, "file_size": 1 << 20, "processes": 4000}
            told |= {"pid": os.getpid()}
            command = [sys.executable, "-c", TRY, json.dumps(told)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_without_landlock_there_are_limits_only(confined: Any) -> None:
    found = confined(0)
    assert found["write outside"] == found["tcp"] == found["signal"] == "done"
    assert found["large"] == "File too large"
    assert found["core"] == [0, 0]
    assert found["data"] == [1 << 30, 1 << 30]
    assert found["processes"][1] <= 4000


def test_this_kernel_says_which_landlock_it_has() -> None:
    said = Path("/sys/kernel/security/lsm")
    if said.exists():
        assert (landlock_abi() > 0) == ("landlock" in said.read_text())
    assert 0 <= landlock_abi() < 100


@pytest.mark.parametrize("abi", range(1, landlock_abi() + 1))
def test_every_version_of_landlock_keeps_writes_where_they_belong(confined: Any, abi: int) -> None:
    found = confined(abi)
    assert found["write inside"] == found["read outside"] == found["null"] == "done"
    for attack in ("write outside", "remove outside"):
        assert found[attack] == "Permission denied", attack
    assert found["move outside"] in ("Permission denied", "Invalid cross-device link")
    assert found["cut outside"] == ("Permission denied" if abi >= 3 else "done")
    assert found["child"] != 0
    assert found["tcp"] == ("Permission denied" if abi >= 4 else "done")
    wanted = "Operation not permitted" if abi >= 6 else "done"
    assert found["abstract"] == found["signal"] == wanted
