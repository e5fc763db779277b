"""While a run is going: who has what in memory and in hand, as the kernel tells it."""

import os
import signal
from pathlib import Path


def mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return found


def network_sockets(pid: int) -> set[str]:
    """Inodes of every TCP and UDP socket in the process's network namespace."""
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            found.add(f"socket:[{line.split()[9]}]")
    return found


def test_keys_and_network_on_one_side_data_and_torch_on_the_other(workspace):
    here = workspace("torch_digits")
    run = here.start("run", "-s", "rounds=100000")
    here.wait_until(lambda: len(here.events("round.ended")) >= 2, "two rounds")
    pids = here.processes()
    assert set(pids) == {"aggregator", "agent one", "agent two", "task one", "task two"}
    for name, pid in pids.items():
        torch_is_here = "libtorch" in mapped(pid)
        networked = network_sockets(pid) & set(descriptors(pid))
        if name.startswith("task"):
            assert torch_is_here
            assert not networked
            held = [path for path in descriptors(pid) if path.startswith("socket:")]
            assert len(held) == 1  # the agent's Unix socket
            inside = str(here.root / "cert")
            assert not any(path.startswith(inside) for path in descriptors(pid))
            assert "cygrpc" not in mapped(pid) and "cryptography" not in mapped(pid)
        else:
            assert not torch_is_here
            assert networked
            code = str(here.root / "src")
            assert code not in mapped(pid)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    assert not here.processes()
    assert "resume" in here.said(run)
