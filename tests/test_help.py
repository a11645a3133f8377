"""Help: every option and every choice says what it means; the recipe's keys as options."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_origin

import click
import pytest
import yaml
from small_data import write_lines

from mrpo_tools import words
from mrpo_tools.cli import SECTIONS, cli
from mrpo_tools.cli.recipe_options import KEYS, given
from mrpo_tools.config import Recipe, parse
from mrpo_tools.methods.method import LOSSES

FROZEN = Path(__file__).parent / "golden" / "options.txt"
OPTION_KEYS = [key for keys in KEYS.values() for key in keys]
VALUES = {
    "loss": "dpo", "combine": "geometric", "weights": "uniform", "trust_region": "fixed",
    "epsilon_max": 0.5, "chosen": "top1", "pairing": "all", "beta": 0.3, "policy": "somewhere",
    "held_out_score": "other",
    "finetuning": "full", "quantization": "nf4", "dtype": "float16", "lora_r": 3, "lora_alpha": 5,
    "learning_rate": 2e-4, "num_train_epochs": 2.5, "max_steps": 7,
    "per_device_train_batch_size": 3, "gradient_accumulation_steps": 6,
    "lr_scheduler_type": "linear", "warmup_ratio": 0.25, "seed": 11, "max_length": 99,
    "batch_tokens": 77, "eval_steps": 8, "logging_steps": 9, "save_steps": 12,
}  # fmt: skip
"""Another value than the default for every key that is an option."""
CHOICES = [name for name, of in vars(words).items() if get_origin(of) is Literal]


def commands(
    command: click.Command = cli,
    path: tuple[str, ...] = ("mrpo",),
    parent: click.Context | None = None,
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command of the tree, groups too, with its words and a context to ask it in."""
    context = click.Context(command, info_name=path[-1], parent=parent, **command.context_settings)
    yield " ".join(path), command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name), context)


def options() -> Iterator[tuple[str, click.Option, click.Context]]:
    for path, command, context in commands():
        for param in command.get_params(context):
            if isinstance(param, click.Option) and not param.hidden:
                yield path, param, context


def test_the_options_are_those_that_are_written_down():
    """An option that comes or goes is meant: tests/golden/options.txt lists all of them."""
    found = {f"{path} {name}" for path, option, _ in options() for name in option.opts}
    frozen = set(FROZEN.read_text(encoding="utf-8").splitlines())
    assert sorted(found - frozen) == []
    assert sorted(frozen - found) == []


def test_every_option_says_what_it_is_for():
    silent = [f"{path} {option.opts[0]}" for path, option, _ in options() if not option.help]
    assert silent == []


def test_every_choice_of_every_option_has_a_phrase():
    """A line of its own in the help: the name, then what it means."""
    for path, command, _ in commands():
        wide = click.Context(command, terminal_width=200, max_content_width=200)
        explained = re.findall(r"^    ([a-z0-9_-]+) +\S+ \S+", command.get_help(wide), re.MULTILINE)
        choices = [name for option in command.get_params(wide)
                   for name in getattr(option.type, "choices", ())]  # fmt: skip
        assert sorted(explained) == sorted(choices), path


@pytest.mark.parametrize("name", CHOICES)
def test_every_name_to_choose_has_a_few_words(name):
    """Of losses, `mrpo losses` has them."""
    of = getattr(words, name)
    if name == "Loss":
        assert words.choices(of) == LOSSES
        return
    assert tuple(words.phrases(of)) == words.choices(of)
    assert all(2 <= len(phrase.split()) <= 12 for phrase in words.phrases(of).values())


def test_the_keys_of_a_recipe_are_options_with_its_meanings_and_defaults():
    """The help of each holds the field's sentence and its default, as a recipe would write it."""
    _, command, context = next(found for found in commands() if found[0] == "mrpo train")
    text = " ".join(command.get_help(context).split())
    assert set(VALUES) == set(OPTION_KEYS)
    for key in OPTION_KEYS:
        sentence = Recipe.model_fields[key].description
        default = getattr(Recipe(), key)
        if default is not None:
            found = re.search(re.escape(sentence) + r" \[default: ([^\]]+)\]", text)
            assert type(default)(found[1]) == default
        assert sentence in text


def test_the_help_of_train_has_headed_sections_and_each_option_once():
    _, command, context = next(found for found in commands() if found[0] == "mrpo train")
    text = command.get_help(context)
    heads = re.findall(r"^(\w[^:\n]*):$", text, re.MULTILINE)
    assert [*KEYS] == [head for head in heads if head in KEYS]
    assert {"Data and cache", "Output"} <= set(heads)
    train_options = [option.opts[-1] for path, option, _ in options() if path == "mrpo train"]
    listed = re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted(train_options)


def test_every_such_option_sets_its_key():
    train = cli.get_command(click.Context(cli), "train")
    arguments = [word for key, value in VALUES.items()
                 for word in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
    context = train.make_context("train", arguments)
    values = given(context.params)
    assert values == VALUES
    del values["quantization"]  # no full finetuning of 4-bit weights
    parse(Recipe, values, "the options")


def test_an_option_beats_set_and_set_beats_the_recipe(here, some_groups, cached, mrpo):
    """Four keys, one of them given in all three places, one in two, one in the file alone."""
    write_lines(here / "data.jsonl", (group.as_dict() for group in some_groups))
    Path("recipe.yaml").write_text("learning_rate: 1e-3\nweight_decay: 0.1\nlora_r: 4\nseed: 1\n")
    mrpo(
        "train --config recipe.yaml --set learning_rate=1e-4 --set weight_decay=0.2 --set seed=2 "
        "--seed 3 --learning-rate 1e-5 --loss dpo --refs llama --max-steps 1 --dataset data.jsonl "
        f"--set split=all --cache {cached.path} --output run"
    )
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert recipe["learning_rate"] == 1e-5
    assert recipe["weight_decay"] == 0.2
    assert recipe["lora_r"] == 4
    assert recipe["seed"] == 3
    assert recipe["max_steps"] == 1


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("train --lr 1e-5", "Did you mean --learning-rate?"),
        ("train --epochs 1", "Did you mean --num-train-epochs?"),
        ("train --batch-size 1", "Did you mean --per-device-train-batch-size?"),
        ("train --lora-rank 1", "Did you mean --lora-r?"),
        ("train --lambda 1", "Did you mean --set sft_weight=VALUE?"),
        ("train --learning-rat 1", "Did you mean one of: '--learning-rate'"),
        ("sweep recipe.yaml --lr 1e-5", "Did you mean --set learning_rate=VALUE?"),
        ("train --weights mine", "'confidence', 'uniform', 'fixed', 'accuracy'"),
    ],
)
def test_an_unknown_option_is_answered_with_the_one_that_is_meant(line, hint, mrpo):
    assert hint in mrpo(line, 2).err


def test_the_first_page_has_every_command_under_a_heading_with_its_whole_sentence(mrpo):
    text = mrpo("--help").out
    assert re.findall(r"^(\w[^\n]*):$", text, re.MULTILINE) == ["Options", *SECTIONS]
    page = " ".join(text.split())
    for path, command, _ in commands():
        if path.count(" ") == 1:
            sentence = " ".join(command.help.split("\n\n")[0].split())
            assert f" {path.removeprefix('mrpo ')} {sentence}" in page


def test_the_first_page_imports_nothing_heavy():
    """Neither pydantic nor torch: nothing that takes a tenth of a second."""
    code = "import sys; from mrpo_tools.cli import run; run(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "mrpo_tools.cli.train" in loaded
    assert not loaded & {"torch", "transformers", "pydantic", "pyarrow", "duckdb", "yaml", "rich"}
