"""Ratings files as MovieLens has them, written here, and lines that are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.data.ratings import read_ratings
from openfed.errors import TaskError

GOOD = b"7::1193::5::978300760\n7::661::3::978302109\r\n2::1193::4.5::978300275\n7::1::1::0"


def written(tmp_path, data):
    path = tmp_path / "zz9secret.dat"
    path.write_bytes(data)
    return path


def refuses(code, path, **settings):
    with pytest.raises(TaskError) as caught:
        read_ratings(path, **settings)
    assert caught.value.code == code and "zz9secret" not in str(caught.value)
    return caught.value.message


def test_ratings_by_hand(tmp_path):
    table = read_ratings(written(tmp_path, GOOD))
    assert table.columns == ("user", "item", "rating", "time")
    assert table.column("user").tolist() == [0, 0, 1, 0]
    assert table.column("item").tolist() == [1193, 661, 1193, 1]
    assert table.column("rating").tolist() == [5, 3, 4.5, 1]
    assert table.column("time").tolist() == [978300760, 978302109, 978300275, 0]
    assert [array.dtype for array in table.arrays] == [np.int64, np.int64, np.float64, np.int64]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"user::item::rating::time", b"4242::2::3", b"4242::2::3::4::5", b"4242,2,3,4"),
        *(b"-4242::2::3::4", b"4242:: 2::3::4", b"4242::2::nan::4", b"4242::2::3e2::4"),
        *(b"4242::2::.5::4", b"9" * 19 + b"::2::3::4", b"4242::2::3::4" * 99, b"\xff\0::2::3::4"),
    ],
)
def test_another_line_is_refused_by_its_number_and_not_shown(tmp_path, line):
    message = refuses("K42", written(tmp_path, GOOD + b"\n" + line + b"\n1::1::1::1\n"))
    assert message == "ratings file, line 5: expected user::item::rating::time, four numbers"


def test_nothing_and_too_much(tmp_path):
    assert refuses("K44", written(tmp_path, b"")) == "ratings file: has no ratings"
    refuses("K41", tmp_path / "zz9secret")
    refuses("K41", written(tmp_path, GOOD), limit=len(GOOD) - 1)
    refuses("K41", written(tmp_path, b"1::1::1::1\n" * 9), limit=9 * 32 - 1)
    assert read_ratings(written(tmp_path, b"1::1::1::1\n" * 9), limit=9 * 32).rows == 9


@given(data=st.binary(max_size=60) | st.from_regex(rb"([0-9]{1,3}::){1,4}[0-9.\n]{0,5}\n"))
def test_any_bytes_are_ratings_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("x") / "x"
    path.write_bytes(data)
    try:
        table = read_ratings(path)
    except TaskError as error:
        assert error.code in ("K42", "K44")
    else:
        assert table.rows == data.count(b"\n") + (not data.endswith(b"\n"))
        assert set(table.column("user")) == set(range(table.column("user").max() + 1))
