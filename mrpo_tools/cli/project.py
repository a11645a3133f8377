"""`mrpo init` and `mrpo doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from mrpo_tools.cli.options import print_table

TEMPLATE = """\
# The project: what the short commands work on. Every option overrides the field of its name.
dataset:
  source: {dataset}          # file, directory or hub id
  test_size: {test_size}     # share of prompts held out where the data names no splits
cache: cache
references:                  # the first one named in --refs is the policy's initial model
{references}"""

REFERENCE = """\
  {name}:
    model: {model}
    dtype: {dtype}           # part of the reference's identity; float32 on a CPU
    # quantization: nf4      # 4-bit weights
    # max_length: 2048       # tokens of prompt and response; the model's context by default
    # overlong: skip         # or truncate
"""


@click.command()
@click.option("--dataset", default="data.jsonl", show_default=True, metavar="SOURCE")
@click.option("--test-size", default=0.1, show_default=True, type=float)
@click.option("--ref", "refs", multiple=True, metavar="NAME=MODEL", help="Repeats.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--force", is_flag=True, help="Replace an existing project file.")
def init(
    dataset: str, test_size: float, refs: tuple[str, ...], dtype: str | None, force: bool
) -> None:
    """Write a project file, mrpo.yaml, in this directory.

    Without --ref it names Llama-2-7b-chat, OpenHermes-2.5-Mistral-7B and Qwen1.5-7B-Chat.

    \b
    Example:
        mrpo init --dataset pairs.jsonl --ref llama=./models/llama --ref qwen=Qwen/Qwen2.5-7B
    """
    from mrpo_tools.cli.options import references_named
    from mrpo_tools.config import ALIASES, PROJECT_FILE, Project
    from mrpo_tools.errors import UsageError

    path = Path(PROJECT_FILE)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already", "mrpo init --force replaces it")
    named = references_named(refs or ALIASES, Project(), {})
    if dtype is None:
        from mrpo_tools.models import default_dtype

        dtype = default_dtype()
    references = "".join(
        REFERENCE.format(name=name, model=one.model, dtype=dtype) for name, one in named.items()
    )
    text = TEMPLATE.format(dataset=dataset, test_size=test_size, references=references)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path} with references {', '.join(named)}")
    print(f"next: mrpo precompute --ref {','.join(named)}")


@click.command()
def doctor() -> None:
    """Say what this machine has: versions, device, memory, disk."""
    import os
    import platform
    import shutil
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
        from mrpo_tools.models import default_dtype, pick_device

        rows += [("device", str(pick_device())), ("dtype by default", default_dtype())]
    except ImportError as error:
        rows.append(("device", f"unknown: {error}"))
    print_table(("what", "found"), rows)
