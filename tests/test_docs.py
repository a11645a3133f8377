"""The documents are true: commands and examples run, names and links are there, figures measured.

The generated pages are those that their generators write now.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from small_data import write_lines

import mrpo_tools
from mrpo_tools.cli import COMMANDS, run
from mrpo_tools.methods.method import LOSSES
from mrpo_tools.sources import load_groups

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
PAGES = [
    path for folder in ("", "docs", "recipes", "data") for path in (ROOT / folder).glob("*.md")
]


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def script(path: str) -> ModuleType:
    """A script outside the package, imported."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for names
    spec.loader.exec_module(module)
    return module


def measured(name: str) -> dict:
    return json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))


def test_the_readme_is_short():
    assert README.count("\n") < 200


def test_the_two_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in blocks(README, "bash")[0].strip().splitlines():
        assert f"\n{line.split()[1]}: " in makefile


def test_the_commands_run_in_order(tmp_path, monkeypatch, some_groups, tiny_models):
    """Every `mrpo` line of the README, with tiny models in place of hub ids and one step."""
    monkeypatch.chdir(tmp_path)
    write_lines(Path("pairs.jsonl"), (group.with_split(None).as_dict() for group in some_groups))
    more = {"init": ["--test-size", "0.4"], "train": ["--set", "max_steps=1"],
            "generate": ["--max-new-tokens", "4"], "round": ["--dry-run"]}  # fmt: skip
    Path("rules.py").write_text("def score(messages, answer): return len(answer)", encoding="utf-8")
    Path("rounds.yaml").write_text("score: rules:score\nloss: mpo\n", encoding="utf-8")
    for line in "".join(blocks(README, "bash")[1:]).splitlines():
        command, *arguments = shlex.split(line, comments=True)
        assert command == "mrpo"
        arguments = [with_tiny_model(word, tiny_models) for word in arguments]
        assert run([*arguments, *more.get(arguments[0], [])]) == 0, line


def with_tiny_model(word: str, tiny_models: dict[str, Path]) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}={tiny_models[name]}" if equals and name in tiny_models else word


def test_the_commands_in_the_text_exist():
    assert set(re.findall(r"`mrpo ([a-z]+)", README)) <= set(COMMANDS)


def test_the_data_of_the_readme_is_read(tmp_path):
    for line in blocks(README, "json")[0].strip().splitlines():
        path = tmp_path / "line.jsonl"
        path.write_text(line + "\n", encoding="utf-8")
        assert len(load_groups(path).groups) == 1


def test_the_library_example_runs(tmp_path, monkeypatch, tiny_models):
    """As it is printed, in a directory like that of the demo."""
    monkeypatch.chdir(tmp_path)
    Path("models").symlink_to(tiny_models["llama"].parent)
    Path("demo.jsonl").symlink_to(ROOT / "data/demo.jsonl")
    names: dict[str, object] = {}
    exec(blocks(README, "python")[0], names)
    assert names["tensors"].logps.shape == (800, 4, 1)


def test_the_examples_of_the_library_page_run(tmp_path, monkeypatch, tiny_models, some_groups):
    """Both blocks, one after the other, with tiny models and groups where the demo has its own."""
    monkeypatch.chdir(tmp_path)
    Path("models").symlink_to(tiny_models["llama"].parent)
    groups = [
        group.with_split(("train", "test")[place % 2]) for place, group in enumerate(some_groups)
    ]
    write_lines(Path("demo.jsonl"), (group.as_dict() for group in groups))
    names: dict[str, object] = {}
    for block in blocks(PAGE, "python"):
        exec(block, names)
    assert names["losses"].shape == (len(some_groups),)
    assert names["evaluation"].path.exists()


def test_every_public_name_is_documented_and_there():
    for name in mrpo_tools.__all__:
        assert getattr(mrpo_tools, name), name
        assert f"`{name}" in PAGE, name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_tree_of_the_readme_is_there():
    tree = next(text for text in blocks(README, "") if text.startswith("mrpo_tools/"))
    for name in re.findall(r"([a-z_]+(?:\.py|/))", tree):
        assert list(ROOT.rglob(name.rstrip("/"))), name


@pytest.mark.parametrize("path", sorted((ROOT / "mrpo_tools").rglob("*.py")), ids=str)
def test_cited_sections_exist(path):
    """`docs/methods.md §5` and its like."""
    for page, section in re.findall(r"docs/(\w+\.md) §([\d.]*\d)", path.read_text("utf-8")):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert re.search(rf"^##+ {re.escape(section)}[. ]", text, re.MULTILINE), (page, section)


def test_the_page_of_methods_is_the_generated_one():
    page = script("docs/generate.py").page()
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == page, (
        "python docs/generate.py writes it anew"
    )
    assert all(f"| `{name}` |" in page for name in LOSSES)


def test_the_objectives_that_ran_on_the_demo():
    """The committed runs: finite and falling for all of them; a new objective need not wait."""
    rows = measured("objectives_on_demo.json")["rows"]
    for row in rows:
        assert row["last"] < row["first"], row["loss"]
    assert {row["loss"] for row in rows} <= set(LOSSES)


def test_the_table_of_speeds_is_what_was_measured():
    """docs/performance.md shows the figures as the benchmark prints them."""
    speed, results = script("bench/speed.py"), measured("speed_on_cpu.json")
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert speed.table(results) in text
    assert speed.described(results["machine"]) in text
