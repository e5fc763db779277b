"""Where one framework runs once: folders, an environment of its own, processes."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

APPS = Path(__file__).parent / "apps"
PASSED_ON = ("PATH", "LANG", "TMPDIR", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Place:
    """`tuned`: polling intervals as low as the framework lets them, else as it ships."""

    n: int
    mb: int
    rounds: int
    tuned: bool
    folder: Path  # of this run, fresh
    venv: Path
    kept: Path  # of all runs of this framework: what is made once
    certs: Path  # openfed's layout: authority.pem, aggregator/chain.pem, aggregator/node.key
    told: Path  # the socket on which sites tell that they have trained

    @property
    def site(self) -> Path:
        """What every site imports, whatever the framework."""
        return self.folder / "site"

    def bin(self, name: str) -> str:
        return str(self.venv / "bin" / name)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        own = {"HOME": str(self.folder), "BENCH_TOLD": str(self.told), "BENCH_SITE": str(self.site)}
        path = f"{self.venv / 'bin'}:{kept.get('PATH', '')}"
        return {**kept, **own, "PATH": path, "VIRTUAL_ENV": str(self.venv), **more}

    def start(
        self, words: Sequence[str], log: str, cwd: Path, **more: str
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=self.environment(more),
            )

    def do(self, words: Sequence[str], cwd: Path, **more: str) -> None:
        """Run a command to its end. Raises: RuntimeError: it failed."""
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=self.environment(more),
        )
        if done.returncode:
            said = (done.stdout + done.stderr)[-1500:]
            raise RuntimeError(f"{' '.join(words)} ended with code {done.returncode}: {said}")

    def copy(self, *names: str, into: Path) -> None:
        """Files of `apps/`."""
        into.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(APPS / name, into)


class Peer(Protocol):
    """A module of this package."""

    PACKAGES: tuple[str, ...]
    PORT: int

    def prepare(self, place: Place) -> None: ...
    def launch(self, place: Place) -> None:
        """Start everything; returns when it has been started."""
        ...

    def classify(self, command: str) -> str:
        """`server` or `client`, or nothing, by a command line."""
        ...


def listening(port: int, within_s: float = 120) -> None:
    """Wait for a port of this machine. Raises: RuntimeError: nothing listens in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port}")


def make_venv(cache: Path, name: str, packages: Sequence[str], unbound: str = "") -> Path:
    """A virtual environment with these packages, made once. `unbound`: a requirement of the first
    of them that is taken in any version, as package indexes may not have the one it asks for."""
    venv, wanted = cache / name, "\n".join(packages)
    stamp = venv / "packages"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {' '.join(packages)} in {venv} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        if unbound:
            install(venv, "--no-deps", *packages)
            needed = requirements(venv, packages[0].partition("==")[0])
            install(venv, *(unbound if line.startswith(unbound) else line for line in needed))
        else:
            install(venv, *packages)
        stamp.write_text(wanted)
    return venv


def install(venv: Path, *words: str) -> None:
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", *words]
    subprocess.run(pip, check=True)


def requirements(venv: Path, package: str) -> list[str]:
    """What an installed package needs, its extras left out."""
    code = f"import importlib.metadata as m; print(*m.requires({package!r}), sep='\\n')"
    given = [str(venv / "bin" / "python"), "-c", code]
    lines = subprocess.run(given, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "extra ==" not in line]
