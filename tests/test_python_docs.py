"""The documents about the code: the library's example runs, every name and cited section exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import mrpo_tools

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_example_runs(tmp_path, monkeypatch, tiny_models, some_groups):
    """Both blocks, one after the other, with tiny models and groups where the demo has its own."""
    monkeypatch.chdir(tmp_path)
    Path("models").symlink_to(next(iter(tiny_models.values())).parent)
    source = tmp_path / "demo.jsonl"
    groups = [
        group.with_split(("train", "test")[place % 2]) for place, group in enumerate(some_groups)
    ]
    source.write_text("".join(json.dumps(group.as_dict()) + "\n" for group in groups))
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        exec(block, names)
    assert names["losses"].shape == (len(some_groups),)
    assert names["evaluation"].path.exists()


def test_every_public_name_is_documented_and_there():
    for name in mrpo_tools.__all__:
        assert getattr(mrpo_tools, name), name
        assert f"`{name}" in PAGE, name


@pytest.mark.parametrize("path", sorted((ROOT / "mrpo_tools").rglob("*.py")), ids=str)
def test_cited_sections_exist(path):
    """`docs/methods.md §5` and its like."""
    for page, section in re.findall(r"docs/(\w+\.md) §([\d.]*\d)", path.read_text("utf-8")):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert re.search(rf"^##+ {re.escape(section)}[. ]", text, re.MULTILINE), (page, section)


def test_the_tree_of_the_architecture_is_the_package():
    tree = re.search(r"^mrpo_tools/\n((?:  .*\n)+)", ARCHITECTURE, re.MULTILINE).group(1)
    listed = {word.rstrip("/") for line in tree.splitlines()
              for word in re.findall(r"\S+", line[: line.index("   ", 3)])}  # fmt: skip
    there = {path.name for path in (ROOT / "mrpo_tools").iterdir()}
    assert listed == there - {"__init__.py", "__main__.py", "__pycache__", "py.typed"}


def test_the_levels_of_the_architecture_are_those_of_its_test():
    from test_architecture import LEVELS

    block = re.search(r"## 2\. Levels\n.*?```\n(.*?)```", ARCHITECTURE, re.DOTALL).group(1)
    lines = [sorted(line.split()) for line in block.strip().splitlines()]
    assert lines == [sorted(parts) for parts in reversed(LEVELS[:-1])]
