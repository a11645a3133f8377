"""The README is true: its commands run, its files exist, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from mrpo_tools.cli import COMMANDS, run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.md"),
         *(ROOT / "data").glob("*.md")]  # fmt: skip


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_it_is_short():
    assert README.count("\n") < 200


def test_the_two_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in blocks("bash")[0].strip().splitlines():
        target = line.split()[1]
        assert f"\n{target}: " in makefile


def test_the_commands_run_in_order(tmp_path, monkeypatch, some_groups, tiny_models):
    """Every `mrpo` line of the README, with tiny models in place of hub ids and one step."""
    monkeypatch.chdir(tmp_path)
    groups = [group.with_split(None) for group in some_groups]
    Path("pairs.jsonl").write_text("".join(json.dumps(g.as_dict()) + "\n" for g in groups))
    for text in blocks("bash")[1:]:
        for line in text.strip().splitlines():
            arguments = shlex.split(line, comments=True)
            assert arguments[0] == "mrpo"
            arguments = [with_tiny_model(word, tiny_models) for word in arguments[1:]]
            if arguments[0] == "init":
                arguments += ["--test-size", "0.4"]
            if arguments[0] == "train":
                arguments += ["--set", "max_steps=1"]
            assert run(arguments) == 0, line


def with_tiny_model(word: str, tiny_models: dict[str, Path]) -> str:
    name, equals, _ = word.partition("=")
    return f"{name}={tiny_models[name]}" if equals and name in tiny_models else word


def test_the_commands_in_the_text_exist():
    for command in re.findall(r"`mrpo ([a-z]+)", README):
        assert command in COMMANDS, command


def test_the_data_of_the_readme_is_read(tmp_path):
    from mrpo_tools.sources import load_groups

    for index, line in enumerate(blocks("json")[0].strip().splitlines()):
        path = tmp_path / f"{index}.jsonl"
        path.write_text(line + "\n", encoding="utf-8")
        assert len(load_groups(path).groups) == 1


def test_the_library_example_runs(tmp_path, monkeypatch, tiny_models):
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0].replace("data/demo.jsonl", str(ROOT / "data" / "demo.jsonl"))
    code = code.replace("models/llama", str(tiny_models["llama"]))
    names: dict[str, object] = {}
    exec(code, names)
    assert names["tensors"].logps.shape == (800, 4, 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_the_tree_is_there():
    tree = next(text for text in blocks("") if text.startswith("mrpo_tools/"))
    for name in re.findall(r"([a-z_]+(?:\.py|/))", tree):
        assert list(ROOT.rglob(name.rstrip("/"))), name
