"""`mrpo train`: phase 2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mrpo_tools import words
from mrpo_tools.cli.options import (
    cache_option,
    choice,
    dataset_of,
    dataset_options,
    json_option,
    pairing_option,
    print_json,
    print_table,
    read_groups,
    recipe_keys,
    references_named,
    set_option,
)

if TYPE_CHECKING:
    from mrpo_tools.config import Recipe
    from mrpo_tools.training.train import TrainResult

RECIPE_OPTIONS = (
    "loss", "policy", "combine", "weights", "trust_region", "epsilon_max", "chosen", "pairing",
)  # fmt: skip


@click.command()
@click.option("--loss", metavar="NAME", help="`mrpo losses` lists them.  [default: mrpo]")
@click.option("--refs", metavar="A,B,…", help="Cached references, reference 1 first.")
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="RECIPE", help="A recipe (YAML)."
)
@click.option("--policy", metavar="MODEL", help="Start from this model, not from reference 1.")
@click.option("--ref", "definitions", multiple=True, metavar="NAME=MODEL",
              help="Where a reference's model is, outside a project.")  # fmt: skip
@dataset_options
@cache_option
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="RUN")
@click.option("--combine", type=choice(words.Combine))
@click.option("--weights", type=choice(words.Weights))
@click.option("--trust-region", type=choice(words.TrustRegion))
@click.option("--epsilon-max", type=float)
@click.option("--chosen", type=choice(words.Chosen))
@pairing_option
@set_option
@click.option("--resume", is_flag=True,
              help="Go on with the run in --output, its recipe and data.")  # fmt: skip
@json_option
def train(
    *, config: Path | None, output: Path, settings: tuple[str, ...], resume: bool, **options: Any
) -> None:
    """Train a policy against cached references.

    The references' weights are not read: their log-probs are. Reference 1 is the policy's initial
    model unless --policy names another.

    \b
    Example:
        mrpo train --loss mrpo --refs llama,mistral,qwen --output runs/mrpo
        mrpo train --config recipe.yaml --set learning_rate=5e-6 --output runs/slow
        mrpo train --resume --output runs/slow
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import load_project, pinned
    from mrpo_tools.runs.run import RECIPE, is_run, project_of

    project = load_project()
    if resume and is_run(output):
        project = project_of(output)
        config = config or output / RECIPE
    elif resume and config is None and options["loss"] is None and options["refs"] is None:
        _refuse_to_resume(output)
    recipe = _recipe(config, options, settings)
    references = {**project.references, **references_named(options["definitions"], project, {})}
    dataset, cache = dataset_of(project, options), Cache(options["cache"] or project.cache)
    if recipe.refs:
        cache.references()  # refuses a cache that is not there before anything is read
    source = read_groups(dataset)
    from mrpo_tools.progress import is_first_process

    _begin()
    from mrpo_tools.training.train import train as phase2

    result = phase2(
        recipe=recipe,
        groups=source.groups,
        cache=cache,
        references=references,
        output=output,
        dataset=pinned(dataset, source.revision),
        resume=resume,
    )
    if not is_first_process():
        return
    if options["as_json"]:
        print_json({"run": str(output), **result.metrics.as_json()})
        return
    _print(result, recipe.loss)


def _begin() -> None:
    """Quiet the libraries, before they are imported, and say which GPUs lie idle."""
    from mrpo_tools.progress import say
    from mrpo_tools.references.devices import idle_gpus, visible_gpus
    from mrpo_tools.references.loading import quiet_libraries

    quiet_libraries()
    gpus = visible_gpus()
    if idle := idle_gpus("train", gpus):
        say(f"{idle} (a step then takes {len(gpus)} times the groups)")


def _refuse_to_resume(output: Path) -> NoReturn:
    from mrpo_tools.errors import UsageError

    raise UsageError(f"{output} holds no run to go on with", "mrpo train --output RUN")


def _recipe(config: Path | None, options: dict[str, Any], settings: tuple[str, ...]) -> Recipe:
    """The recipe file with the options over it, then `--set`."""
    from mrpo_tools.config import Recipe, load_recipe, parse

    values = load_recipe(config) if config else {}
    values |= {key: options[key] for key in RECIPE_OPTIONS if options[key] is not None}
    if options["refs"] is not None:
        values["refs"] = [name for name in options["refs"].split(",") if name]
    values |= recipe_keys(settings)
    return parse(Recipe, values, str(config) if config else "recipe")


def _print(result: TrainResult, loss: str) -> None:
    """Where the run ended, and the next command."""
    metrics, last = result.metrics, result.metrics.last_log
    print_table(
        ("loss", "steps", "groups", "last loss", "accuracy", "margin", "seconds", "peak MB"),
        [
            (
                loss,
                metrics.steps,
                metrics.groups,
                last.get("loss"),
                last.get("rewards/accuracies"),
                last.get("rewards/margins"),
                round(metrics.train_seconds or 0.0, 1),
                round((metrics.peak_memory_bytes or 0) / 1e6),
            )
        ],
    )
    print(f"next: mrpo evaluate {result.path}")
