"""What the README says is true."""

import re
import shlex
from pathlib import Path

import click
import pytest

from openfed.cli.main import fx
from openfed.plan.load import load_plan
from openfed.workspace import create, templates

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def typed() -> list[str]:
    """Every `fx ...` line of the shell blocks, without its comment."""
    lines = "\n".join(blocks("sh")).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("fx ")]


@pytest.mark.parametrize("line", typed())
def test_every_command_line_is_one_that_fx_takes(line):
    words = shlex.split(line)[1:]
    context, command = click.Context(fx), fx
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
        assert command is not None, line
    command.make_context("fx", words)


def test_every_command_of_the_table_is_there():
    named = re.findall(r"`(fx [a-z ]+)", README)
    assert len(named) > 10
    for line in named:
        words, command = line.split()[1:], fx
        while words and isinstance(command, click.Group):
            command = command.get_command(click.Context(fx), words.pop(0))
            assert command is not None, line


def test_the_plan_in_it_is_that_of_the_template(tmp_path):
    create(tmp_path / "w", "torch_digits")
    (plan,) = blocks("yaml")
    assert (tmp_path / "w" / "plan" / "plan.yaml").read_text() == plan
    assert load_plan(tmp_path / "w" / "plan" / "plan.yaml").rounds == 10


def test_the_mistake_in_it_is_answered_as_it_says(tmp_path):
    create(tmp_path / "w", "torch_digits")
    (plan,) = blocks("yaml")
    wrong = plan.replace("strategy: fedavg", 'strategy: {fedadam: {lr: "fast"}}')
    (tmp_path / "w" / "plan" / "plan.yaml").write_text(wrong)
    (shown,) = re.findall(r"^plan/plan.yaml:\d+:.*$", README, re.M)
    with pytest.raises(Exception) as raised:
        load_plan(tmp_path / "w" / "plan" / "plan.yaml")
    assert shown in str(raised.value)


def test_it_names_every_template_and_every_file_that_it_links():
    assert all(f"`{name}`" in README for name in templates())
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
