"""While a run is going: who has what in memory and in hand, as the kernel tells it."""

import os
import signal
from pathlib import Path

HELD = '''

class Held(Digits):
    """The same digits; the file that is its source stays open and mapped."""

    def __init__(self, source, **settings):
        self.file = open(source, "rb")
        self.view = np.memmap(source, mode="r")
        shard = int(self.view[0])
        super().__init__({"shard": shard, "of": 2}, **settings)
'''
FRAMEWORKS = ("libtorch", "/scipy/", "/sklearn/", "/pandas/")


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


def seen(pid: int) -> str:
    """All that names a file: what is mapped, open, on the command line and in the environment."""
    told = (Path(f"/proc/{pid}/{part}").read_bytes() for part in ("cmdline", "environ"))
    words = [part.decode(errors="replace") for part in told]
    return "\n".join([mapped(pid), *descriptors(pid), *words])


def test_keys_and_network_on_one_side_data_and_torch_on_the_other(workspace):
    here = workspace("torch_digits")
    with (here.root / "src" / "data.py").open("a") as code:
        code.write(HELD)
    here.edit("src.data:Digits", "src.data:Held")
    (here.root / "data").mkdir()
    for shard, name in ((1, "one"), (2, "two")):
        (here.root / "data" / name).write_bytes(bytes([shard]))
        here.edit(f"{{shard: {shard}, of: 2}}", f"data/{name}", "local.yaml")
    run = here.start("run", "-s", "rounds=100000")
    here.wait_until(lambda: len(here.events("round.ended")) >= 2, "two rounds")
    pids = here.processes()
    assert set(pids) == {"aggregator", "agent one", "agent two", "task one", "task two"}
    for name, pid in pids.items():
        networked = network_sockets(pid) & set(descriptors(pid))
        if name.startswith("task"):
            site = name.removeprefix("task ")
            own, other = f"data/{site}", f"data/{'two' if site == 'one' else 'one'}"
            assert own in mapped(pid)
            assert any(path.endswith(own) for path in descriptors(pid))
            assert other not in seen(pid)
            assert "libtorch" in mapped(pid)
            assert not networked
            held = [path for path in descriptors(pid) if path.startswith("socket:")]
            assert len(held) == 1  # the agent's Unix socket
            assert str(here.root / "cert") not in seen(pid)
            assert "cygrpc" not in mapped(pid) and "cryptography" not in mapped(pid)
        else:
            assert not [framework for framework in FRAMEWORKS if framework in mapped(pid)]
            assert networked and "cygrpc" in mapped(pid)
            assert "data/one" not in seen(pid) and "data/two" not in seen(pid)
            assert str(here.root / "data") not in seen(pid)
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    assert not here.processes()
    assert "resume" in here.said(run)
