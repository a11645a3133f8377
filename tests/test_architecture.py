"""Imports point down only and never in a circle, and every third-party library has its home."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mrpo_tools"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LEVELS = [
    ["errors", "messages", "words"],
    ["files", "groups", "progress"],
    ["config", "pairing", "server"],
    ["maths", "paper_tables", "sources"],
    ["references", "runs"],
    ["cache", "scorer"],
    ["judging"],
    ["methods", "precomputing", "report", "sampling", "scoring", "sql"],
    ["evaluation", "training"],
    ["demo", "rounds", "sweep"],
    ["cli"],
    ["__init__", "__main__"],
]
"""Lowest first. A part imports parts of lower levels, never one of its own level."""
HOMES = {
    "click": {"cli"},
    "duckdb": {"sql", "sources"},
    "pyarrow": {"cache", "methods", "sources", "sql"},
    "datasets": {"sources"},
    "httpx2": {"server"},
    "transformers": {"demo", "references", "sampling", "scorer", "training"},
    "tokenizers": {"demo", "references"},
    "peft": {"references"},
    "bitsandbytes": {"references"},
    "lm_eval": {"evaluation"},
    "rich": {"cli", "progress"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "yaml": {"cli", "config", "demo", "rounds", "runs", "sweep"},
    "huggingface_hub": {"references", "sources"},
    "psutil": {"files", "references", "sql", "training"},
    "platformdirs": {"references"},
    "safetensors": {"precomputing", "references"},
}
TORCHLESS = {
    "cache", "config", "errors", "files", "groups", "judging", "messages",
    "pairing", "paper_tables", "progress", "report", "runs", "server", "sources", "sql", "words",
}  # fmt: skip
"""Parts that work where torch is not installed; so what they import does too."""
TORCHLESS_MODULES = {
    "mrpo_tools.maths.logistic", "mrpo_tools.maths.statistics", "mrpo_tools.precomputing.ensure",
    "mrpo_tools.precomputing.precompute", "mrpo_tools.references.identity",
    "mrpo_tools.references.locate", "mrpo_tools.references.resolved", "mrpo_tools.scoring",
    "mrpo_tools.scoring.apply", "mrpo_tools.scoring.ensure", "mrpo_tools.scoring.lines",
    "mrpo_tools.scoring.judge", "mrpo_tools.scoring.named", "mrpo_tools.scoring.reward",
    "mrpo_tools.scoring.rules",
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    paths = {
        ".".join(("mrpo_tools", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def part_of(module: str) -> str:
    """`cache` of `mrpo_tools.cache.files`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(source: str, *, top_level_only: bool = False) -> set[str]:
    """Every dotted name that a source imports, inside functions too, but for type checkers'."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def arrows(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among `sources` that it imports.

    `from package import module` is an arrow to the module, `from module import name` to the module.
    """
    graph = {}
    for module, source in sources.items():
        names = imports(source)
        shorter = {name.rpartition(".")[0] for name in names - sources.keys()}
        packages = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
        graph[module] = ((names - packages) | shorter) & sources.keys() - {module}
    return graph


def arrows_up(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Arrows between parts that do not lead to a lower level."""
    level = {part: height for height, parts in enumerate(LEVELS) for part in parts}
    return [
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in others
        if part_of(module) != part_of(other) and level[part_of(module)] <= level[part_of(other)]
    ]


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules of one circle, empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


def test_every_part_has_one_level():
    parts = [part for level in LEVELS for part in level]
    assert sorted(parts) == sorted({part_of(name) for name in modules()} | {"__main__"})


def test_the_page_has_these_levels():
    block = re.search(r"## 2\. Levels\n.*?```\n(.*?)```", PAGE, re.DOTALL).group(1)
    lines = [sorted(line.split()) for line in block.strip().splitlines()]
    assert lines == [sorted(parts) for parts in reversed(LEVELS[:-1])]


def test_the_package_has_few_names_and_they_are_those_of_the_pages_tree():
    tree = re.search(r"^mrpo_tools/\n((?:  .*\n)+)", PAGE, re.MULTILINE).group(1)
    listed = {word.rstrip("/") for line in tree.splitlines()
              for word in line[: line.index("   ", 3)].split()}  # fmt: skip
    names = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert listed == names - {"__init__.py", "__main__.py", "py.typed"}
    assert len(names) <= 32


def test_imports_point_down(sources):
    assert arrows_up(arrows(sources)) == []


def test_imports_make_no_circle(sources):
    assert circle(arrows(sources)) == []


@pytest.mark.parametrize(
    "planted",
    [
        {"mrpo_tools.cache.parts": "def f():\n    from mrpo_tools.cache.store import Cache\n"},
        {"mrpo_tools.groups": "from mrpo_tools.files import x\n",
         "mrpo_tools.files": "def f():\n    import mrpo_tools.groups\n"},
    ],
    ids=["inside one part", "two modules of one level"],
)  # fmt: skip
def test_a_planted_circle_is_found(sources, planted):
    changed = {name: sources.get(name, "") + "\n" + text for name, text in planted.items()}
    assert set(planted) <= set(circle(arrows({**sources, **changed})))


def test_a_planted_arrow_up_is_found(sources):
    changed = sources["mrpo_tools.groups"] + "\nfrom mrpo_tools.cache.store import Cache\n"
    arrow = "mrpo_tools.groups -> mrpo_tools.cache.store"
    assert arrows_up(arrows({**sources, "mrpo_tools.groups": changed})) == [arrow]


@pytest.mark.parametrize("module", modules())
def test_libraries_stay_at_home(module, sources):
    part = part_of(module)
    used = {name.split(".")[0] for name in imports(sources[module])}
    for library, homes in HOMES.items():
        assert library not in used or part in homes, f"{module} uses {library}"
    if part == "maths":
        allowed = {"torch", "mrpo_tools", "__future__", "collections", "dataclasses", "functools",
                   "inspect", "math", "statistics", "types", "typing"}  # fmt: skip
        assert used <= allowed, used - allowed
        own = {part_of(name) for name in imports(sources[module]) if "mrpo_tools." in name}
        assert own <= {"maths", "words"}


@pytest.mark.parametrize("module", modules())
def test_what_works_without_torch_imports_none_at_start(module, sources):
    top_level = imports(sources[module], top_level_only=True)
    if part_of(module) in TORCHLESS or module in TORCHLESS_MODULES:
        assert not {name.split(".")[0] for name in top_level} & {"torch", "transformers"}


def test_the_command_line_imports_nothing_heavy(sources):
    """Third-party imports of the CLI at module level: click alone."""
    for module, source in sources.items():
        if part_of(module) == "cli":
            used = {name.split(".")[0] for name in imports(source, top_level_only=True)}
            assert not used & {"torch", "transformers", "pyarrow", "duckdb", "pydantic"}, module


def test_no_module_is_shadowed_by_a_name_of_its_package(sources):
    """`import mrpo_tools.x.y as module` gives the module, whatever `mrpo_tools.x` exports."""
    for module, path in modules().items():
        if path.name == "__init__.py":
            exported = imports(sources[module], top_level_only=True)
            inside = {name for name in modules() if name.rpartition(".")[0] == module}
            own = {f"{module}.{name.rpartition('.')[2]}" for name in exported - inside}
            assert not own & inside, own & inside


def test_every_package_is_installed():
    """The list in pyproject.toml names every folder with code, and the data beside them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in modules().values()}
    names = {".".join(("mrpo_tools", *path.relative_to(PACKAGE).parts)) for path in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == names | {
        "mrpo_tools.data",
        "mrpo_tools.recipes",
    }


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    described = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - described


def test_functions_are_short(sources):
    """No function has more than 40 lines of code, its docstring left out."""
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node) <= 40, f"{module} {node.name} {code_lines(node)}"


def test_the_project_speaks_of_itself_alone():
    """No path of a machine in any tracked text."""
    for folder in ("mrpo_tools", "tests", "data", "recipes", "docs", "bench"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".toml"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"/(work|root)\b/", text), path
