"""Reading and writing below `cert/`: modes are checked, keys never replaced, lines never lost."""

import os
import stat
from pathlib import Path

import yaml

from openfed.errors import CertificateError
from openfed.failpoints import failpoint
from openfed.files import shipped, sync_folder, write_beside
from openfed.pki.authority import Authority
from openfed.pki.peer import AUTHORITY
from openfed.pki.profile import Profile, parse_profiles

_MOST_BYTES = 1 << 20


def load_profiles(cert_dir: Path | None = None) -> dict[str, Profile]:
    """Role -> issuance profile: the operator's `cert/authority/profile.yaml`, or those that ship.

    Raises C19.
    """
    path = shipped("certs") / "standard.yaml"
    own = cert_dir / AUTHORITY / "profile.yaml" if cert_dir else path
    path = own if own.exists() else path
    try:
        return dict(parse_profiles(yaml.safe_load(read(path)), str(path)))
    except yaml.YAMLError as error:
        raise CertificateError("C19", f"{path}: {' '.join(str(error).split())}") from error


def load_authority(
    cert_dir: Path, passphrase: bytes | None = None, name: str = AUTHORITY
) -> Authority:
    """The root that signs; with `name` "previous" the one before it, during a roll-over."""
    folder = cert_dir / AUTHORITY
    certificate = read(folder / f"{name}.pem")
    return Authority(certificate, read_secret(folder / f"{name}.key"), passphrase)


def authority_here(cert_dir: Path) -> bool:
    """Whether the authority lies here, for us. Nodes in containers see its folder empty, or may
    not enter it, where there is one."""
    folder = cert_dir / AUTHORITY
    try:
        return folder.is_dir() and any(folder.iterdir())
    except PermissionError:
        return False


def make_folder(path: Path, mode: int) -> None:
    """Creates the folder if it is missing; refuses (C11) a private one that others can enter."""
    if not path.exists() and not path.is_symlink():
        path.mkdir(mode=mode, parents=True)
        path.chmod(mode)
    if mode == 0o700:
        _check_folder(path)


def read(path: Path, most: int = _MOST_BYTES) -> bytes:
    """At most `most` bytes of a file. Raises C12."""
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except FileNotFoundError as error:
        raise CertificateError("C12", f"{path} is missing") from error
    except OSError as error:
        raise CertificateError("C12", f"{path}: {error.strerror}") from error


def read_secret(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Reads a key, unless someone else could have read or replaced it. Raises C11, C12."""
    try:
        _check_folder(path.parent)
        if path.is_symlink():
            raise CertificateError("C11", f"{path}: expected a file, found a link")
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            _check_mode(path, os.fstat(file.fileno()), 0o600)
            return file.read(most)
    except FileNotFoundError as error:
        raise CertificateError("C12", f"{path} is missing") from error
    except OSError as error:
        raise CertificateError("C12", f"{path}: {error.strerror}") from error


def create_secret(path: Path, content: bytes) -> Path:
    """A new secret file, 0600: appears whole, and only where there was none. Raises C13."""
    beside = write_beside(path, content, 0o600)
    try:
        os.link(beside, path)
    except FileExistsError as error:
        raise CertificateError("C13", f"{path} is there already; keys are not replaced") from error
    finally:
        beside.unlink()
    sync_folder(path.parent)
    return path


def append_line(path: Path, line: bytes) -> None:
    """Durably add a line (without its end) to a file (0600), made if need be; under a lock.

    A last line without an end was cut off by a crash, before anyone was told: it goes.
    """
    made = not path.exists()
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "r+b") as file:
        if made:
            os.fchmod(file.fileno(), 0o600)
        whole = file.read().rfind(b"\n") + 1
        file.seek(whole)
        file.truncate()
        file.write(line + b"\n")
        file.flush()
        failpoint("record.written")
        os.fsync(file.fileno())
        failpoint("record.synced")
    if made:
        sync_folder(path.parent)


def _check_folder(path: Path) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise CertificateError("C11", f"{path}: expected a folder, found a link or a file")
    _check_mode(path, found, 0o700)


def _check_mode(path: Path, found: os.stat_result, mode: int) -> None:
    if stat.S_IMODE(found.st_mode) & ~mode & 0o7777:
        raise CertificateError(
            "C11",
            f"{path}: expected mode {mode:04o}, found {stat.S_IMODE(found.st_mode):04o}; "
            f"run: chmod {mode:o} {path}",
        )
