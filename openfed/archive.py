"""Zip archives of one narrow form: what `pack` writes is read, and nothing else.

`zipfile` finds the entries. What it lets pass is refused here: an archive must be, byte for byte,
the headers that its entries need and their data, so that no two readers can see different things
in it. Sources: PKWARE's APPNOTE.TXT; Fifield, "A better zip bomb", 2019 (overlapping entries).
"""

import io
import os
import secrets
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openfed.errors import UsageError
from openfed.files import sync_folder

MAX_RATIO = 100
"""Most bytes that one byte of an archive may become."""

MAX_NAME, MAX_PART, MAX_DEPTH = 1000, 255, 32
"""Of an entry's name: bytes in all, bytes of one part, parts."""

_LEVEL = 9
_PLAIN_FILE = (stat.S_IFREG | 0o644) << 16
_FOLDER_BITS = 0x18  # external attributes as DOS has them: a folder, or the disk's label
_UTF8 = 0x800
_ENCRYPTED = 0x2041  # plainly, strongly, or with a hidden directory
_LOCAL, _CENTRAL = struct.Struct("<4s5H3L2H"), struct.Struct("<4s4B4H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR, _ZIP64_LOCATOR_BYTES = b"PK\x06\x07", 20
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{n}" for port in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"]
)
_FOREIGN = frozenset('\\:*?"<>|')
_UNSEEN = frozenset(["Cc", "Cf", "Cs", "Co", "Zl", "Zp"])  # controls, bidi, surrogates, ...


@dataclass(frozen=True)
class Limits:
    files: int
    size: int  # bytes: of the archive, and of everything in it


WORKSPACE = Limits(files=10_000, size=256 << 20)
PACKAGE = Limits(files=16, size=1 << 20)


def pack(files: Mapping[str, bytes]) -> bytes:
    """An archive of these files: the same bytes for the same files, wherever zlib is the same.

    Raises: UsageError: U31, a name that `contents` would refuse.
    """
    _check_names(sorted(files))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)  # of 1980-01-01
            info.create_system, info.external_attr = 3, _PLAIN_FILE
            archive.writestr(info, files[name], _method(files[name]), _LEVEL)
    return made.getvalue()


def _method(data: bytes) -> int:
    """Stored where deflating saves nothing, or so much that it would look like a bomb."""
    deflated = len(zlib.compress(data, _LEVEL)) - 6  # zlib's own header and checksum
    fits = deflated < len(data) <= deflated * MAX_RATIO
    return zipfile.ZIP_DEFLATED if fits else zipfile.ZIP_STORED


def read_package(
    path: Path, expected: Collection[str], limits: Limits = PACKAGE
) -> dict[str, bytes]:
    """The files of a small archive that must hold exactly those of `expected`.

    Raises: UsageError: U30 to U35.
    """
    with _naming(path):
        found = dict(contents(_read(path, limits), limits))
        if differing := sorted(found.keys() ^ set(expected)):
            what = "is missing" if differing[0] in expected else "is not expected there"
            raise _refused("U35", differing[0], f"{what}; expected: {', '.join(sorted(expected))}")
        return found


def unpack(
    path: Path,
    into: Path,
    limits: Limits = WORKSPACE,
    check: Callable[[Path, list[str]], None] = lambda folder, names: None,
) -> list[str]:
    """Unpack into a new folder, which appears whole or not at all; the names in it.

    `check` sees the folder before it gets its name, and may refuse it by raising.
    Raises: UsageError: U30 to U34; U03: something is in the way.
    """
    into = Path(os.path.abspath(into))
    _check_free(into)
    with _naming(path):
        data = _read(path, limits)
        beside = into.with_name(f".{into.name}.{secrets.token_hex(8)}")
        try:
            beside.mkdir(0o755)
            names = [_write(beside, name, content) for name, content in contents(data, limits)]
            check(beside, names)
            for folder, _, _ in os.walk(beside):
                sync_folder(Path(folder))
            _rename(beside, into)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    sync_folder(into.parent)
    return names


def contents(data: bytes, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of an archive; no name is given before all are checked.

    Raises: UsageError: U30 to U34.
    """
    start = _check_end(data, limits)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise UsageError("U30", f"is not an archive that openfed reads: {error}") from None
    for entry in entries:
        _check_kind(entry)
    _check_names([entry.orig_filename for entry in entries])
    if (total := sum(entry.file_size for entry in entries)) > limits.size:
        raise UsageError("U33", f"would be {total} bytes unpacked; expected {limits.size} at most")
    for entry, at in zip(entries, _check_layout(data, entries, start), strict=True):
        yield entry.orig_filename, _inflated(entry, data[at : at + entry.compress_size])


# -- the archive as a whole ------------------------------------------------------------------------


def _read(path: Path, limits: Limits) -> bytes:
    if not path.is_file():
        raise UsageError("U30", "there is no such file")
    with path.open("rb") as file:
        data = file.read(limits.size + 1)
    if len(data) > limits.size:
        raise UsageError("U33", f"is larger than {limits.size} bytes")
    return data


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the archive's path before what is said about it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(error.code, f"{path}: {error.message}") from None


def _check_end(data: bytes, limits: Limits) -> int:
    """Where the directory begins. Before anything else is read: how much there may be of it."""
    if len(data) < _END.size or data[-_END.size :][:4] != b"PK\x05\x06":
        raise UsageError("U30", "is no zip archive, is cut off, or has something behind its end")
    _, disk, first, here, count, size, start, comment = _END.unpack(data[-_END.size :])
    if data[-_END.size - _ZIP64_LOCATOR_BYTES :].startswith(_ZIP64_LOCATOR):
        raise UsageError("U30", "is a zip64 archive; openfed reads plain ones only")
    if disk or first or here != count or comment or start + size + _END.size != len(data):
        raise UsageError("U30", "its last record does not fit: bytes before, between or behind")
    if count > limits.files or size > limits.files * (_CENTRAL.size + MAX_NAME):
        raise UsageError("U33", f"has {count} entries; expected {limits.files} at most")
    return int(start)


def _check_layout(data: bytes, entries: Iterable[zipfile.ZipInfo], start: int) -> list[int]:
    """Where each entry's data begins, in an archive that holds nothing beside its entries."""
    at, places, directory = 0, [], b""
    for entry in entries:
        local, central = _headers(entry)
        if entry.header_offset != at or data[at : at + len(local)] != local:
            raise _refused("U30", entry, "its two headers differ, it overlaps, or bytes lie before")
        places.append(at + len(local))
        at = places[-1] + entry.compress_size
        directory += central
    count = _END.unpack(data[-_END.size :])[3]
    if at != start or data[start : -_END.size] != directory or count != len(places):
        raise UsageError("U30", "its directory is not the one that its entries need")
    return places


def _headers(entry: zipfile.ZipInfo) -> tuple[bytes, bytes]:
    """The local and the central header of an entry, with nothing optional in them."""
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437")
    year, month, day, hour, minute, second = entry.date_time
    common = (
        entry.flag_bits,
        entry.compress_type,
        hour << 11 | minute << 5 | second // 2,
        (year - 1980) << 9 | month << 5 | day,
        entry.CRC,
        entry.compress_size,
        entry.file_size,
        len(name),
        0,
    )
    made = (entry.create_version, entry.create_system, entry.extract_version, 0)
    local = _LOCAL.pack(b"PK\x03\x04", entry.extract_version, *common)
    last = (0, 0, 0, entry.external_attr, entry.header_offset)
    central = _CENTRAL.pack(b"PK\x01\x02", *made, *common, *last)
    return local + name, central + name


# -- one entry -------------------------------------------------------------------------------------


def _refused(code: str, entry: zipfile.ZipInfo | str, why: str) -> UsageError:
    name = entry if isinstance(entry, str) else entry.orig_filename
    return UsageError(code, f"{ascii(name[:200])}: {why}")


def _check_kind(entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or entry.external_attr & _FOLDER_BITS:
        what = "a link" if kind == stat.S_IFLNK else "a folder, a device or a pipe"
        raise _refused("U32", entry, f"is {what}; expected plain files only")
    if entry.flag_bits & _ENCRYPTED:
        raise _refused("U32", entry, "is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused("U32", entry, f"is compressed by method {entry.compress_type}, not deflate")
    if entry.flag_bits & ~_UTF8 or entry.extra or entry.comment or entry.volume:
        raise _refused("U32", entry, "has flags, extra fields or a comment that openfed never sets")
    if not entry.flag_bits & _UTF8 and not entry.orig_filename.isascii():
        raise _refused("U31", entry, "its name is not in UTF-8")


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that are not safe everywhere, and names that some system takes for the same."""
    files: set[str] = set()
    folders: set[str] = set()
    spelled: dict[str, str] = {}
    for name in names:
        if why := _unsafe(name):
            raise _refused("U31", name, why)
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            place, whole = "/".join(parts[:depth]), depth == len(parts)
            folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", place).casefold())
            other = spelled.setdefault(folded, place)
            if other != place or folded in files or (whole and folded in folders):
                why = f"is there twice, or some systems take it for {ascii(other[:200])}"
                raise _refused("U31", name, why)
            (files if whole else folders).add(folded)


def _unsafe(name: str) -> str:
    """Why no file may be called so; empty for a name that is good on every system."""
    parts = name.split("/")
    if any(unicodedata.category(c) in _UNSEEN for c in name):
        return "has a control character, or one that cannot be seen"
    if _FOREIGN & set(name):
        return f"has one of the characters {' '.join(sorted(_FOREIGN))}"
    if name.startswith("/") or ".." in parts:
        return "leads out of the folder"
    if "" in parts or "." in parts:
        return "has an empty part, or is a folder; expected plain files only"
    if len(parts) > MAX_DEPTH or len(name.encode()) > MAX_NAME:
        return f"is longer than {MAX_NAME} bytes or deeper than {MAX_DEPTH} folders"
    if any(len(part.encode()) > MAX_PART for part in parts):
        return f"has a part of more than {MAX_PART} bytes"
    if any(part.endswith((".", " ")) for part in parts):
        return "has a part that ends in a dot or a space"
    if any(part.partition(".")[0].rstrip().casefold() in _DEVICES for part in parts):
        return "is the name of a device on some systems"
    return ""


def _inflated(entry: zipfile.ZipInfo, raw: bytes) -> bytes:
    """The content; never more memory than declared, nor than `MAX_RATIO` allows."""
    content = raw
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        most = MAX_RATIO * len(raw)
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = stream.decompress(raw, min(entry.file_size, most) + 1)
        except zlib.error as error:
            raise _refused("U34", entry, f"is damaged: {error}") from None
        if len(content) > most:
            raise _refused("U33", entry, f"grows to more than {MAX_RATIO} times its size")
        if not stream.eof or stream.unused_data:
            raise _refused("U34", entry, "its data do not end where its header says")
    if len(content) != entry.file_size:
        raise _refused("U34", entry, f"holds {len(content)} bytes and says {entry.file_size}")
    if zlib.crc32(content) != entry.CRC:
        raise _refused("U34", entry, "is damaged: its checksum is another")
    return content


# -- the folder ------------------------------------------------------------------------------------


def _check_free(into: Path) -> None:
    if not into.parent.is_dir():
        raise UsageError("U03", f"there is no folder {into.parent}; nothing was written")
    if Path.cwd().is_relative_to(into.resolve()):
        raise UsageError("U03", f"{into} is the folder that you are in; give a new one")
    if os.path.lexists(into) and (into.is_symlink() or not into.is_dir() or any(into.iterdir())):
        raise UsageError("U03", f"{into} exists and is not an empty folder; nothing was written")


def _rename(folder: Path, into: Path) -> None:
    try:
        os.rename(folder, into)
    except OSError:
        _check_free(into)  # says what has come up there meanwhile
        raise


def _write(root: Path, name: str, content: bytes) -> str:
    """A new file of a new folder, not writable for others whatever the umask, and synced."""
    path = root / name
    for folder in reversed(path.relative_to(root).parents[:-1]):
        (root / folder).mkdir(0o755, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o644), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return name
