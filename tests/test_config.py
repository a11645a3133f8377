"""The words a user writes: numbers, choices, unknown keys, names, paths."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from mrpo_tools import config, words
from mrpo_tools.config import Dataset, Project, Recipe, Reference, parse
from mrpo_tools.errors import UsageError
from mrpo_tools.words import choices


def recipe_of(text: str, folder: Path) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return Recipe(**config.load_recipe(path))


@pytest.mark.parametrize(
    ("written", "number"),
    [("1e-5", 1e-5), ('"1e-5"', 1e-5), ("1E-5", 1e-5), ("0.00001", 1e-5), ("1", 1.0),
     ("5.e-7", 5e-7), ("' 2 '", 2.0)],
)  # fmt: skip
def test_a_number_is_read_as_it_is_written(written, number, tmp_path):
    """PyYAML takes `1e-5`, without a point, for text."""
    rate = recipe_of(f"learning_rate: {written}", tmp_path).learning_rate
    assert isinstance(rate, float)
    assert rate == number
    weights = recipe_of(f"fixed_weights: [{written}, 0.5]", tmp_path).fixed_weights
    assert weights == [number, 0.5]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *((f"learning_rate: {written}", "learning_rate: Input should be a valid number")
          for written in ("fast", "1e", "'0x10'", "''", "1,5", "[1]", "{a: 1}", "null")),
        ("lora_r: 8.5", "lora_r: Input should be a valid integer"),
        ("lora_r: eight", "lora_r: Input should be a valid integer"),
        ("loss: 1", "loss: Input should be a valid string"),
        ("refs: llama", "refs: Input should be a valid list"),
        ("signed: perhaps", "signed: Input should be a valid boolean"),
        ("learning_rate: 0", "learning_rate: Input should be greater than 0"),
        ("pairing: best", "pairing: Input should be 'best_worst', 'best_random', 'best_vs_rest'"),
        ("{finetuning: full, quantization: nf4}", "finetuning full cannot train 4-bit weights"),
        ("- a", "a mapping of keys to values is needed"),
        ("{", "cannot be read as YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(text, problem, tmp_path):
    with pytest.raises(UsageError) as error:
        recipe_of(text, tmp_path)
    assert problem in str(error.value)


def test_every_problem_is_told_at_once():
    with pytest.raises(UsageError) as error:
        parse(Recipe, {"lr": 1, "beta": "much", "epochs": 3}, "r.yaml")
    assert str(error.value).splitlines() == [
        "r.yaml: beta: Input should be a valid number, unable to parse string as a number, "
        "found 'much'",
        "r.yaml: lr: unknown key",
        "r.yaml: epochs: unknown key",
    ]
    assert error.value.hint == (
        "lr: did you mean learning_rate?; epochs: did you mean num_train_epochs?"
    )


@pytest.mark.parametrize(
    ("values", "place", "hint"),
    [
        ({"dataset": {"source": "d", "adaptor": "x"}}, "dataset.adaptor", "did you mean adapter?"),
        ({"references": {"a": {"model": "m", "dtipe": "x"}}}, "references.a.dtipe",
         "did you mean dtype"),
        ({"cash": "x"}, "cash", "did you mean cache"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_answered_with_those_of_its_place(values, place, hint):
    with pytest.raises(UsageError) as error:
        parse(Project, values, "p.yaml")
    assert str(error.value) == f"p.yaml: {place}: unknown key"
    assert error.value.hint.startswith(hint)


def test_a_project_names_data_and_models_shortly(tmp_path):
    path = tmp_path / "mrpo.yaml"
    path.write_text("dataset: data.jsonl\nreferences: {a: ./a, b: {model: o/b, dtype: float16}}\n")
    project = config.load_project(path)
    assert project.dataset == Dataset(source="data.jsonl")
    assert project.references == {
        "a": Reference(model="./a"),
        "b": Reference(model="o/b", dtype="float16"),
    }
    path.write_text("")
    assert config.load_project(path) == Project()


def test_aliases_outside_a_project():
    expected = {
        "llama": "meta-llama/Llama-2-7b-chat-hf",
        "mistral": "teknium/OpenHermes-2.5-Mistral-7B",
        "qwen": "Qwen/Qwen1.5-7B-Chat",
    }
    for name, model in expected.items():
        assert config.find_reference(name, Project()).model == model
    path = "give it a path: --ref llama=PATH_OR_HUB_ID"
    for names, hint in ((["mine"], f"known: mine Or {path}"), (map("m{}".format, range(20)), path)):
        project = Project(references={name: Reference(model="x") for name in names})
        with pytest.raises(UsageError, match="no reference is named 'llama'") as error:
            config.find_reference("llama", project)
        assert error.value.hint == hint


def test_paths_that_are_there_become_absolute(here):
    Path("model").mkdir()
    reference = config.absolute_paths(Reference(model="./model", adapter="owner/adapter"))
    assert (reference.model, reference.adapter) == (str(here / "model"), "owner/adapter")
    assert config.absolute_paths(Reference(model="owner/model")).model == "owner/model"


def test_pairings_stand_in_one_order():
    assert choices(words.Pairing) == ("best_worst", "best_random", "best_vs_rest", "all")
    assert set(choices(words.DeterministicPairing)) < set(choices(words.Pairing))


@pytest.mark.parametrize(
    "name", [name for name, word in vars(words).items() if get_args(word) and name[0].isupper()]
)
def test_choices_are_words_that_yaml_leaves_alone(name):
    """So a choice written in a recipe is the choice: no `no`, `on` or number."""
    for word in choices(getattr(words, name)):
        assert config.yaml_value(word) == word
