"""docs/data.md says what the code does."""

from __future__ import annotations

import importlib.util
import re

import click
import pytest
from small_data import ROOT
from test_bad_input import BAD

from mrpo_tools.cli import cli
from mrpo_tools.sources import ADAPTERS, KNOWN
from mrpo_tools.sources.export import FORMS
from mrpo_tools.words import DataForm, choices

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^mrpo data ([^#\n]+)", PAGE, re.MULTILINE)


def test_the_page_is_the_generated_one():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.data_page() == PAGE, "python docs/generate.py writes it anew"
    for name in (*ADAPTERS, *KNOWN, *FORMS):
        assert f"| `{name}` |" in PAGE, name


def test_the_messages_on_the_page_are_real():
    """Every line of the block of messages is one that the long table of bad input expects."""
    (block,) = re.findall(r"Some of them:\n\n```\n(.*?)```", PAGE, re.DOTALL)
    expected = {message for _, _, message in BAD.values()}
    lines = block.splitlines()
    assert len(lines) > 8
    assert len(BAD) >= 40
    assert [line for line in lines if line not in expected] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_on_the_page_parse(line):
    """click accepts every option and value; the command itself is not run."""
    name, *words = line.split()
    group = cli.get_command(click.Context(cli), "data")
    group.commands[name].make_context(name, words)


def test_every_form_is_a_choice_and_every_choice_a_form():
    assert tuple(FORMS) == choices(DataForm)
