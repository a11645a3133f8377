"""`mrpo init` and `mrpo doctor`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import presets
from mrpo_tools.cli.help import Command
from mrpo_tools.cli.options import choice, print_table, references_named

TEMPLATE = """\
# The project: what the short commands work on. Every option overrides the field of its name.
dataset:
  source: {dataset}          # file, directory or hub id
{test_size}cache: cache
references:                  # the first one named in --refs is the policy's initial model
{references}"""

TEST_SIZE = """\
  test_size: {share}           # share of prompts held out where the data names no splits
"""

REFERENCE = """\
  {name}:
    model: {model}
    dtype: {dtype}           # part of the reference's identity; float32 on a CPU
    # quantization: nf4      # 4-bit weights
    # max_length: 2048       # tokens of prompt and response; the model's context by default
    # overlong: skip         # or truncate; or keep_end, with max_prompt_length
"""


@click.command(cls=Command)
@click.option("--dataset", metavar="SOURCE",
              help="File, directory or hub id of the data.  [default: data.jsonl, or the preset's "
              "first]")  # fmt: skip
@click.option("--test-size", type=float,
              help="Share of prompts held out.  [default: the paper's for a named data set, else "
                   "0.1]")  # fmt: skip
@click.option("--ref", "refs", multiple=True, metavar="NAME=MODEL",
              help="A reference and its model: a directory or hub id. Repeats.")  # fmt: skip
@click.option("--dtype", type=choice(words.Dtype),
              help="Of the references' weights.  [default: what suits this machine]")  # fmt: skip
@click.option("--preset", metavar="TABLE:ROW/COLUMN", shell_complete=presets,
              help="A cell of a paper's table, a file or one that comes with mrpo; writes "
                   "recipe.yaml too.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing project file.")
def init(
    *,
    dataset: str | None,
    test_size: float | None,
    refs: tuple[str, ...],
    dtype: str | None,
    preset: str | None,
    force: bool,
) -> None:
    """Write a project file, mrpo.yaml, in this directory.

    Without --ref it names Llama-2-7b-chat, OpenHermes-2.5-Mistral-7B and Qwen1.5-7B-Chat.

    \b
    Example:
        mrpo init --dataset pairs.jsonl --ref llama=./models/llama --ref qwen=Qwen/Qwen2.5-7B
        mrpo init --preset mrpo-table-1:mrpo/l-from-m
    """
    from mrpo_tools.config import ALIASES, PROJECT_FILE, Project
    from mrpo_tools.errors import UsageError
    from mrpo_tools.sources.known import KNOWN

    path = Path(PROJECT_FILE)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", "mrpo init --force replaces it")
    if preset is not None:
        if refs or dtype or test_size is not None:
            raise UsageError(
                "--preset names the references and the split itself",
                "leave --ref, --dtype and --test-size out; change mrpo.yaml afterwards",
            )
        _init_preset(preset, dataset, path, force=force)
        return
    dataset = dataset or "data.jsonl"
    named = references_named(refs or ALIASES, Project(), {})
    if dtype is None:
        from mrpo_tools.references.devices import default_dtype

        dtype = default_dtype()
    references = "".join(
        REFERENCE.format(name=name, model=reference.model, dtype=dtype)
        for name, reference in named.items()
    )
    as_the_paper = test_size is None and dataset.partition("@")[0] in KNOWN
    share = "" if as_the_paper else TEST_SIZE.format(share=0.1 if test_size is None else test_size)
    text = TEMPLATE.format(dataset=dataset, test_size=share, references=references)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path} with references {', '.join(named)}")
    print(f"next: mrpo precompute --ref {','.join(named)}")


def _init_preset(word: str, dataset: str | None, project: Path, *, force: bool) -> None:
    """Write the project and the recipe of a cell of a paper's table."""
    import yaml

    from mrpo_tools.errors import UsageError
    from mrpo_tools.paper_tables import load_preset

    preset = load_preset(word, dataset)
    recipe = Path("recipe.yaml")
    if recipe.exists() and not force:
        raise UsageError(f"{recipe} is there already", "mrpo init --force replaces it")
    fields = preset.project.model_dump(exclude_defaults=True)
    keys = preset.recipe.model_dump(exclude_unset=True)
    if preset.rounds:
        del keys["refs"]
        keys["rounds"] = {"policy": preset.recipe.refs[0], **preset.rounds}
    for path, values in ((project, {"cache": "cache", **fields}), (recipe, keys)):
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        path.write_text(f"# {preset.title}\n{text}", encoding="utf-8")
    for template in preset.templates:
        if template.resolve() != Path(template.name).resolve():
            shutil.copyfile(template, template.name)
    names = ",".join(preset.project.references)
    print(f"wrote {project} and {recipe}: {preset.title}")
    if preset.rounds:
        print(f"next: mrpo round {recipe} --dry-run")
        print(f"then: mrpo round {recipe} --output rounds")
        return
    print(f"next: mrpo precompute --ref {names}")
    print(f"then: mrpo train --config {recipe} --output run")


@click.command(cls=Command)
def doctor() -> None:
    """Say what this machine has: versions, device, memory, disk."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    rows: list[tuple[str, object]] = [("python", platform.python_version())]
    for name in ("mrpo-tools", "torch", "transformers", "datasets", "pyarrow", "duckdb",
                 "accelerate", "peft", "bitsandbytes"):  # fmt: skip
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "missing: pip install mrpo-tools"))
    rows.append(("cores", str(os.cpu_count())))
    rows.append(("disk free here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"))
    try:
        from mrpo_tools.references.devices import default_dtype, pick_device

        rows += [("device", str(pick_device())), ("dtype by default", default_dtype())]
    except ImportError as error:
        rows.append(("device", f"unknown: {error}"))
    print_table(("what", "found"), rows)
