"""Every error code that the source uses is explained, and every explanation is used."""

import ast
import re
from pathlib import Path

import pytest

import openfed
from openfed.errors import CODES

PACKAGE = Path(openfed.__file__).parent
CODE = re.compile(r"([A-Z][0-9]{2})(?:  .*)?", re.S)


def docstrings(tree: ast.AST) -> set[int]:
    """Statements that are nothing but a text."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def keys(tree: ast.AST) -> set[int]:
    """Keys of literal tables: `F32` is a dtype in one of them."""
    return {id(key) for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}


def codes_in(source: str) -> set[str]:
    """Codes among the strings of a file: `"U01"`, or `"F03  ..."` as people read it."""
    tree = ast.parse(source)
    skipped = docstrings(tree) | keys(tree)
    return {
        match[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in skipped
        if (match := CODE.fullmatch(node.value))
    }


USED = {
    code: path.relative_to(PACKAGE).as_posix()
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "errors.py"
    for code in codes_in(path.read_text())
}


def test_every_code_that_is_used_is_explained():
    assert {code: where for code, where in USED.items() if code not in CODES} == {}


def test_every_code_that_is_explained_is_used():
    assert sorted(set(CODES) - set(USED)) == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_an_explanation_says_what_to_do(code):
    entry = CODES[code]
    assert entry.title and not entry.title.endswith(".")
    assert entry.cause.endswith((".", ")")) and entry.remedy.endswith((".", ")"))


def test_codes_are_found_in_calls_and_not_in_words():
    assert codes_in('raise E("U99", "no")\nx = f"F03  {y}"\n"""U77"""') == {"U99", "F03"}
