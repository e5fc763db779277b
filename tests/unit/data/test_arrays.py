"""npz, IDX, LEAF and PNG folders: real files, and files that somebody made to do harm."""

import gzip
import io
import json
import os
import struct
import sys
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from openfed.data.idx import read_idx, read_mnist
from openfed.data.images import read_images
from openfed.data.leaf import read_leaf
from openfed.data.npz import read_npz
from openfed.errors import OpenFedError, TaskError

SECRET = "zz9secret"
EDITS = st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=3)), min_size=1, max_size=6)


def damaged(data, edits):
    for at, value in edits:
        data = data[: at % (len(data) + 1)] + value + data[at % (len(data) + 1) + 1 :]
    return data


def refuses(code, call, *given, **settings):
    with pytest.raises(TaskError) as caught:
        call(*given, **settings)
    assert caught.value.code == code, caught.value.message
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None and (
        caught.value.__context__ is None or caught.value.__suppress_context__
    )
    return caught.value.message


@pytest.fixture
def write(tmp_path):
    def written(data, name=f"{SECRET}.bin"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return written


def tried(read, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("x") / "x"
    path.write_bytes(data)
    with suppress(OpenFedError):
        read(path)


# -- npz -------------------------------------------------------------------------------------------


def npz(save=np.savez, **members):
    out = io.BytesIO()
    save(out, **members)
    return out.getvalue()


def npy(header, data, version=b"\x01\x00"):
    """A member by hand, with a header that says what it likes."""
    text = header.encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def zipped(content, method=zipfile.ZIP_STORED, name="x.npy"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content, method)
    return out.getvalue()


@given(
    arrays.arrays(
        st.sampled_from(["<f8", ">f4", "<i8", ">u2", "?", "<c16", "<U3", "S2"]),
        arrays.array_shapes(min_dims=0, min_side=0, max_dims=3),
    ),
    st.sampled_from([np.savez, np.savez_compressed]),
    st.booleans(),
)
def test_what_numpy_saves_is_read_back(tmp_path_factory, array, save, fortran):
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(npz(save, x=array.copy("F") if fortran else array, y=np.arange(3)))
    found = read_npz(path, ["x"])
    assert list(found) == ["x"] and found["x"].dtype == array.dtype.newbyteorder("=")
    assert found["x"].shape == array.shape
    same = dict(equal_nan=True) if array.dtype.kind in "fc" else {}
    assert np.array_equal(found["x"], array, **same)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x05\x06" + b"\xff" * 18,
        zipped(b""),
        zipped(b"\x93NUMPY\x01\x00\xff\xff{"),
        zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**18,)}\n", b"")),
        zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999,)}\n", b"1" * 8)),
        zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}\n", b"1" * 8)),
        zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (True,)}\n", b"1" * 9)),
        zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1" + "0" * 40, b"")),
        zipped(
            npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1" + "0" * 40 + ")}", b"")
        ),
        zipped(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"cos\nsystem\n.")),
        zipped(npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}\n", b"1" * 8)),
        zipped(npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1,)}\n", b"\xff" * 4)),
        zipped(npy("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}\n", b"\x07")),
        zipped(npy("{'descr': '<U0', 'fortran_order': False, 'shape': (9,)}\n", b"")),
        zipped(npy("__import__('os').system('x')\n", b"")),
        zipped(npy("-" * 9000 + "1", b"")),
        zipped(npy("(" * 5000, b"")),
        zipped(npy("{'descr': '<f8'\n", b"")),
        zipped(npy("{}", b"", b"\x03\x00")),
        zipped(npy("{'descr': '<f8', 'fortran_order': False, 'shape': ()}\n", b"1" * 9)),
        zipped(b"x" * 100, zipfile.ZIP_BZIP2),
        npz(x=np.arange(9)).replace(b"\x08\0\0\0\0\0\0\0", b"\x09\0\0\0\0\0\0\0"),
        npz(x=np.array([{1: 2}], dtype=object)),
    ],
)
def test_a_hostile_npz_file_is_refused(write, data):
    refuses("K42", read_npz, write(data), ["x"])


def test_an_encrypted_or_doubled_member_is_refused(write):
    data = bytearray(npz(x=np.arange(3)))
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    refuses("K42", read_npz, write(bytes(data)), ["x"])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", b"1")
        archive.writestr("x.npy", b"2")
    refuses("K42", read_npz, write(out.getvalue()), ["x"])


def test_a_header_is_not_believed(write):
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999,)}\n"
    message = refuses("K42", read_npz, write(zipped(npy(text, b"1" * 8))), ["x"])
    assert "more or fewer bytes than its header says" in message


def test_a_zip_bomb_and_an_absent_array_are_refused(write):
    bomb = npz(np.savez_compressed, x=np.zeros(4_000_000))
    assert len(bomb) < 100_000
    refuses("K41", read_npz, write(bomb), ["x"], limit=1 << 20)
    assert "'y'" in refuses("K45", read_npz, write(npz(x=np.arange(3))), ["x", "y"])


@given(EDITS, st.sampled_from([np.savez, np.savez_compressed]))
def test_a_damaged_npz_file_is_read_or_refused(tmp_path_factory, edits, save):
    data = damaged(npz(save, x=np.arange(9.0), t=np.array(["a", "b"])), edits)
    tried(lambda path: read_npz(path, ["x", "t"]), tmp_path_factory, data)


# -- IDX -------------------------------------------------------------------------------------------

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array, code=None):
    name = array.dtype.str[1:]
    head = bytes([0, 0, code or CODES[name], array.ndim])
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return head + sizes + array.astype(f">{name}").tobytes()


def test_the_first_bytes_of_mnist_as_its_page_has_them(write):
    """0x00000803, 60000, 28, 28 for images; 0x00000801, 60000 for labels."""
    images = bytes.fromhex("00000803 00000002 00000002 00000003") + bytes(range(12))
    labels = bytes.fromhex("00000801 00000002") + bytes([7, 2])
    data = read_mnist(write(images, "i"), write(gzip.compress(labels), "l"))
    assert data.inputs.dtype == np.uint8 and data.targets.dtype == np.int64
    assert data.inputs.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert data.targets.tolist() == [7, 2]


@pytest.mark.parametrize("name", sorted(CODES))
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_type_of_idx(write, name, pack):
    array = np.arange(24).reshape(2, 3, 4).astype(name)
    found = read_idx(write(pack(idx(array))))
    assert found.dtype == array.dtype and np.array_equal(found, array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x07\x01\0\0\0\0",
        b"\x01\0\x08\x01\0\0\0\0",
        b"\0\0\x08\x00",
        b"\0\0\x08\xff" + b"\0" * 1020,
        b"\0\0\x08\x02\0\0\0\x01",
        idx(np.arange(9, dtype="u1"))[:-1],
        idx(np.arange(9, dtype="u1")) + b"\0",
        gzip.compress(idx(np.arange(9, dtype="u1")))[:-3],
        gzip.compress(idx(np.arange(9, dtype="u1"))) + b"more",
        gzip.compress(idx(np.arange(9, dtype="u1")) + b"\0"),
        b"\x1f\x8b" + b"\xff" * 20,
    ],
)
def test_a_broken_idx_file_is_refused(write, data):
    refuses("K42", read_idx, write(data))


def test_an_idx_file_that_would_fill_the_memory_is_refused(write):
    refuses("K41", read_idx, write(b"\0\0\x0e\x03" + b"\xff" * 12))
    bomb = gzip.compress(idx(np.zeros(3 << 20, "u1")))
    refuses("K41", read_idx, write(bomb), limit=1 << 20)
    refuses("K41", read_idx, write(b"").parent / "none")


def test_images_and_labels_belong_together(write):
    images, labels = idx(np.zeros((3, 2, 2), "u1")), idx(np.zeros(3, "u1"))
    few = write(idx(np.zeros(2, "u1")), "few")
    image, label = write(images, "i"), write(labels, "l")
    assert "as many" in refuses("K48", read_mnist, image, few)
    refuses("K48", read_mnist, label, label)
    refuses("K48", read_mnist, image, image)


@given(EDITS, st.booleans())
def test_a_damaged_idx_file_is_read_or_refused(tmp_path_factory, edits, pack):
    data = idx(np.arange(12, dtype="i4").reshape(3, 4))
    tried(read_idx, tmp_path_factory, damaged(gzip.compress(data) if pack else data, edits))


# -- LEAF ------------------------------------------------------------------------------------------


def leaf(*users, **changes):
    return json.dumps(
        {
            "users": [name for name, _, _ in users],
            "num_samples": [len(y) for _, _, y in users],
            "user_data": {name: {"x": x, "y": y} for name, x, y in users},
            **changes,
        }
    )


def test_leaf_of_numbers_as_femnist_has_it(write):
    given = leaf(("b", [[0.5, 1], [1, 1]], [3, 4]), (SECRET, [[0, 0.25]], [5]), hierarchies=[])
    data = read_leaf(write(given))
    assert data.inputs.tolist() == [[0.5, 1], [1, 1], [0, 0.25]]
    assert data.inputs.dtype == np.float64 and data.targets.dtype == np.int64
    assert data.targets.tolist() == [3, 4, 5] and data.users.tolist() == [0, 0, 1]


def test_leaf_of_texts_as_shakespeare_and_sent140_have_it(write):
    data = read_leaf(write(leaf(("a", ["to be", "or"], ["o", "n"]), ("b", [], []))))
    assert data.inputs.tolist() == ["to be", "or"] and data.targets.tolist() == ["o", "n"]
    data = read_leaf(write(leaf(("a", [["1", "ü"], ["2", "v"]], [0, 1]))))
    assert data.inputs.shape == (2, 2) and data.inputs[0, 1] == "ü"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("K42", ""),
        ("K42", "{"),
        ("K42", "[]"),
        ("K42", "[" * 100_000),
        ("K42", '{"users": NaN}'),
        ("K42", '{"users": [], "users": [], "num_samples": [], "user_data": {}}'),
        ("K42", leaf(("a", [1], [1])).replace("1]", "1e999]")),
        ("K42", leaf(("a", [1], [1])).replace("1]", "9" * 5000 + "]")),
        ("K42", leaf(("a", [1], [1]), users="a")),
        ("K42", leaf(("a", [1], [1]), users=[1])),
        ("K42", leaf(("a", [1], [1]), num_samples=[1, 1])),
        ("K42", leaf(("a", [1], [1]), user_data={"a": [SECRET]})),
        ("K42", leaf(("a", [1], [1]), user_data={"a": {"x": SECRET, "y": [1]}})),
        ("K48", leaf(("a", [1], [1]), num_samples=[2])),
        ("K48", leaf(("a", [1], [1]), num_samples=[SECRET])),
        ("K48", leaf(("a", [1, 2], [1]))),
        ("K48", leaf(("a", [1], [1]), users=[SECRET])),
        ("K48", leaf((SECRET, [1], [1]), users=["b"])),
        ("K48", leaf(("a", [1], [1]), users=["a", "a"], num_samples=[1, 1])),
        ("K43", leaf(("a", [[1, 2], [1]], [1, 2]))),
        ("K43", leaf(("a", [[1, 2], 3], [1, 2]))),
        ("K43", leaf(("a", [3, [1, 2]], [1, 2]))),
        ("K43", leaf(("a", [[1, [2]], [1, 2]], [1, 2]))),
        ("K43", leaf(("a", [1, SECRET], [1, 2]))),
        ("K43", leaf(("a", [True], [1]))),
        ("K43", leaf(("a", [None], [1]))),
        ("K43", leaf(("a", [{}], [1]))),
        ("K43", leaf(("a", [10**30], [1]))),
        ("K43", leaf(("a", [10**400, 0.5], [1, 2]))),
        ("K43", leaf(("a", ["x\0"], [1]))),
        ("K43", leaf(("a", ["DEEP"], [1])).replace('"DEEP"', "[" * 900 + "1" + "]" * 900)),
    ],
)
def test_a_broken_leaf_file_is_refused(write, code, text):
    refuses(code, read_leaf, write(text))


@given(EDITS)
def test_a_damaged_leaf_file_is_read_or_refused(tmp_path_factory, edits):
    data = leaf(("a", [[0.5, 1], [1, 1]], [3, 4]), ("b", [[0, 1]], [5])).encode()
    tried(read_leaf, tmp_path_factory, damaged(data, edits))


# -- images ----------------------------------------------------------------------------------------


def png(array, **settings):
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.fromarray(array).save(out, "PNG", **settings)
    return out.getvalue()


GREY = np.arange(6, dtype=np.uint8).reshape(2, 3)


def test_a_folder_per_class_is_read_in_order(write, tmp_path):
    write(png(GREY), "dog/2.png")
    write(png(GREY + 10), "dog/10.PNG")
    write(png(GREY + 20), "cat/a.png")
    write(b"", "cat/.DS_Store")
    data = read_images(tmp_path, ["cat", "cow", "dog"], (2, 3))
    assert data.inputs.dtype == np.uint8 and data.inputs.shape == (3, 2, 3)
    assert np.array_equal(data.inputs, [GREY + 20, GREY + 10, GREY])
    assert data.targets.tolist() == [0, 2, 2] and data.targets.dtype == np.int64


def test_colours_come_last(write, tmp_path):
    colours = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    write(png(colours), "a/x.png")
    assert np.array_equal(read_images(tmp_path, ["a"], (2, 3), "RGB").inputs, [colours])


def test_an_empty_folder_gives_no_samples(tmp_path):
    pytest.importorskip("PIL")
    data = read_images(tmp_path, ["a"], (2, 3))
    assert data.inputs.shape == (0, 2, 3) and data.targets.shape == (0,)


@pytest.mark.parametrize(
    ("code", "name", "content"),
    [
        ("K47", "a/x.png", lambda: png(GREY.T)),
        ("K47", "a/x.png", lambda: png(np.zeros((2, 3, 4), np.uint8))),
        ("K47", "a/x.png", lambda: png(np.zeros((2, 3), np.uint16))),
        ("K47", f"a/{SECRET}.jpg", lambda: b""),
        ("K47", f"{SECRET}/x.png", lambda: png(GREY)),
        ("K47", f"{SECRET}.png", lambda: png(GREY)),
        ("K47", "a", lambda: b"a file"),
        ("K42", f"a/{SECRET}.png", lambda: b""),
        ("K42", "a/x.png", lambda: png(GREY)[:-20]),
        ("K42", "a/x.png", lambda: png(GREY)[:40]),
        ("K42", "a/x.png", lambda: b"\xff\xd8\xff\xe0" + b"\0" * 50),
        ("K42", "a/x.png", lambda: png(GREY).replace(b"IDAT", b"IDAX")),
    ],
)
def test_a_folder_of_other_things_is_refused(write, tmp_path, code, name, content):
    pytest.importorskip("PIL")
    write(content(), name)
    refuses(code, read_images, tmp_path, ["a"], (2, 3))


def test_a_decompression_bomb_is_refused_by_its_header(write, tmp_path):
    bomb = png(GREY).replace(struct.pack(">II", 3, 2), struct.pack(">II", 60_000, 60_000))
    import zlib

    crc = struct.pack(">I", zlib.crc32(bomb[12:29]))
    write(bomb[:29] + crc + bomb[33:], "a/x.png")
    with pytest.raises(TaskError) as caught:
        read_images(tmp_path, ["a"], (2, 3))
    assert caught.value.code in ("K42", "K47")


def test_a_class_cannot_lead_out_of_the_folder_nor_a_pipe_hang(write, tmp_path):
    pytest.importorskip("PIL")
    write(png(GREY), "out/x.png")
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "out").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "a").mkdir(parents=True)
    assert len(read_images(tmp_path / "in", ["a", "../out"], (2, 3)).inputs) == 0
    os.mkfifo(tmp_path / "in" / "a" / "x.png")
    refuses("K41", read_images, tmp_path / "in", ["a"], (2, 3))
    refuses("K41", read_images, tmp_path / SECRET, ["a"], (2, 3))
    refuses("K41", read_images, tmp_path / "up", ["out"], (10**5, 10**6), limit=1 << 20)


@given(EDITS)
def test_a_damaged_image_is_read_or_refused(tmp_path_factory, edits):
    folder = tmp_path_factory.mktemp("x")
    (folder / "a").mkdir()
    (folder / "a" / "x.png").write_bytes(damaged(png(GREY, compress_level=0), edits))
    with suppress(OpenFedError):
        read_images(folder, ["a"], (2, 3))


def test_pillow_that_is_absent_is_named_with_its_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install pillow" in refuses("K46", read_images, tmp_path, ["a"], (2, 3))
