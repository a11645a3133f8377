"""docs/training.md says what the code does: keys, refusals, commands, names of the log."""

from __future__ import annotations

import json
import re
import shlex

import click
import pytest
import yaml
from small_data import ROOT
from test_docs import blocks, script
from trained import recipe

from mrpo_tools.cli import cli
from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.training.arguments import REFUSED, trainer_words, training_arguments
from mrpo_tools.training.train import train

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:[^#\n]* -m mrpo_tools|mrpo) ([a-z][^#\n…]*)", PAGE, re.MULTILINE)


def test_the_page_is_the_generated_one():
    page = script("docs/generate.py").training_page()
    assert page == PAGE, "python docs/generate.py writes it anew"


def test_every_key_stands_once_with_its_default():
    (keys,) = (block for block in blocks(PAGE, "yaml") if "loss: mrpo" in block)
    assert re.findall(r"^(?:# )?([a-z0-9_]+):(?= )", keys, re.MULTILINE) == [*Recipe.model_fields]
    assert Recipe.model_validate(yaml.safe_load(keys)) == Recipe()


def test_the_example_of_the_trainers_keys_is_taken(tmp_path):
    """All of it, whole; what the page says is refused is, with its reason."""
    (block,) = (block for block in blocks(PAGE, "yaml") if block.startswith("trainer:"))
    words = yaml.safe_load(block)["trainer"]
    example = recipe(trainer=words, eval_steps=500)
    assert trainer_words(example) == words
    arguments = training_arguments(example, tmp_path)
    assert (arguments.optim, arguments.get_warmup_steps(1000)) == ("paged_adamw_8bit", 100)
    for key, reason in REFUSED.items():
        assert f"| `{key}` | {reason} |" in PAGE
        with pytest.raises(UsageError, match=re.escape(reason)):
            trainer_words(recipe(trainer={key: "x"}))


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_parse(line):
    """click accepts every option and value; the command itself is not run."""
    name, *words = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, words)


def test_there_are_commands():
    assert len(COMMANDS) > 8


def test_the_names_to_watch_are_those_of_the_log(cached, references, some_groups, tmp_path):
    """Every name of the table, in a run with two references."""
    words = recipe(refs=["llama", "qwen"], max_steps=1)
    run = train(words, some_groups, cached, references, tmp_path / "run").path
    (entry,) = json.loads((run / "trainer_state.json").read_text())["log_history"]
    _, _, table = PAGE.partition("| name | what it is |")
    named = [name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
             for name in re.findall(r"`([^`]+)`", row)]  # fmt: skip
    assert len(named) == 10
    assert {name.replace("<name>", "qwen") for name in named} <= entry.keys()
