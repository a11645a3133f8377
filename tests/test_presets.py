"""The papers' tables as presets: every cell loads, means what the paper says, and becomes a run."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from mrpo_tools.config import Recipe, load_project, load_recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.methods.method import resolve_method
from mrpo_tools.paper_tables import load_preset, load_table
from mrpo_tools.references.rendering import FALLBACK_TEMPLATE
from mrpo_tools.rounds.plan import RoundPlan, RoundRecipe, load_round_recipe
from mrpo_tools.sources import KNOWN

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes" / "papers").glob("*.yaml"))
CELLS = [f"{path}:{cell}" for path in FILES for cell in load_table(path).cells]
SCORED = {"ultrafeedback"}
SMALL = ["comparison-gpt4", "neural-dpo", "distilabel-math"]
"""S1, S2 and S3 of MRPO."""


def cell(name: str) -> Recipe:
    return load_preset(str(ROOT / "recipes" / "papers" / name)).recipe


@pytest.mark.parametrize("word", CELLS, ids=lambda word: Path(word).name)
def test_every_cell_loads_and_means_something(word):
    """Its data sets are names of `KNOWN` or hub ids."""
    preset = load_preset(word)
    recipe = preset.recipe
    if preset.rounds:
        recipe = first_round(preset)
        assert recipe.refs[0] == preset.recipe.refs[0]
        assert set(recipe.refs) <= set(preset.project.references)
        assert preset.project.scorers.keys() == {preset.recipe.score}
    source = preset.project.dataset.source
    scores = source in SCORED or "table-4.yaml:mpo" in word or "w-mpo" in word or preset.rounds
    assert resolve_method(recipe, scores=scores).name == recipe.loss
    assert list(preset.project.references) == preset.recipe.refs
    table = load_table(Path(word.partition(".yaml:")[0] + ".yaml"))
    assert preset.title.startswith(table.paper)
    for dataset in table.datasets:
        assert dataset.source in KNOWN or dataset.source.count("/") == 1


def first_round(preset) -> Recipe:
    """What the first round of a cell trains by."""
    words = preset.recipe.model_dump(exclude_unset=True, exclude={"refs"})
    plan = RoundPlan(**{"policy": preset.recipe.refs[0], **preset.rounds})
    return RoundRecipe(words, plan).recipe(preset.recipe.refs[0], [], None)


def test_every_row_of_the_papers_is_there():
    """The rows and columns of the papers' tables."""
    expected = {
        "mrpo-table-1": ("dpo multi-dpo-0.1 multi-dpo-0.5 multi-dpo-0.9 mean-ref mrpo",
                         "l-from-m m-from-l"),
        "mrpo-as-published": ("dpo mrpo mrpo-weights-of-the-paper multi-dpo", "l-from-m m-from-l"),
        "mrpo-table-1-sampled": ("rlhf-0.1 rlhf-0.5 rlhf-0.9 kd-0.1 kd-0.5 kd-0.9",
                                 "l-from-m m-from-l"),
        "mrpo-table-2": ("dpo mrpo", "l-from-m m-from-l"),
        "mrpo-table-4": ("dpo mrpo", "m-from-l-q l-from-m-q q-from-m-l"),
        "mrpo-table-5": ("epsilon-0 epsilon-1e6 epsilon-1 epsilon-0.1 epsilon-0.01",
                         "same-family other-family"),
        "mrpo-table-8": ("dpo mrpo", "m-from-l l-from-m"),
        "mrpo-figure-4": ("dpo adaptive fixed-epsilon fixed-alpha-0.1 fixed-alpha-0.5 "
                          "fixed-alpha-0.9", "l-from-m"),
        "mpo-table-1": ("mpo-1vsk mpo w-mpo w-mpo-eq-7", "mistral llama"),
        "mpo-table-1-baselines": ("rrhf slic ipo cpo kto orpo r-dpo grpo dpo nc2-dpo infonca",
                                  "mistral llama"),
        "mpo-table-2": ("mpo w-mpo dpo", "mistral llama"),
        "mpo-table-3": ("mpo", "mistral llama"),
        "mpo-table-4": ("mpo w-mpo", "mistral llama"),
        "mnpo": ("mnpo inpo", "gemma"),
        "swepo-table-2": ("dpo dpo-x3 infonca swepo-1-vs-k swepo-p0 swepo-p1 swepo-p2",
                          "mistral llama"),
        "mppo-table-2": ("dpo kto orpo simpo point-ce point-mse pair-single pair-mns pair-mnm "
                         "pair-mcs pair-mcm list-mle", "llama"),
    }  # fmt: skip
    tables = {path.stem: load_table(path) for path in FILES}
    assert tables.keys() == expected.keys()
    for name, (rows, columns) in expected.items():
        assert list(tables[name].rows) == rows.split()
        assert list(tables[name].columns) == columns.split()


def test_the_numbers_are_the_papers():
    """MRPO §4 and B.1, MPO Table 6 and Appendix I, SWEPO Table 2, MPPO §4."""
    recipe = cell("mrpo-table-1.yaml:mrpo/l-from-m")
    assert recipe.refs == ["llama", "mistral"]
    assert (recipe.beta, recipe.learning_rate, recipe.num_train_epochs) == (0.1, 1e-5, 3)
    assert recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps == 8
    assert (recipe.lora_r, recipe.lora_alpha, recipe.quantization) == (8, 8, "nf4")
    assert cell("mrpo-table-1.yaml:mrpo/m-from-l").refs == ["mistral", "llama"]
    assert cell("mrpo-table-1.yaml:dpo/m-from-l").refs == ["mistral"]
    assert cell("mrpo-table-2.yaml:mrpo/l-from-m").num_train_epochs == 1
    assert cell("mrpo-table-4.yaml:mrpo/q-from-m-l").refs == ["qwen", "mistral", "llama"]
    assert cell("mrpo-table-4.yaml:mrpo/q-from-m-l").finetuning == "full"
    for word in ("0", "1e6", "1", "0.1", "0.01"):
        radius = cell(f"mrpo-table-5.yaml:epsilon-{word}/other-family").epsilon_max
        assert radius == float(word)
    assert cell("mrpo-figure-4.yaml:fixed-epsilon/l-from-m").trust_region == "fixed"
    rates = {
        "1.yaml:mpo/mistral": 4e-7, "1.yaml:mpo/llama": 5e-7,
        "4.yaml:mpo/mistral": 1.5e-7, "4.yaml:w-mpo/llama": 3e-7,
        "1-baselines.yaml:dpo/mistral": 3e-7, "1-baselines.yaml:dpo/llama": 5e-7,
    }  # fmt: skip
    for name, rate in rates.items():
        assert cell(f"mpo-table-{name}").learning_rate == rate
    assert cell("mpo-table-4.yaml:mpo/llama").chosen == "top_bottom"
    assert [cell(f"swepo-table-2.yaml:swepo-p{p}/llama").power for p in range(3)] == [0, 1, 2]
    assert cell("mppo-table-2.yaml:point-ce/llama").score_scale == 10
    for stem, datasets in (("mrpo-table-1", SMALL), ("mrpo-table-5", SMALL[2:])):
        table = load_table(ROOT / "recipes" / "papers" / f"{stem}.yaml")
        assert [data.source for data in table.datasets] == datasets
    assert [KNOWN[name].train_groups for name in SMALL] == [364, 502, 2178]


def test_the_numbers_of_rounds_are_the_papers():
    """MPO §5 and Table 6, MRPO Table 1's fixed weights, MNPO's published code."""
    papers = ROOT / "recipes" / "papers"
    llama = load_preset(f"{papers}/mpo-table-3.yaml:mpo/llama")
    rates = [float(words["learning_rate"]) for words in llama.rounds["by_round"]]
    assert rates == [5e-7, 4e-7, 3e-7]
    assert (llama.rounds["n"], llama.rounds["temperature"], llama.rounds["top_p"]) == (5, 1.0, 1.0)
    assert 3 * llama.rounds["prompts"] <= 61_135 < 3 * (llama.rounds["prompts"] + 1)
    assert (llama.recipe.chosen, llama.recipe.top_bottom) == ("top_bottom", 2)
    mistral = load_preset(f"{papers}/mpo-table-2.yaml:mpo/mistral")
    assert (first_round(mistral).learning_rate, mistral.recipe.beta) == (1.5e-7, 0.01)
    kd = first_round(load_preset(f"{papers}/mrpo-table-1-sampled.yaml:kd-0.1/l-from-m"))
    assert (kd.refs, kd.fixed_weights, kd.behaviour) == (["llama", "mistral"], [0.9, 0.1], "llama")
    mnpo = load_preset(f"{papers}/mnpo.yaml:mnpo/gemma")
    resolved = resolve_method(first_round(mnpo), scores=True)
    assert (resolved.hyper["beta"], resolved.hyper["length_normalized"]) == (0.0075, True)
    assert (mnpo.rounds["temperature"], mnpo.rounds["top_p"], mnpo.rounds["history"]) == (
        0.8, 0.95, 2,
    )  # fmt: skip


def test_init_writes_a_recipe_of_rounds(here, mrpo):
    """Which `mrpo round` takes as it is."""
    out = mrpo(f"init --preset {ROOT}/recipes/papers/mnpo.yaml:mnpo/gemma").out
    assert "next: mrpo round recipe.yaml --dry-run\n" in out
    loaded = load_round_recipe(Path("recipe.yaml"))
    assert loaded.plan.policy == "gemma"
    assert loaded.references("gemma", ["r2", "r1"]) == ["gemma", "r2", "r1"]
    assert load_project().scorers.keys() == {"skywork"}


def test_init_writes_a_project_and_a_recipe_that_load(here, mrpo):
    word = f"{ROOT}/recipes/papers/mrpo-table-1.yaml:mrpo/m-from-l"
    out = mrpo(f"init --preset {word} --dataset distilabel-math").out
    assert "next: mrpo precompute --ref mistral,llama\n" in out
    project = load_project()
    assert project.dataset.source == "distilabel-math"
    assert project.dataset.test_size is None, "the paper's own split"
    assert project.references["mistral"].model == "teknium/OpenHermes-2.5-Mistral-7B"
    assert project.references["mistral"].quantization == "nf4"
    assert Recipe(**load_recipe(Path("recipe.yaml"))) == load_preset(word).recipe
    first = Path("mrpo.yaml").read_text().splitlines()[0]
    assert first == "# MRPO (Le et al. 2025), Table 1: mrpo/m-from-l"
    assert "mrpo.yaml is there already" in mrpo(f"init --preset {word}", 2).err
    Path("mrpo.yaml").unlink()
    assert "recipe.yaml is there already" in mrpo(f"init --preset {word}", 2).err
    assert not Path("mrpo.yaml").exists()
    mrpo(f"init --preset {word} --force")
    assert load_project().dataset.source == "comparison-gpt4"


def test_what_comes_with_the_package_is_found_by_name_anywhere(here, mrpo):
    """Under its name alone, with or without the ending; a file of the user's comes first."""
    shipped = load_preset(f"{ROOT}/recipes/papers/mrpo-table-1.yaml:mrpo/l-from-m")
    for word in ("mrpo-table-1:mrpo/l-from-m", "mrpo-table-1.yaml:mrpo/l-from-m"):
        assert load_preset(word) == shipped
    assert load_recipe(Path("mpo")) == load_recipe(ROOT / "recipes" / "mpo.yaml")
    Path("mpo").write_text("learning_rate: 0.5\n")
    assert load_recipe(Path("mpo")) == {"learning_rate": 0.5}
    err = mrpo("train --config mrpa --output run", 2).err
    assert "no file mrpa" in err
    assert "dpo, mpo, mrpo" in err
    assert "mpo-table-1, " in mrpo("init --preset mpo-table:mpo/llama", 2).err
    Path("mrpo.yaml").write_text("dataset: d.jsonl\n")
    assert "the project, not a recipe" in mrpo("train --config mrpo.yaml --output run", 2).err


def test_the_wheel_holds_them():
    """What setuptools is told to pack is every file of the folders, and nothing else is there."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["mrpo_tools.recipes"]
    packed = {path for pattern in patterns for path in (ROOT / "recipes").glob(pattern)}
    assert packed == {path for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    assert settings["package-dir"]["mrpo_tools.recipes"] == "recipes"
    assert "mrpo_tools.recipes" in settings["packages"]


def test_the_published_code_is_not_the_paper(here, mrpo):
    """Swapped weights, twice the rank, 16 bits for the policy and 4 for the other; one template."""
    paper = load_preset("mrpo-table-1:mrpo/m-from-l")
    code = load_preset("mrpo-as-published:mrpo/m-from-l")
    assert (paper.recipe.weights_layout, code.recipe.weights_layout) == ("paper", "swapped")
    assert (paper.recipe.lora_alpha, code.recipe.lora_alpha) == (8, 16)
    assert (code.recipe.per_device_train_batch_size, code.recipe.gradient_accumulation_steps) == (
        1, 4,
    )  # fmt: skip
    first, second = code.project.references.values()
    assert (first.quantization, second.quantization) == (None, "nf4")
    assert {reference.quantization for reference in paper.project.references.values()} == {"nf4"}
    mrpo("init --preset mrpo-as-published:mrpo/m-from-l")
    templates = {each.chat_template for each in load_project().references.values()}
    assert [Path(name).read_text() for name in templates] == [
        FALLBACK_TEMPLATE.replace("\n", "\\n")
    ], "as it is written in a file"


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("none.yaml:a/b", "no file none.yaml", "those that mrpo brings along: mnpo"),
        ("t.yaml", "t.yaml: no cell is named", "cells: dpo/l, stranger/l, typo/l"),
        ("t.yaml:dop/l", "t.yaml: there is no cell 'dop/l'", "did you mean dpo/l"),
        ("t.yaml:typo/l", "t.yaml:typo/l: lr: unknown key", "did you mean learning_rate?"),
        ("t.yaml:stranger/l", "t.yaml:stranger/l: references.nobody: Input should be", None),
    ],
)
def test_what_cannot_be_meant(word, message, hint, here):
    rows = {"dpo": {"loss": "dpo"}, "typo": {"lr": 1}, "stranger": {"refs": ["nobody"]}}
    table = {"paper": "P", "datasets": ["d"], "references": {"a": "m"}, "recipe": {},
             "columns": {"l": {"refs": ["a"]}}, "rows": rows}  # fmt: skip
    Path("t.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(UsageError) as error:
        load_preset(word)
    assert str(error.value).startswith(message)
    assert hint is None or error.value.hint.startswith(hint)
