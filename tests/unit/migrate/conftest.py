"""OpenFL-style workspaces of our own, to be spoilt by the tests."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

STYLE = Path(__file__).parents[2] / "data" / "openfl_style"


@pytest.fixture
def openfl(tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of one of them: `openfl("digits", {file: [(old, new), ...]})`."""

    def make(name: str = "digits", changes: dict[str, list[tuple[str, str]]] | None = None) -> Path:
        root = tmp_path / "old" / name
        shutil.copytree(STYLE / name, root)
        for file, pairs in (changes or {}).items():
            text = (root / file).read_text()
            for old, new in pairs:
                assert old in text
                text = text.replace(old, new, 1)
            (root / file).write_text(text)
        return root

    return make


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"
