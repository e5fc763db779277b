"""CSV and parquet: real files as people have them, and files that somebody made to do harm."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.data.column import Column
from openfed.data.csv_file import MAX_LINE, read_csv
from openfed.data.parquet import read_parquet
from openfed.errors import OpenFedError, TaskError

AGE, BMI = Column("age", "integer"), Column("bmi", "number", missing=True)
SICK, WARD = Column("sick", "boolean"), Column("ward", "text")
SECRET = "zz9secret"

GOOD = (
    'ward,id,age,bmi,sick\r\n"north, 1",a,61,22.5,true\r\n\r\n'
    '"so""uth",b,-3,,0\r\nö,c,+7,NA,FALSE\r\n'
)


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
    def written(data, name=f"{SECRET}.csv"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return written


def test_a_csv_file_is_read_as_typed(write):
    table = read_csv(write(GOOD), [AGE, BMI, SICK, WARD])
    assert table.columns == ("age", "bmi", "sick", "ward") and table.rows == 3
    assert table.column("age").tolist() == [61, -3, 7] and table.column("age").dtype == np.int64
    assert np.array_equal(table.column("bmi"), [22.5, np.nan, np.nan], equal_nan=True)
    assert table.column("sick").tolist() == [True, False, False]
    assert table.column("ward").tolist() == ["north, 1", 'so"uth', "ö"]


def test_a_byte_order_mark_and_semicolons(write):
    table = read_csv(write(b"\xef\xbb\xbfage;bmi\n1;2e3\n"), [AGE, BMI], delimiter=";")
    assert (table.column("age")[0], table.column("bmi")[0]) == (1, 2000.0)


def test_a_file_of_a_header_alone_has_no_rows(write):
    table = read_csv(write("age,ward\n"), [AGE, WARD])
    assert table.rows == 0 and [a.dtype.kind for a in table.arrays] == ["i", "U"]


@given(
    st.lists(
        st.tuples(
            st.integers(-(1 << 63), (1 << 63) - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.booleans(),
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
        ),
        max_size=20,
    )
)
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, quoting=csv.QUOTE_ALL)
        out.writerow(["age", "bmi", "sick", "ward"])
        out.writerows(rows)
    table = read_csv(path, [AGE, BMI, SICK, WARD])
    assert list(zip(*(array.tolist() for array in table.arrays), strict=True)) == rows


def test_missing_values_are_said_by_line(write):
    lines = "".join("\n" if i == 5 else "1,2\n" if i % 2 else "NA,\n" for i in range(40))
    message = refuses("K44", read_csv, write("age,ward\n" + lines), [AGE, WARD])
    told = "2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 10 more"
    assert f"column 'age' at lines {told}; column 'ward' at lines {told}" in message
    one = refuses("K44", read_csv, write('ward,age\n"a\nb",1\nc,\n'), [AGE])
    assert one.endswith("column 'age' at line 4")


def test_integers_are_never_missing_whatever_is_asked(write):
    refuses("K44", read_csv, write("age,b\n,1\n"), [Column("age", "integer", missing=True)])


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("number", SECRET),
        ("number", "1_000"),
        ("number", "inf"),
        ("number", "1e999"),
        ("number", "1,5"),
        ("number", "٣"),
        ("number", "0x1"),
        ("integer", "1.0"),
        ("integer", "9223372036854775808"),
        ("integer", "9" * 5000),
        ("boolean", "yes"),
        ("boolean", "2"),
        ("text", "a\0b"),
    ],
)
def test_a_cell_of_another_kind_is_refused_with_its_place_and_not_shown(write, kind, cell):
    good = {"number": "1", "integer": "1", "boolean": "1", "text": "t"}[kind]
    path = write(f'x,y\n"{good}",1\n"{cell}",{SECRET}\n')
    message = refuses("K43", read_csv, path, [Column("x", kind)])
    assert "'x'" in message and (kind == "text" or "line 3" in message)
    assert len(cell) < 3 or cell not in message


def test_a_gzipped_csv_file_is_the_same(write):
    columns = [AGE, BMI, SICK, WARD]
    plain, zipped = (
        read_csv(write(data), columns) for data in (GOOD, gzip.compress(GOOD.encode()))
    )
    for ours, theirs in zip(zipped.arrays, plain.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_gzipped_csv_file_stops_where_it_becomes_too_large(write):
    bomb = gzip.compress(b"age\n" + b"1\n" * 1_000_000)
    assert len(bomb) < 10_000
    assert "10000 bytes" in refuses("K41", read_csv, write(bomb), [AGE], limit=10_000)
    lines = gzip.compress(b"age\n1\n" + b"\n" * 1_000_000)
    refuses("K41", read_csv, write(lines), [AGE], limit=10_000)
    endless = gzip.compress(b"age\n" + b"1" * 4_000_000)
    assert "longer than" in refuses("K42", read_csv, write(endless), [AGE])


@pytest.mark.parametrize("at", [1, 12, 20])
def test_a_damaged_gzip_is_refused(write, at):
    data = bytearray(gzip.compress(b"age\n" + b"1\n23\n456\n" * 9))
    refuses("K42", read_csv, write(bytes(data[: at + 5])), [AGE])
    data[-6] ^= 1
    refuses("K42", read_csv, write(bytes(data)), [AGE])


@pytest.mark.parametrize(
    "data",
    [
        b"age,ward\n1\n",
        b"age,ward\n1,2,3\n",
        b'age,ward\n1,"open\n' + SECRET.encode(),
        b'age,ward\n1,"a"b\n',
        b"age,ward\n1,\xff\xfe\n",
        b"age,ward\n1,\n\xff",
        b"age,ward\n1," + b"x" * 140_000 + b"\n",
        b"age,ward\n1," + b"x," * MAX_LINE,
        "age,ward\n1,a\n".encode("utf-16"),
    ],
)
def test_a_broken_csv_file_is_refused(write, data):
    message = refuses("K42", read_csv, write(data), [AGE, WARD])
    assert "line" in message


def test_a_line_without_an_end_is_not_read_to_its_end(write):
    path = write(b"age,ward\n1," + b"x," * MAX_LINE)
    assert "longer than" in refuses("K42", read_csv, path, [AGE])


@pytest.mark.parametrize("header", [b"", b"Age,ward\n", f"{SECRET},b\n".encode(), b"age,age\n"])
def test_a_header_that_does_not_fit_is_not_shown(write, header):
    assert "'age'" in refuses("K45", read_csv, write(header + b"1,2\n"), [AGE])


def test_columns_must_be_asked_for_each_once(write):
    refuses("K45", read_csv, write(GOOD), [])
    refuses("K45", read_csv, write(GOOD), [AGE, AGE])


def test_one_long_text_does_not_make_a_column_of_gigabytes(write):
    path = write("ward\n" + "a\n" * 5000 + "b" * 50_000 + "\n")
    assert "bytes" in refuses("K41", read_csv, path, [WARD], limit=100 << 20)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", "a\0b", None, {}, "/dev/zero"):
        refuses("K41", read_csv, path, [AGE])
    assert str(tmp_path) not in refuses("K41", read_csv, tmp_path / "none", [AGE])


def test_a_file_larger_than_the_limit_is_not_read(write):
    refuses("K41", read_csv, write(GOOD), [AGE], limit=20)


def damaged(data, edits):
    for at, value in edits:
        data = data[: at % (len(data) + 1)] + value + data[at % (len(data) + 1) + 1 :]
    return data


EDITS = st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=3)), min_size=1, max_size=6)


@given(EDITS)
def test_a_damaged_csv_file_is_read_or_refused(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("csv") / "x"
    path.write_bytes(damaged(GOOD.encode(), edits))
    with suppress(OpenFedError):
        assert read_csv(path, [AGE, BMI, SICK, WARD]).rows <= 8


# -- parquet ---------------------------------------------------------------------------------------


def frame(rows=2, **columns):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out, row_group_size=rows, write_page_checksum=True)
    return out.getvalue()


def arrow(values, kind):
    return pytest.importorskip("pyarrow").array(values, kind)


def good():
    pa = pytest.importorskip("pyarrow")
    return frame(
        age=pa.array([61, -3, 7], "int32"),
        bmi=pa.array([22.5, None, float("nan")], "float32"),
        sick=pa.array([True, False, True]),
        ward=pa.array(["n", "ö", "n"]).dictionary_encode(),
        id=pa.array([SECRET] * 3),
    )


def test_a_parquet_file_is_read_as_typed(write):
    table = read_parquet(write(good()), [WARD, AGE, BMI, SICK])
    assert table.columns == ("ward", "age", "bmi", "sick") and table.rows == 3
    assert table.column("age").tolist() == [61, -3, 7] and table.column("age").dtype == np.int64
    assert np.array_equal(table.column("bmi"), [22.5, np.nan, np.nan], equal_nan=True)
    assert table.column("bmi").dtype == np.float64
    assert table.column("sick").tolist() == [True, False, True]
    assert table.column("ward").tolist() == ["n", "ö", "n"]


def test_numbers_may_be_stored_as_integers_or_decimals(write):
    pa = pytest.importorskip("pyarrow")
    data = frame(a=pa.array([1, 2], "int64"), b=pa.array(["1.25", "2"]).cast(pa.decimal128(9, 2)))
    table = read_parquet(write(data), [Column("a", "number"), Column("b", "number")])
    assert [array.tolist() for array in table.arrays] == [[1.0, 2.0], [1.25, 2.0]]


def test_an_empty_parquet_file_has_no_rows(write):
    table = read_parquet(write(frame(age=arrow([], "int8"), ward=arrow([], "string"))), [AGE, WARD])
    assert table.rows == 0 and [a.dtype.kind for a in table.arrays] == ["i", "U"]


@pytest.mark.parametrize("kind", ["number", "integer", "boolean", "text"])
def test_missing_values_are_said_by_row(write, kind):
    stored = {"number": "float64", "integer": "int64", "boolean": "bool", "text": "string"}[kind]
    value = {"text": "x", "boolean": True}.get(kind, 1)
    data = frame(c=arrow([value, None, value, None], stored))
    message = refuses("K44", read_parquet, write(data), [Column("c", kind)])
    assert message.endswith("column 'c': values are missing at rows 2, 4")


def test_the_same_cells_miss_in_both_formats(write):
    for column in (Column("c", "text", missing=True), Column("c", "text")):
        as_csv = write('c,d\nx,1\n"",2\n', "a.csv")
        as_parquet = write(frame(c=arrow(["x", ""], "string")), "a.parquet")
        if column.missing:
            both = read_csv(as_csv, [column]), read_parquet(as_parquet, [column])
            assert both[0].arrays[0].tolist() == both[1].arrays[0].tolist() == ["x", ""]
        else:
            refuses("K44", read_csv, as_csv, [column])
            refuses("K44", read_parquet, as_parquet, [column])


@pytest.mark.parametrize(
    ("kind", "stored", "values"),
    [
        ("integer", "float64", [1.0]),
        ("integer", "string", [SECRET]),
        ("integer", "uint64", [1 << 63]),
        ("number", "int64", [(1 << 60) + 1]),
        ("number", "float64", [float("-inf")]),
        ("number", "timestamp[s]", [3]),
        ("boolean", "int8", [1]),
        ("text", "binary", [b"\xff"]),
        ("text", "int64", [1]),
        ("text", "string", ["a\0"]),
    ],
)
def test_a_column_of_another_type_is_refused(write, kind, stored, values):
    message = refuses(
        "K43", read_parquet, write(frame(c=arrow(values, stored))), [Column("c", kind)]
    )
    assert "'c'" in message and str(values[0]) not in message


def test_nested_and_absent_columns_are_refused(write):
    pa = pytest.importorskip("pyarrow")
    data = frame(c=pa.array([[1, 2]]), d=pa.array([{"e": 1}]))
    refuses("K43", read_parquet, write(data), [Column("c", "integer")])
    refuses("K43", read_parquet, write(data), [Column("d", "integer")])
    for kind in ("integer", "text"):
        refuses("K43", read_parquet, write(data), [Column("d", kind)])
        refuses("K45", read_parquet, write(data), [Column("d.e", kind)])
        refuses("K45", read_parquet, write(data), [Column("f", kind)])


def test_a_parquet_bomb_is_refused_before_it_grows(write):
    data = frame(1 << 20, c=arrow(np.zeros(3_000_000), "int64"))
    assert len(data) < 20 << 20
    refuses("K41", read_parquet, write(data), [Column("c", "integer")], limit=20 << 20)


def test_a_text_that_repeats_takes_no_room_before_it_is_refused(write):
    pa = pytest.importorskip("pyarrow")
    path = write(frame(1 << 20, c=pa.array(["x" * 10_000] * 3000 + [None]).dictionary_encode()))
    code = (
        "import sys, pyarrow; from openfed.data import column, parquet\n"
        "from openfed.errors import TaskError\n"
        "try: parquet.read_parquet(sys.argv[1], [column.Column('c', 'text')], limit=20 << 20)\n"
        "except TaskError as error: print(error.code, pyarrow.default_memory_pool().max_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    code, peak = done.stdout.split()
    assert code == "K41" and int(peak) < 5 << 20


def test_text_that_is_not_utf8_is_refused(write):
    pa = pytest.importorskip("pyarrow")
    bad = pa.array([b"\xff\xfe"], "binary").view("string")
    refuses("K42", read_parquet, write(frame(c=bad)), [Column("c", "text")])


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1", GOOD.encode()])
def test_what_is_no_parquet_file_is_refused(write, data):
    pytest.importorskip("pyarrow")
    refuses("K42", read_parquet, write(data), [AGE])


@given(EDITS)
def test_a_damaged_parquet_file_is_read_or_refused(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("parquet") / "x"
    path.write_bytes(damaged(good(), edits))
    with suppress(OpenFedError):
        read_parquet(path, [AGE, BMI, SICK, WARD])


def test_a_package_that_is_absent_is_named_with_its_pip_line(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refuses("K46", read_parquet, write(b""), [AGE])


def test_nothing_optional_is_imported_until_it_is_needed():
    code = (
        "import sys, json, openfed.data.parquet, openfed.data.images, openfed.data.contract\n"
        "import openfed.data.csv_file, openfed.data.leaf, openfed.data.idx, openfed.data.npz\n"
        "print(json.dumps([n for n in ('pyarrow', 'PIL', 'torch', 'pandas') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
