"""Imports point down only, and every third-party library has its home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mrpo_tools"
LEVELS = [
    ["errors", "groups", "config", "progress", "overlap", "presets", "pairing"],
    ["maths"],
    ["hashes", "identity"],
    ["cache", "sources", "control_tokens", "tokens", "batching", "run"],
    ["models", "attention", "scorer", "self_check"],
    ["reference_logps", "scoring", "current", "forward", "rescore", "estimate"],
    ["methods", "sql", "ranking", "results", "policy_metrics"],
    ["training", "recommendation"],
    ["precompute", "rank", "train", "evaluate", "generate", "merge", "report"],
    ["workflows"],
    ["cli"],
    ["__init__", "__main__"],
]
"""Lowest first. A module imports modules of lower levels, or of its own but for the verbs."""
VERBS = {"precompute", "rank", "train", "evaluate", "generate", "merge", "report"}
HOMES = {
    "click": {"cli"},
    "duckdb": {"sql", "sources"},
    "pyarrow": {"cache", "sources", "sql"},
    "datasets": {"sources"},
    "transformers": {"models", "tokens", "control_tokens", "attention", "scorer", "train"}
    | {"training", "workflows"},
    "tokenizers": {"control_tokens", "workflows"},
    "peft": {"models"},
    "bitsandbytes": {"models"},
    "rich": {"progress"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "yaml": {"config", "run", "cli", "workflows"},
    "huggingface_hub": {"identity", "sources"},
}
TORCHLESS = {
    "errors", "groups", "config", "presets", "identity", "sources", "cache", "sql", "run",
    "progress", "overlap", "pairing", "scoring", "precompute", "results", "report",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Every module that a file imports, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def own_parts(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports(path) if name.startswith("mrpo_tools.")}
    return names - {part_of(path)}


def level_of(part: str) -> int:
    return next(level for level, parts in enumerate(LEVELS) if part in parts)


def test_every_part_has_a_level():
    assert {part_of(path) for path in modules()} <= {part for parts in LEVELS for part in parts}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    mine = part_of(path)
    known = {part for parts in LEVELS for part in parts}
    for other in own_parts(path) & known:
        assert level_of(other) <= level_of(mine), f"{mine} imports {other}"
        assert not (mine in VERBS and other in VERBS), f"verb {mine} imports verb {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_at_home(path):
    used = {name.split(".")[0] for name in imports(path)}
    for library, homes in HOMES.items():
        assert library not in used or part_of(path) in homes, f"{part_of(path)} uses {library}"
    if part_of(path) in TORCHLESS:
        assert "torch" not in used
    if part_of(path) == "maths":
        allowed = {"torch", "mrpo_tools", "__future__", "collections", "dataclasses", "functools",
                   "math", "statistics", "types", "typing"}  # fmt: skip
        assert used <= allowed, used - allowed


def test_the_command_line_imports_nothing_heavy():
    """Third-party imports of the CLI at module level: click alone."""
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        used = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        assert not used & {"torch", "transformers", "pyarrow", "duckdb", "pydantic"}, path


def test_every_package_is_installed():
    """The list in pyproject.toml names every folder with code, and the data beside them."""
    import tomllib

    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in modules()}
    names = {".".join(("mrpo_tools", *path.relative_to(PACKAGE).parts)) for path in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == names | {"mrpo_tools.data"}


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    described = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - described


def test_functions_are_short():
    """No function has more than 40 lines of code but those that only list options or arguments."""
    listing = {"_fit", "_arguments", "_results"}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                limit = 60 if node.name in listing else 40
                assert code_lines(node) <= limit, f"{path} {node.name} {code_lines(node)}"


def test_the_project_speaks_of_itself_alone():
    """No path of a machine in any tracked text."""
    root = PACKAGE.parent
    for folder in ("mrpo_tools", "tests", "data", "recipes", "docs", "bench"):
        for path in (root / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".yaml", ".toml"):
                text = path.read_text(encoding="utf-8")
                assert "/work" + "/" not in text, path
                assert "/root" + "/" not in text, path
