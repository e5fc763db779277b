"""OpenFL's own commands, as typed at a terminal, each collaborator in a folder of its own; and what
`fx collaborator start` asks there."""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / "workspace_templates" / "numpy_linear" / "data"
FX = (sys.executable, "-m", "openfed")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
ASKED = r"Approve plan \w{16} for \w+\? \[y/N\]:"
OUTER = {name: os.environ[name] for name in os.environ.keys() - {"COLUMNS", "LINES"}}
NO_PASSPHRASE = [(r"Passphrase.*:", ""), (r"Repeat.*:", "")]


class Terminal:
    """A command at a terminal of its own, and a person who answers its questions, in their order.

    `aside`: streams that are no terminal.
    """

    def __init__(self, folder: Path, *words: str, answers=(), **aside):
        ours, theirs = pty.openpty()
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs} | aside
        settings = {"env": {**OUTER, "TERM": "xterm-256color"}, "start_new_session": True}
        self.process = subprocess.Popen([*FX, *words], cwd=folder, **streams, **settings)
        os.close(theirs)
        self.words, self.answers, self._raw = words, list(answers), ""
        self._reader = threading.Thread(target=self._attend, args=(ours,), daemon=True)
        self._reader.start()

    def _attend(self, ours: int) -> None:
        answered = 0
        while True:
            try:
                self._raw += os.read(ours, 1 << 16).decode(errors="replace")
            except OSError:  # how a pseudoterminal says that nobody has its other end
                return os.close(ours)
            while self.answers and (found := re.search(self.answers[0][0], self._raw[answered:])):
                answered += found.end()
                os.write(ours, f"{self.answers.pop(0)[1]}\n".encode())

    @property
    def said(self) -> str:
        return ESCAPES.sub("", self._raw)

    def until(self, words: str) -> None:
        end = time.monotonic() + 60
        while words not in self.said:
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.01)

    def ended(self, code: int = 0) -> str:
        """What it said, after it has ended with this code, and all answers were asked for."""
        assert self.process.wait(60) == code, f"fx {' '.join(self.words)}: {self.said}"
        self._reader.join(10)
        assert not self.answers and "Traceback" not in self.said, self.said
        return self.said


@pytest.fixture
def terminal():
    """Makes terminals; what still runs at the end is killed."""
    made: list[Terminal] = []

    def terminal(*arguments, **options) -> Terminal:
        made.append(Terminal(*arguments, **options))
        return made[-1]

    yield terminal
    for each in made:
        if each.process.poll() is None:
            each.process.terminate()
            each.process.wait(30)


def typed(folder: Path, line: str, answers=()) -> str:
    assert line.startswith("fx ")
    return Terminal(folder, *line.split()[1:], answers=answers).ended()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def certified(tmp_path_factory) -> Path:
    """OpenFL's sequence up to `start`: the folders line, mill/line and farm/line."""
    root = tmp_path_factory.mktemp("openfl")
    here = root / "line"
    typed(root, "fx workspace create --prefix line --template numpy_linear")
    plan = here / "plan" / "plan.yaml"
    plan.write_text(plan.read_text().replace("127.0.0.1:0 ", f"127.0.0.1:{free_port()} "))
    typed(here, "fx plan initialize -a localhost")
    typed(here, "fx workspace certify", NO_PASSPHRASE)
    typed(here, "fx workspace export")
    typed(here, "fx aggregator generate-cert-request --fqdn localhost")
    typed(here, "fx aggregator certify --fqdn localhost --silent")
    for name in ("mill", "farm"):
        (root / name).mkdir()
        shutil.copy(here / "line.zip", root / name)
        shutil.copy(DATA / f"{name}.csv", root / name / "points.csv")
        typed(root / name, "fx workspace import --archive line.zip")
        site = root / name / "line"
        typed(site, f"fx collaborator create -d ../points.csv -n {name} --silent")
        typed(site, f"fx collaborator generate-cert-request -n {name} --silent")
        package = f"col_{name}_to_agg_cert_request.zip"
        shutil.copy(site / package, here)
        typed(here, f"fx collaborator certify --request-pkg {package} --silent")
        package = f"agg_to_col_{name}_signed_cert.zip"
        shutil.copy(here / package, site)
        typed(site, f"fx collaborator certify --import {package}")
    return root


@pytest.fixture
def folders(certified, tmp_path) -> Path:
    return Path(shutil.copytree(certified, tmp_path / "w"))


@pytest.fixture
def mill(folders) -> Path:
    return folders / "mill" / "line"


def approved(site: Path) -> set[str]:
    return {path.relative_to(site).as_posix() for path in (site / "approved").rglob("*")}


def start(name: str) -> tuple[str, ...]:
    return "collaborator", "start", "-n", name


def test_openfls_sequence_trains_as_typed(folders, terminal):
    early = terminal(folders / "mill" / "line", *start("mill"), answers=[(ASKED, "y")])
    early.until("waiting for the aggregator")
    aggregator = terminal(folders / "line", "aggregator", "start")
    late = terminal(folders / "farm" / "line", *start("farm"), answers=[(ASKED, "yes")])
    for each in (aggregator, early, late):
        each.ended()
    assert "completed after 20" in aggregator.said and "refused" not in aggregator.said
    assert "What leaves a site" in early.said and "approved by mill" in early.said
    assert (folders / "line" / "save" / "line_last.safetensors").is_file()
    again = terminal(folders / "mill" / "line", *start("mill"))
    again.until("waiting for the aggregator")
    assert not re.search(ASKED, again.said), "it has been approved"
    again.process.send_signal(signal.SIGINT)
    again.ended(130)


def test_yes_at_start_is_what_approve_is(folders, mill, terminal):
    other = folders / "other"
    shutil.copytree(mill, other)
    started = terminal(mill, *start("mill"), answers=[(ASKED, "y")])
    started.until("waiting for the aggregator")
    in_use = terminal(mill, "workspace", "import", "--archive", "../line.zip").ended(2)
    assert "U80" in in_use and "runs/exchange/mill/" in in_use
    second = terminal(mill, *start("mill")).ended(1)
    assert "S11" in second and "runs/exchange/mill" in second
    started.process.send_signal(signal.SIGINT)
    started.ended(130)

    shown = terminal(other, "collaborator", "approve", answers=[(ASKED, "y")]).ended()
    assert approved(other) == approved(mill) and approved(mill)
    for line in re.sub(r"approved by .*", "approved by", shown).splitlines():
        assert line in started.said, "the same is shown"
    (signed,) = (mill / "approved").glob("*/mill.json")
    (theirs,) = (other / "approved").glob("*/mill.json")
    mine, others = json.loads(signed.read_bytes()), json.loads(theirs.read_bytes())
    assert mine.keys() == others.keys()
    assert {key for key in mine if mine[key] != others[key]} <= {"at", "signature"}
    again = terminal(mill, "collaborator", "approve", answers=[(ASKED, "y")]).ended()
    assert "approved/" not in again, "it counts already"


@pytest.mark.parametrize("answer", ["n", "", "no"])
def test_no_at_start_or_just_enter_is_a_refusal(mill, terminal, answer):
    said = terminal(mill, *start("mill"), answers=[(ASKED, answer)]).ended(6)
    assert "R23" in said and "fx collaborator approve -n mill" in said and not approved(mill)
    assert not (mill / "runs" / "exchange").exists()


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_nothing_is_asked_where_nobody_can_answer(mill, terminal, stream):
    with (mill / "out.txt").open("w+") as out:
        aside = {stream: subprocess.DEVNULL if stream == "stdin" else out}
        told = terminal(mill, *start("mill"), **aside).ended(6)
        out.seek(0)
        told += out.read()
    assert "R23" in told and "fx collaborator approve -n mill" in told
    assert not re.search(ASKED, told) and not approved(mill)


def test_a_new_plan_is_shown_by_its_difference_and_asked_for_once_more(folders, mill, terminal):
    typed(mill, "fx collaborator approve -n mill --silent")
    here = folders / "line"
    plan = here / "plan" / "plan.yaml"
    plan.write_text(plan.read_text().replace("rounds: 20", "rounds: 3"))
    typed(here, "fx plan initialize -a localhost")
    typed(here, "fx workspace export -o ../new.zip")
    typed(mill, "fx workspace import --archive ../../new.zip")
    asked = terminal(mill, *start("mill"), answers=[(ASKED, "n")]).ended(6)
    assert "rounds: 20 -> 3" in asked and "What leaves a site" not in asked
    started = terminal(mill, *start("mill"), answers=[(ASKED, "y")])
    started.until("waiting for the aggregator")
    started.process.send_signal(signal.SIGINT)
    started.ended(130)
