"""What `fx run` shows on a real terminal: tables that are redrawn, and nothing left behind."""

import fcntl
import os
import pty
import re
import struct
import termios

import pytest

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def written(terminal: int) -> str:
    """All that comes out of a terminal until its last process has ended."""
    parts = []
    while True:
        try:
            parts.append(os.read(terminal, 1 << 16))
        except OSError:  # how a pseudoterminal says that nobody has its other end
            os.close(terminal)
            return b"".join(parts).decode()


@pytest.mark.parametrize("columns", [80, 50])
def test_tables_fit_the_terminal_and_leave_it_as_it_was(workspace, columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    outer = {name: os.environ[name] for name in os.environ.keys() - {"COLUMNS", "LINES"}}
    settings = {"stdout": theirs, "stderr": theirs, "env": {**outer, "TERM": "xterm-256color"}}
    run = workspace().start("run", "-s", "rounds=3", **settings)
    os.close(theirs)
    said = written(ours)
    assert run.wait(60) == 0, said
    assert said.count(HIDE) == said.count(SHOW) == 1 and said.index(HIDE) < said.index(SHOW)
    tables, result = (ESCAPES.sub("", part) for part in said.split(SHOW))
    assert "Traceback" not in said and result.startswith("completed after 3 rounds")
    lines = tables.replace("\r\n", "\n").replace("\r", "\n").splitlines()
    rows = [line for line in lines if re.match(r" \d/3 ", line)]
    assert [row.split()[0] for row in rows[-3:]] == ["1/3", "2/3", "3/3"]
    drawn = [line for line in lines if line.startswith(" ")]
    assert max(len(line) for line in drawn) <= columns
