"""What a shell completes, asked as a shell asks click."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from mrpo_tools import words
from mrpo_tools.cli import COMMANDS, cli
from mrpo_tools.config import Recipe
from mrpo_tools.paper_tables import load_table


def completed(line: str, kind: str = "plain") -> list[str]:
    """What the last word of a line after `mrpo` may become."""
    *arguments, incomplete = line.split(" ")
    items = ShellComplete(cli, {}, "mrpo", "_MRPO_COMPLETE").get_completions(arguments, incomplete)
    return [item.value for item in items if item.type == kind]


@pytest.fixture
def project(here) -> Path:
    """A project of two references, a cache with one of them and another, and runs."""
    Path("mrpo.yaml").write_text("cache: numbers\nreferences: {llama: a/b, mistral: c/d}\n")
    for name in ("llama", "big-one"):
        Path(f"numbers/references/{name}-0123456789ab").mkdir(parents=True)
    Path("elsewhere/references/other-0123456789ab").mkdir(parents=True)
    for run in ("runs/dpo", "runs/sweep/mrpo-0", "lone"):
        Path(run).mkdir(parents=True)
        for file in ("run.json", "recipe.yaml"):
            Path(run, file).write_text("{}")
    Path("runs/empty").mkdir()
    return here


def test_commands_and_options():
    assert completed("") == sorted(COMMANDS, key=list(cli.list_commands(None)).index)
    assert completed("cache ver") == ["verify"]
    assert completed("train --learning") == ["--learning-rate"]
    assert completed("precompute --dt") == ["--dtype"]


def test_choices():
    assert completed("train --weights ") == [*words.choices(words.Weights)]
    assert completed("train --lr-scheduler-type cosine") == ["cosine", "cosine_with_restarts"]
    assert completed("data convert a b --to t") == ["trl"]


@pytest.mark.parametrize("line", ["train --loss", "losses", "train --loss mrpo --loss"])
def test_losses(line):
    assert completed(f"{line} ") == [*words.choices(words.Loss)]
    assert completed(f"{line} mr") == ["mrpo"]


def test_keys_of_a_recipe_and_their_values():
    assert completed("recipe ") == [*Recipe.model_fields]
    assert completed("train --set epsilon") == ["epsilon_max="]
    assert completed("train --set weights=") == [
        f"weights={name}" for name in words.choices(words.Weights)
    ]
    assert completed("sweep recipe.yaml --grid loss=dp") == ["loss=dpo"]
    assert completed("train --set nothing=") == []


def test_presets_and_recipes():
    root = Path(__file__).parent.parent / "recipes"
    tables = sorted(path.stem for path in (root / "papers").glob("*.yaml"))
    assert completed("init --preset ") == [f"{name}:" for name in tables]
    cells = load_table(root / "papers/mrpo-table-1.yaml").cells
    assert completed("init --preset mrpo-table-1:") == [f"mrpo-table-1:{cell}" for cell in cells]
    assert completed("init --preset nothing:") == []
    assert completed("train --config ") == sorted(path.stem for path in root.glob("*.yaml"))
    assert completed("train --config ./m", "file") == ["./m"]


@pytest.mark.parametrize(
    "option",
    ["train --refs", "precompute --ref", "rank --refs", "sql --refs", "sweep r.yaml --refs",
     "evaluate runs/dpo --refs", "cache export --ref", "cache verify --ref", "data show --ref",
     "cache diff", "cache diff llama"],
)  # fmt: skip
def test_references_of_the_project_and_of_its_cache(option, project):
    assert completed(f"{option} ") == ["llama", "mistral", "big-one"]
    assert completed(f"{option} m") == ["mistral"]


def test_references_after_a_comma_and_of_another_cache(project):
    assert completed("train --refs llama,") == ["llama,mistral", "llama,big-one"]
    assert completed("rank --cache elsewhere --refs ") == ["llama", "mistral", "other"]


@pytest.mark.parametrize("command", ["evaluate", "compare", "report", "generate", "merge"])
def test_runs(command, project):
    assert completed(f"{command} ") == ["lone", "runs/dpo", "runs/sweep/mrpo-0"]
    assert completed(f"{command} runs/s") == ["runs/sweep/mrpo-0"]
    assert completed(f"{command} runs/sweep/") == ["runs/sweep/mrpo-0"]
    assert completed(f"{command} runs/e", "dir") == ["runs/e"]


def test_a_project_file_that_cannot_be_read_completes_nothing(here):
    Path("mrpo.yaml").write_text("references: [")
    assert completed("train --refs ") == []


def test_a_shell_gets_an_answer_without_torch(blocked, project):
    """As bash asks, in a process where torch cannot be imported."""
    code = "import sys; sys.argv = ['mrpo']; from mrpo_tools.cli import main; main()"
    for words_typed, wanted in (
        ("mrpo train --loss mp", "plain,mpo\n"),
        ("mrpo train --refs ", "plain,llama\n"),
        ("mrpo evaluate runs/", "plain,runs/dpo\n"),
    ):
        asked = {"_MRPO_COMPLETE": "bash_complete", "COMP_WORDS": words_typed,
                 "COMP_CWORD": str(words_typed.count(" "))}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env={**os.environ, **blocked, **asked},
        )  # fmt: skip
        assert wanted in done.stdout + "\n", done.stderr


def test_the_line_of_the_readme_is_what_click_prints():
    """`eval "$(_MRPO_COMPLETE=bash_source mrpo)"` defines the completion of `mrpo`."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert 'eval "$(_MRPO_COMPLETE=bash_source mrpo)"' in readme
    code = "import sys; sys.argv = ['mrpo']; from mrpo_tools.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "_MRPO_COMPLETE": "zsh_source"},
    )  # fmt: skip
    assert "compdef _mrpo_completion mrpo" in done.stdout
