"""The three guides, played together in their folders as they stand: every command, and its output.

What stands behind the word of a block, or in a comment, says when it is played, and where:

    ```console play 7, in line                  its commands, in the folder
    ```console play 7, in mill/line, also farm  then the same once more, with farm for mill
    ```console play 7, start in line, until up  the last one in the background; goes on at that word
    ```yaml play 7, edit line/plan/plan.yaml    its keys replace those of the file
    <!-- play 7, stop fx pki serve -->          Ctrl-C for a command that was started
    <!-- play 7, end -->                        wait for what was started
    <!-- play 7, token in farm/line -->         the token that was shown last, in token.txt
    <!-- play 7, send line/line.zip to mill --> a file goes from folder to folder
    <!-- play 7, data mill.csv in mill -->      what a site has: a file of the template

In outputs `...` stands for anything. In commands `sha256:...` is the authority's pin that was shown
last, `...` alone the plan's digest. Ports are replaced by free ones. Several in one comment are
parted by `; `.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.folders import free_ports

ROOT = Path(__file__).parents[2]
GUIDES = ("plan_author", "aggregator_operator", "site_administrator")
PAGES = (*(f"guides/{guide}.md" for guide in GUIDES), "troubleshooting.md")
LINES, COLUMNS = 70, 100
"""What fits on a printed page."""
DATA = ROOT / "workspace_templates" / "numpy_linear" / "data"
MARK = re.compile(
    r"^<!-- play (\d+), (.+) -->$|^```(?:console|yaml) play (\d+), (.+)\n((?:.*\n)*?)```$", re.M
)
SHOWN = re.compile(r"^(pin|plan|token) +(\S+)", re.M)


@dataclass(frozen=True)
class Step:
    order: int
    what: str
    block: str


def steps() -> list[Step]:
    found = []
    for page in PAGES:
        text = (ROOT / "docs" / page).read_text()
        marked = MARK.findall(text)
        wanted = sum(map(text.count, ("<!-- play", "```console", "```yaml play")))
        assert len(marked) == wanted, f"{page}: a block without its place in the play"
        for told, whats, order, what, block in marked:
            asides = [Step(int(told), each, "") for each in whats.split("; ") if whats]
            found += asides or [Step(int(order), what, block)]
    return sorted(found, key=lambda step: step.order)


def commands(block: str) -> list[tuple[str, str]]:
    """Each `$ ` line of a console block, with the output below it."""
    parts = re.split(r"^\$ (.+)\n", block, flags=re.M)
    assert not parts[0].strip(), block
    return list(zip(parts[1::2], parts[2::2], strict=True))


def matches(shown: str, said: str) -> bool:
    """Whether the output is what the page shows; a line of dots stands for any lines."""
    lines = [
        "(?:.*\n)*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + " *\n"
        for line in shown.splitlines()
    ]
    return (
        re.fullmatch("".join(lines), said if said.endswith("\n") or not said else f"{said}\n")
        is not None
    )


class Play:
    """The folders below `root`, and what was shown there so far."""

    def __init__(self, root: Path, port: int):
        self.root, self.known = root, {}
        self.ports = {"50051": str(port), "50052": str(port + 1)}
        self.started: list[tuple[str, str, subprocess.Popen, Path]] = []
        self.numbers = itertools.count()
        self.wrong: list[str] = []

    def here(self, text: str) -> str:
        for port, ours in self.ports.items():
            text = text.replace(port, ours)
        return text

    def command(self, text: str) -> str:
        text = re.sub(r"sha256:\.\.\.", lambda _: self.known["pin"], self.here(text))
        return re.sub(r"(?<= )\.\.\.(?= |$)", lambda _: self.known["plan"], text)

    def popen(self, line: str, folder: str) -> tuple[subprocess.Popen, Path]:
        """A command that was started, and the file with what it says."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        out = self.root / f"said{next(self.numbers)}.txt"
        with out.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.root / folder,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return process, out

    def ended(self, line: str, shown: str, process: subprocess.Popen, out: Path):
        process.wait(60)
        self.compare(line, shown, out.read_text())

    def compare(self, line: str, shown: str, said: str):
        self.known.update(SHOWN.findall(said))
        if not matches(self.here(shown), said):
            self.wrong.append(f"$ {line}\n--- the page\n{self.here(shown)}--- what it said\n{said}")

    # -- what a comment can say -------------------------------------------------------------------

    def run(self, step: Step):
        kind, _, rest = step.what.partition(" ")
        getattr(self, f"on_{kind}")(rest, step.block)

    def on_in(self, where: str, block: str):
        folder, _, other = where.partition(", also ")
        names = [("mill", "mill"), *([("mill", other)] if other else [])]
        for old, new in names:
            for line, shown in commands(block.replace(old, new)):
                self.ended(line, shown, *self.popen(self.command(line), folder.replace(old, new)))

    def on_start(self, where: str, block: str):
        where, _, word = where.removeprefix("in ").partition(", until ")
        folder, _, other = where.partition(", also ")
        for new in ["mill", *([other] if other else [])]:
            place = folder.replace("mill", new)
            *before, (line, shown) = commands(block.replace("mill", new))
            for each, told in before:
                self.ended(each, told, *self.popen(self.command(each), place))
            process, out = self.popen(self.command(line), place)
            self.started.append((line, shown, process, out))
            until = time.monotonic() + 60
            while word not in out.read_text():
                assert process.poll() is None and time.monotonic() < until, out.read_text()
                time.sleep(0.01)

    def on_stop(self, line: str, _: str):
        (process,) = [process for each, _, process, _ in self.started if each == line]
        process.send_signal(signal.SIGINT)
        process.wait(30)

    def on_edit(self, file: str, block: str):
        path = self.root / file
        text = path.read_text()
        for key, value in re.findall(r"^(\w+):(.*\n(?:  .*\n)*)", block, re.M):
            text, count = re.subn(
                rf"^{key}:.*\n(  .*\n)*", f"{key}:{self.here(value)}", text, flags=re.M
            )
            assert count == 1, (file, key)
        path.write_text(text)

    def on_send(self, what: str, _: str):
        source, target = what.split(" to ")
        (self.root / target).mkdir(exist_ok=True)
        shutil.copy(self.root / source, self.root / target)

    def on_data(self, what: str, _: str):
        name, folder = what.split(" in ")
        shutil.copy(DATA / name, self.root / folder / "points.csv")

    def on_token(self, what: str, _: str):
        (self.root / what.removeprefix("in ") / "token.txt").write_text(self.known["token"])

    def on_end(self, *_: str):
        """What was started ends by itself, or was stopped before."""
        for each in self.started:
            self.ended(*each)
        self.started.clear()

    def close(self):
        for _, _, process, _ in self.started:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_three_guides_played_together_say_what_they_show(tmp_path):
    play = Play(tmp_path, free_ports())
    try:
        for step in steps():
            play.run(step)
    finally:
        play.close()
    assert not play.wrong, "\n\n".join(play.wrong)


@pytest.mark.parametrize("guide", GUIDES)
def test_each_guide_is_linked_in_the_readme_and_is_one_page(guide):
    assert f"(docs/guides/{guide}.md)" in (ROOT / "README.md").read_text()
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text()
    printed = [line for line in text.splitlines() if not line.startswith(("<!--", "```"))]
    assert len(printed) <= LINES, f"{guide}: {len(printed)} lines"
    assert all(len(line) <= COLUMNS for line in printed)


def test_dots_stand_for_anything_and_nothing_else_does():
    assert matches("wrote ...: public\n...\nend\n", "wrote a.pem: public\n1\n2\nend\n")
    assert matches("a\n...\nend\n", "a\nend\n") and matches("", "")
    assert not matches("wrote a.pem\n", "wrote b.pem\n")
    assert not matches("one\n", "one\ntwo\n") and not matches("one\ntwo\n", "one\n")
