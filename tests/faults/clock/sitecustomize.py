"""The wall clock of every Python process that has this folder on its path: real time, and the
seconds in the file `offset` beside this one."""

import time
from pathlib import Path

_real, _offset = time.time, Path(__file__).with_name("offset")


def _stepped() -> float:
    return _real() + float(_offset.read_text() or 0)


time.time = _stepped
