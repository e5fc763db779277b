"""What each folder does on its way to `start`, as typed, with an umask that forbids nothing."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

FX = (sys.executable, "-m", "openfed")


def fx(root: Path, *words, code: int = 0, **settings) -> str:
    """Standard output of the command, which must end with `code`."""
    done = subprocess.run(
        [*FX, *map(str, words)], cwd=root, capture_output=True, text=True, timeout=60, **settings
    )
    assert done.returncode == code, f"fx {' '.join(map(str, words))}: {done.stdout}{done.stderr}"
    return done.stdout


def passed(source: Path, target: Path) -> Path:
    """One file is sent from folder to folder."""
    return Path(shutil.copy(source, target))


def ready_to_serve(here: Path) -> None:
    """The aggregator's side: its plan is frozen, its authority made, the archive written."""
    fx(here, "plan", "initialize", "-a", "localhost", umask=0)
    fx(here, "workspace", "certify", umask=0)
    fx(here, "aggregator", "generate-cert-request", "--fqdn", "localhost", umask=0)
    fx(here, "aggregator", "certify", "--fqdn", "localhost", "--silent", umask=0)
    fx(here, "workspace", "export", umask=0)


def import_at(root: Path, name: str) -> Path:
    """A site's workspace, of the archive alone."""
    outside = root / f"post-{name}"
    outside.mkdir()
    archive = passed(root / "aggregator" / "aggregator.zip", outside)
    fx(outside, "workspace", "import", "--archive", archive, "--prefix", root / name, umask=0)
    return root / name


def by_hand(authority: Path, site: Path, name: str) -> None:
    """A site is certified, by packages."""
    fx(site, "collaborator", "generate-cert-request", "-n", name, "--silent", umask=0)
    package = passed(site / f"col_{name}_to_agg_cert_request.zip", authority)
    fx(authority, "collaborator", "certify", "--request-pkg", package.name, "--silent", umask=0)
    package = passed(authority / f"agg_to_col_{name}_signed_cert.zip", site)
    fx(site, "collaborator", "certify", "--import", package.name, umask=0)


def free_ports() -> int:
    """A port that is free, and so is the next one."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
