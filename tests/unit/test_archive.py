"""Archives: what comes back is what went in, and no bytes whatever touch anything else."""

import io
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfed.archive import MAX_RATIO, PACKAGE, Limits, contents, pack, read_package, unpack
from openfed.errors import UsageError

GOOD = {
    "plan/plan.yaml": b"rounds: 1\n",
    "src/__init__.py": b"",
    "src/data.bin": bytes(range(256)) * 4,
    "src/na\u00efve/model.py": b"x = 1\n" * 200,
    "src/zeros": bytes(100_000),
}
LIMITS = Limits(files=20, size=1 << 20)
FILE = (stat.S_IFREG | 0o644) << 16


# -- a writer of archives that lets everything be wrong ----------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry. `local_*`: what its local header says instead."""

    name: bytes
    data: bytes = b"hello"
    raw: bytes | None = None  # what stands in the archive; default: the data, deflated or stored
    method: int = 8
    flags: int = 0
    attributes: int = FILE
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    extra: bytes = b""
    comment: bytes = b""
    offset: int | None = None
    disk: int = 0
    needs: int = 20
    local_name: bytes | None = None
    local_size: int | None = None
    local_method: int | None = None
    local_extra: bytes = b""
    before: bytes = b""
    behind: bytes = b""
    unwritten: bool = False  # the directory names it, nothing else is there


def deflated(data: bytes) -> bytes:
    return zlib.compress(data, 9, wbits=-15)


def build(*entries: Entry, **end) -> bytes:
    """The archive. `end`: count, total, size, start, comment, before, gap, behind, disk."""
    body, directory = end.get("before", b""), b""
    for entry in entries:
        raw = entry.raw
        if raw is None:
            raw = deflated(entry.data) if entry.method == 8 else entry.data
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        packed = len(raw) if entry.packed is None else entry.packed
        size = len(entry.data) if entry.size is None else entry.size
        body += entry.before
        at = len(body) if entry.offset is None else entry.offset
        if not entry.unwritten:
            name = entry.local_name or entry.name
            method = entry.method if entry.local_method is None else entry.local_method
            sizes = (crc, packed, size if entry.local_size is None else entry.local_size)
            lengths = (len(name), len(entry.local_extra))
            head = (b"PK\3\4", entry.needs, entry.flags, method, 0, 33, *sizes, *lengths)
            body += struct.pack("<4s5H3L2H", *head) + name + entry.local_extra + raw + entry.behind
        head = (b"PK\1\2", 20, 3, entry.needs, 0, entry.flags, entry.method, 0, 33)
        lengths = (len(entry.name), len(entry.extra), len(entry.comment))
        last = (entry.disk, 0, entry.attributes, at)
        directory += struct.pack("<4s4B4H3L5H2L", *head, crc, packed, size, *lengths, *last)
        directory += entry.name + entry.extra + entry.comment
    body += end.get("gap", b"")
    count, comment = end.get("count", len(entries)), end.get("comment", b"")
    size, start = end.get("size", len(directory)), end.get("start", len(body))
    disk, total = end.get("disk", 0), end.get("total", count)
    last = struct.pack("<4s4H2LH", b"PK\5\6", disk, 0, count, total, size, start, len(comment))
    return body + directory + end.get("zip64", b"") + last + comment + end.get("behind", b"")


A = Entry(b"a.txt")
B = Entry(b"b.txt", b"world")


def mode(bits: int) -> int:
    return (bits | 0o644) << 16


def zip64_that_lies() -> bytes:
    """Its zip64 records say that the directory is elsewhere, and zipfile believes them."""
    hidden = build(Entry(b"other.txt"))
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 20, 20, 0, 0, 1, 1, 55, 40)
    return build(A, before=hidden, zip64=record + locator)


def overlapping() -> bytes:
    """Fifield: the second entry quotes the first one's header and shares its data."""
    inner = build(Entry(b"b.txt", b"x" * 50))
    kernel = inner[: inner.index(b"PK\1\2")]
    quote = b"\0" + struct.pack("<HH", len(kernel), 0xFFFF ^ len(kernel)) + kernel
    data = kernel + b"x" * 50
    first = Entry(b"a.txt", data, raw=quote + deflated(b"x" * 50))
    header = 30 + len(b"a.txt") + 5
    second = Entry(b"b.txt", b"x" * 50, offset=header, unwritten=True)
    return build(first, second)


def named(name: bytes | str, **more) -> bytes:
    plain = name if isinstance(name, bytes) else name.encode()
    return build(A, Entry(plain, flags=0 if plain.isascii() else 0x800, **more))


def two(left: str, right: str) -> bytes:
    return build(*(Entry(name.encode(), flags=0x800) for name in (left, right)))


def bomb() -> bytes:
    return build(A, Entry(b"bomb", bytes(900_000)))


EVIL: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an absolute path": ("U31", lambda: named("/tmp/evil")),
    "a way out": ("U31", lambda: named("../evil")),
    "a way out from within": ("U31", lambda: named("src/../../evil")),
    "only dots": ("U31", lambda: named("..")),
    "a backslash way out": ("U31", lambda: named("..\\evil")),
    "a drive": ("U31", lambda: named("C:evil")),
    "a stream of another file": ("U31", lambda: named("a.txt:hidden")),
    "a network path": ("U31", lambda: named("//host/share/evil")),
    "a NUL": ("U31", lambda: named(b"evil.txt\0.png")),
    "an escape sequence": ("U31", lambda: named(b"evil\x1b[2J")),
    "a name that reads from right to left": ("U31", lambda: named("evil\u202etxt.py")),
    "an empty name": ("U31", lambda: named("")),
    "an empty part": ("U31", lambda: named("src//evil")),
    "a dot as part": ("U31", lambda: named("src/./evil")),
    "a folder": ("U31", lambda: named("src/", data=b"", method=0)),
    "a folder with content": ("U31", lambda: named("src/")),
    "a folder by its attributes": ("U32", lambda: named("src", attributes=0x10)),
    "a symbolic link": ("U32", lambda: named("e", data=b"/etc", attributes=mode(stat.S_IFLNK))),
    "a device": ("U32", lambda: named("e", attributes=mode(stat.S_IFBLK))),
    "a pipe": ("U32", lambda: named("e", attributes=mode(stat.S_IFIFO))),
    "a socket": ("U32", lambda: named("e", attributes=mode(stat.S_IFSOCK))),
    "a file twice": ("U31", lambda: build(A, A)),
    "a file in a file": ("U31", lambda: build(A, Entry(b"a.txt/b"))),
    "a file over a folder": ("U31", lambda: build(Entry(b"a/b"), Entry(b"a"))),
    "upper and lower case": ("U31", lambda: two("src/A.py", "src/a.py")),
    "folders in upper and lower case": ("U31", lambda: two("src/a.py", "SRC/b.py")),
    "sharp s": ("U31", lambda: two("stra\u00dfe", "strasse")),
    "accents in two ways": ("U31", lambda: two("caf\u00e9", "cafe\u0301")),
    "a ligature": ("U31", lambda: two("o\ufb03ce", "office")),
    "a device of Windows": ("U31", lambda: named("src/CON")),
    "a device of Windows with a suffix": ("U31", lambda: named("src/nul.txt")),
    "a device of Windows with a blank": ("U31", lambda: named("src/com1 .txt")),
    "a trailing dot": ("U31", lambda: named("a.txt.")),
    "a trailing blank": ("U31", lambda: named("a.txt ")),
    "a long part": ("U31", lambda: named("a" * 256)),
    "a long name": ("U31", lambda: named("/".join(["a" * 250] * 5))),
    "a deep name": ("U31", lambda: named("a/" * 40 + "b")),
    "a name in no known encoding": ("U31", lambda: build(Entry(b"caf\x82"))),
    "a name that is not UTF-8": ("U30", lambda: build(Entry(b"caf\xe9", flags=0x800))),
    "too many files": ("U33", lambda: build(*(Entry(b"%d" % n) for n in range(21)))),
    "more entries than it says": ("U30", lambda: build(A, B, count=1)),
    "fewer entries than it says": ("U30", lambda: build(A, count=2)),
    "many entries that it denies": (
        "U33",
        lambda: build(*(Entry(b"%d" % n + b"x" * 200) for n in range(100)), count=3),
    ),
    "too large in all": (
        "U33",
        lambda: build(*(Entry(b"%d" % n, os.urandom(9) * 60_000) for n in range(2))),
    ),
    "a large archive": ("U33", lambda: build(Entry(b"a", os.urandom(2 << 20), method=0))),
    "a bomb": ("U33", bomb),
    "a bomb that looks small": ("U34", lambda: build(Entry(b"b", bytes(900_000), size=1000))),
    "a file larger than it says": ("U34", lambda: build(Entry(b"a", b"hello" * 9, size=5))),
    "a longer file with the shorter one's checksum": (
        "U34",
        lambda: build(Entry(b"a", b"hello", raw=deflated(b"hello and more"))),
    ),
    "a file smaller than it says": ("U34", lambda: build(replace(A, size=6))),
    "a stored file of another size": ("U34", lambda: build(replace(A, method=0, size=4))),
    "more data than the file needs": (
        "U34",
        lambda: build(replace(A, raw=deflated(b"hello") + b"MZ hidden")),
    ),
    "no data": ("U34", lambda: build(replace(A, raw=b""))),
    "unfinished data": ("U34", lambda: build(replace(A, raw=deflated(b"hello")[:-2]))),
    "data that do not inflate": ("U34", lambda: build(replace(A, raw=b"\xff" * 20))),
    "a wrong checksum": ("U34", lambda: build(replace(A, crc=1))),
    "an encrypted file": ("U32", lambda: build(replace(A, flags=1))),
    "a strongly encrypted file": ("U32", lambda: build(replace(A, flags=0x41))),
    "a hidden directory": ("U32", lambda: build(replace(A, flags=0x2000))),
    "sizes behind the data": ("U32", lambda: build(replace(A, flags=8))),
    "bzip2": ("U32", lambda: build(replace(A, method=12))),
    "lzma": ("U32", lambda: build(replace(A, method=14))),
    "an unknown method": ("U32", lambda: build(replace(A, method=97))),
    "a version of the future": ("U30", lambda: build(replace(A, needs=99))),
    "something in front": ("U30", lambda: b"#!/bin/sh\nevil\n" + build(A, B)),
    "something in front, offsets mended": ("U30", lambda: build(A, B, before=b"MZ evil")),
    "something behind": ("U30", lambda: build(A, B, behind=b"evil")),
    "another archive behind": ("U30", lambda: build(A) + build(B)),
    "an archive in its comment": ("U30", lambda: build(A, comment=build(B))),
    "a comment": ("U30", lambda: build(A, comment=b"hi")),
    "something between": ("U30", lambda: build(A, replace(B, before=b"evil"))),
    "something before the directory": ("U30", lambda: build(A, B, gap=b"evil")),
    "an entry that the directory hides": (
        "U30",
        lambda: build(A, before=build(B)[: -46 - 22 - 5]),
    ),
    "another name in the local header": ("U30", lambda: build(replace(A, local_name=b"b.txt"))),
    "another size in the local header": ("U30", lambda: build(replace(A, local_size=500))),
    "another method in the local header": ("U30", lambda: build(replace(A, local_method=0))),
    "an extra field in the local header": (
        "U30",
        lambda: build(replace(A, local_extra=b"\1\0\0\0")),
    ),
    "another name in an extra field": (
        "U32",
        lambda: build(replace(A, extra=b"up\x0a\0\1\0\0\0\0evil!")),
    ),
    "a comment at a file": ("U32", lambda: build(replace(A, comment=b"hi"))),
    "a file on another disk": ("U32", lambda: build(replace(A, disk=1))),
    "an archive over two disks": ("U30", lambda: build(A, disk=1)),
    "two entries with the same data": (
        "U30",
        lambda: build(A, Entry(b"b.txt", local_name=b"a.txt", offset=0, unwritten=True)),
    ),
    "entries that overlap": ("U30", overlapping),
    "an offset beyond the end": ("U30", lambda: build(replace(A, offset=1 << 31))),
    "a directory beyond the end": ("U30", lambda: build(A, start=1 << 31)),
    "a directory of no length": ("U30", lambda: build(A, size=0)),
    "zip64 records that lie": ("U30", zip64_that_lies),
    "sizes that zip64 shall tell": (
        "U33",
        lambda: build(replace(A, size=0xFFFFFFFF, packed=0xFFFFFFFF)),
    ),
    "zip64 sizes in an extra field": (
        "U32",
        lambda: build(
            replace(A, size=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 5), local_size=5)
        ),
    ),
    "a broken zip64 field": ("U30", lambda: build(replace(A, size=0xFFFFFFFF, extra=b"\1\0\0\0"))),
    "cut off at the end": ("U30", lambda: build(A, B)[:-1]),
    "cut off in the middle": ("U30", lambda: build(A, B)[:60]),
    "its first bytes missing": ("U30", lambda: build(A, B)[10:]),
    "only the last record": ("U30", lambda: build(A)[-22:]),
    "nothing": ("U30", lambda: b""),
    "text": ("U30", lambda: b"not an archive\n" * 10),
    "a good archive, then a way out": ("U31", lambda: build(A, B, Entry(b"../a.txt"))),
    "a good archive, then a wrong checksum": ("U34", lambda: build(A, B, Entry(b"c", crc=1))),
}


def snapshot(root: Path) -> dict[str, object]:
    """Everything below a folder: kinds, modes, contents."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() else None
        found[path.relative_to(root).as_posix()] = (path.lstat().st_mode, content)
    return found


@pytest.fixture
def place(tmp_path):
    """A folder with neighbours: `unpack(place / "a.zip", place / "w")` must leave them alone."""
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    (folder / "neighbour").write_text("mine")
    (tmp_path / "evil").write_text("mine")
    return folder


@pytest.mark.parametrize("what", EVIL)
@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_an_evil_archive_is_refused_and_changes_nothing(what, exists, place, tmp_path):
    code, make = EVIL[what]
    (place / "a.zip").write_bytes(make())
    if exists:
        (place / "w").mkdir()
    before, outside = snapshot(tmp_path), Path("/tmp/evil").exists()
    with pytest.raises(UsageError) as refused:
        unpack(place / "a.zip", place / "w", LIMITS)
    assert refused.value.code == code, refused.value
    assert refused.value.message.startswith(f"{place / 'a.zip'}: ")
    assert refused.value.message.isprintable()
    assert snapshot(tmp_path) == before and Path("/tmp/evil").exists() == outside
    with pytest.raises(UsageError) as refused:
        read_package(place / "a.zip", ["a.txt", "b.txt"], LIMITS)
    assert refused.value.code == code


def test_a_refusal_names_the_entry():
    for what in ("a way out", "a symbolic link", "a wrong checksum", "a bomb", "bzip2"):
        with pytest.raises(UsageError, match=r"'(\.\./evil|e|a\.txt|bomb)': "):
            list(contents(EVIL[what][1](), LIMITS))


def test_the_writer_of_evil_archives_writes_good_ones_too(place):
    (place / "a.zip").write_bytes(build(A, B))
    assert read_package(place / "a.zip", ["b.txt", "a.txt"]) == {
        "a.txt": b"hello",
        "b.txt": b"world",
    }


def test_many_of_the_evil_archives_are_fine_for_zipfile():
    """Else this file would test the standard library."""
    read = 0
    for _, make in EVIL.values():
        try:
            with zipfile.ZipFile(io.BytesIO(make())) as archive:
                read += archive.testzip() is None
        except (zipfile.BadZipFile, RuntimeError, ValueError, OSError, zlib.error):
            continue
    assert read > 50


# -- good ones ---------------------------------------------------------------------------------


def test_what_is_packed_comes_back(place):
    (place / "a.zip").write_bytes(pack(GOOD))
    assert unpack(place / "a.zip", place / "w", LIMITS) == sorted(GOOD)
    assert {name: (place / "w" / name).read_bytes() for name in GOOD} == GOOD
    assert sorted(os.listdir(place)) == ["a.zip", "neighbour", "w"]


def test_other_programs_read_what_is_packed():
    with zipfile.ZipFile(io.BytesIO(pack(GOOD))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == GOOD
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr for info in archive.infolist()} == {FILE}


def test_the_order_of_the_files_does_not_change_the_bytes():
    assert pack(GOOD) == pack(dict(reversed(GOOD.items())))


@pytest.mark.parametrize("name", ["../a", "a\\b", "con", "/a", "a/", "a\n", ""])
def test_what_would_be_refused_is_not_packed(name):
    with pytest.raises(UsageError) as refused:
        pack({"a.txt": b"", name: b""})
    assert refused.value.code == "U31"


RUNS = st.builds(lambda part, times: part * times, st.binary(max_size=40), st.integers(0, 2000))


@given(st.lists(RUNS, max_size=6))
def test_whatever_is_packed_is_never_taken_for_a_bomb(datas):
    files = {str(index): data for index, data in enumerate(datas)}
    assert dict(contents(pack(files), LIMITS)) == files


def padded(data: bytes, size: int) -> bytes | None:
    """`data` deflated into exactly `size` bytes, with empty blocks in front; None: it won't fit."""
    blocks, rest = divmod(size - len(deflated(data)), 5)
    return b"\0\0\0\xff\xff" * blocks + deflated(data) if rest == 0 else None


def test_a_file_may_grow_to_a_hundred_times_its_size_and_no_more():
    size = next(size for size in range(1000, 1100) if padded(bytes(size * MAX_RATIO), size))
    data = bytes(size * MAX_RATIO)
    archive = build(Entry(b"a", data, raw=padded(data, size)))
    assert dict(contents(archive, LIMITS)) == {"a": data}
    more = next(extra for extra in range(1, 100) if padded(data + bytes(extra), size))
    archive = build(Entry(b"a", data + bytes(more), raw=padded(data + bytes(more), size)))
    with pytest.raises(UsageError) as refused:
        list(contents(archive, LIMITS))
    assert refused.value.code == "U33"


MUTATION = st.tuples(
    st.sampled_from(["set", "cut", "insert", "copy", "swap", "end"]),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.binary(min_size=1, max_size=6),
)


def mutated(data: bytes, kind: str, at: int, other: int, new: bytes) -> bytes:
    at, other = at % (len(data) + 1), other % (len(data) + 1)
    first, last = sorted((at, other))
    match kind:
        case "set":
            return data[:at] + new + data[at + len(new) :]
        case "cut":
            return data[:first] + data[min(last, first + 50) :]
        case "insert":
            return data[:at] + new + data[at:]
        case "copy":
            return data[:at] + data[first : first + 60] + data[at:]
        case "swap":
            return data[:first] + data[last : last + 8] + data[first + 8 :]
        case _:
            return data[:at]


@settings(max_examples=300, deadline=None)
@given(st.lists(MUTATION, min_size=1, max_size=3))
def test_a_changed_archive_is_refused_or_gives_exactly_the_good_files(mutations):
    data = pack(GOOD)
    for mutation in mutations:
        data = mutated(data, *mutation)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "a.zip").write_bytes(data)
        (place / "neighbour").write_text("mine")
        before = snapshot(place)
        try:
            unpack(place / "a.zip", place / "w", LIMITS)
        except UsageError as error:
            assert error.code in ("U30", "U31", "U32", "U33", "U34")
            assert snapshot(place) == before
        else:
            assert {name: (place / "w" / name).read_bytes() for name in GOOD} == GOOD
            assert len([path for path in (place / "w").rglob("*") if path.is_file()]) == len(GOOD)


# -- the folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "file", "link", "dangling"])
def test_what_is_there_is_left_alone(kind, place, tmp_path):
    (place / "a.zip").write_bytes(pack(GOOD))
    if kind == "full":
        (place / "w").mkdir()
        (place / "w" / "mine").write_text("mine")
    elif kind == "file":
        (place / "w").write_text("mine")
    else:
        (place / "empty").mkdir()
        (place / "w").symlink_to("empty" if kind == "link" else "nowhere")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError) as refused:
        unpack(place / "a.zip", place / "w")
    assert refused.value.code == "U03" and snapshot(tmp_path) == before


def test_what_comes_up_meanwhile_is_left_alone(place):
    def check(folder, names):
        (place / "w").mkdir()
        (place / "w" / "mine").write_text("mine")

    (place / "a.zip").write_bytes(pack(GOOD))
    with pytest.raises(UsageError, match="not an empty folder"):
        unpack(place / "a.zip", place / "w", LIMITS, check)
    assert sorted(os.listdir(place)) == ["a.zip", "neighbour", "w"]
    assert os.listdir(place / "w") == ["mine"]


def test_a_folder_has_no_name_until_it_is_checked_and_none_if_that_fails(place):
    def check(folder, names):
        assert folder.parent == place and names == sorted(GOOD)
        assert {name: (folder / name).read_bytes() for name in names} == GOOD
        assert not (place / "w").exists()
        raise UsageError("U35", "no")

    (place / "a.zip").write_bytes(pack(GOOD))
    before = snapshot(place)
    with pytest.raises(UsageError, match=r"a\.zip: no"):
        unpack(place / "a.zip", place / "w", LIMITS, check)
    assert snapshot(place) == before


def test_the_folder_that_one_is_in_is_not_replaced(place, monkeypatch):
    (place / "a.zip").write_bytes(pack(GOOD))
    (place / "w").mkdir()
    monkeypatch.chdir(place / "w")
    for into in (Path("."), place / "w"):
        with pytest.raises(UsageError, match="you are in"):
            unpack(place / "a.zip", into)
    assert os.listdir(place / "w") == []


def test_a_folder_in_no_folder_is_refused(place):
    (place / "a.zip").write_bytes(pack(GOOD))
    before = snapshot(place)
    with pytest.raises(UsageError, match="there is no folder"):
        unpack(place / "a.zip", place / "x" / "w")
    assert snapshot(place) == before


def test_nobody_else_may_write_into_what_is_unpacked(place):
    (place / "a.zip").write_bytes(pack(GOOD))
    old = os.umask(0)
    try:
        unpack(place / "a.zip", place / "w", LIMITS)
    finally:
        os.umask(old)
    for path in [place / "w", *(place / "w").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)


# -- packages ----------------------------------------------------------------------------------


def test_a_package_holds_exactly_what_is_expected(place):
    (place / "p.zip").write_bytes(pack({"request.pem": b"1", "about.json": b"2"}))
    assert read_package(place / "p.zip", ["about.json", "request.pem"])["request.pem"] == b"1"
    for expected, named in ((["about.json"], "request.pem"), (["a", "about.json"], "'a'")):
        with pytest.raises(UsageError, match=named) as refused:
            read_package(place / "p.zip", expected)
        assert refused.value.code == "U35"


@pytest.mark.parametrize("kind", ["nothing", "folder", "pipe"])
def test_what_is_no_file_is_no_archive(kind, place):
    if kind == "folder":
        (place / "a.zip").mkdir()
    elif kind == "pipe":
        os.mkfifo(place / "a.zip")  # reading it would never end
    with pytest.raises(UsageError) as refused:
        read_package(place / "a.zip", ["a"])
    assert refused.value.code == "U30"


def test_a_package_is_small(place):
    (place / "p.zip").write_bytes(pack({"a": os.urandom(PACKAGE.size)}))
    with pytest.raises(UsageError) as refused:
        read_package(place / "p.zip", ["a"])
    assert refused.value.code == "U33"
