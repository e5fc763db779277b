"""Ratings in the form of MovieLens: a line is `user::item::rating::time`, without a header.

Source: the README of MovieLens-1M (GroupLens Research): users 1 to 6040, items 1 to 3952, whole
stars 1 to 5, seconds since 1970. MovieLens-10M has the same form, with half stars.
"""

import itertools
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from openfed.data.opening import LIMIT, check_size, opened, refused
from openfed.data.table import Table

_WHAT = "ratings file"
_LINE = re.compile(
    rb"([0-9]{1,18})::([0-9]{1,18})::([0-9]{1,3}(?:\.[0-9]{1,3})?)::([0-9]{1,18})\r?\n?"
)
_MAX_LINE = 128
_BYTES = 32
"""Of a rating in memory."""


def read_ratings(path: str | Path, *, limit: int = LIMIT) -> Table:
    """Columns user, item, rating, time, in the order of the lines; int64, rating float64.

    Users are renumbered from 0, in the order in which they first stand in the file: who they are
    is not kept. Items keep their numbers, which mean the same at every site. `limit`: bytes of the
    file, and of the columns.
    Raises: TaskError: K41 no such file, or too large; K42 a line that is not of this form, which;
    K44 there is none.
    """
    users: dict[int, int] = {}
    numbers, stars = array("q"), array("d")
    with opened(path, _WHAT, limit) as file:
        for user, item, rating, time in _lines(file):
            numbers.extend((users.setdefault(int(user), len(users)), int(item), int(time)))
            stars.append(float(rating))
            check_size(_BYTES * len(stars), _WHAT, limit)
    if not stars:
        raise refused("K44", _WHAT, "has no ratings")
    whole = np.array(numbers, dtype=np.int64).reshape(-1, 3).T.copy()
    arrays = (whole[0], whole[1], np.array(stars, dtype=np.float64), whole[2])
    return Table(("user", "item", "rating", "time"), arrays)


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, ...]]:
    for number in itertools.count(1):
        if not (line := file.readline(_MAX_LINE)):
            return
        if not (found := _LINE.fullmatch(line)):
            place = f"{_WHAT}, line {number}"
            raise refused("K42", place, "expected user::item::rating::time, four numbers")
        yield found.groups()
