"""`mrpo train`: phase 2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools import words
from mrpo_tools.cli.completion import recipes, references
from mrpo_tools.cli.options import (
    cache_option,
    choice,
    dataset_of,
    dataset_options,
    json_option,
    print_json,
    print_table,
    read_groups,
    recipe_keys,
    references_named,
    rounded_up,
    set_option,
)
from mrpo_tools.cli.recipe_options import KEYS, RecipeCommand, given

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import Dataset, Project, Recipe, Reference
    from mrpo_tools.groups import Group
    from mrpo_tools.sources import Source
    from mrpo_tools.training.estimate import TrainingEstimate
    from mrpo_tools.training.train import TrainResult

DATA = (
    "dataset", "data_adapter", "mapping", "score", "test_size", "split_seed", "limit", "skip_bad",
)  # fmt: skip
SECTIONS = {
    "What is optimised": ("loss", "refs", "definitions", *KEYS["What is optimised"][1:]),
    **{name: keys for name, keys in KEYS.items() if name != "What is optimised"},
    "Every other key": ("config", "settings"),
    "Data and cache": (*DATA, "cache"),
    "Output": ("output", "resume", "as_json"),
    "Before it is run": ("dry_run", "processes", "wrapping"),
}
"""Of the help: options by heading."""


@click.command(cls=RecipeCommand, sections=SECTIONS)
@click.option("--refs", metavar="A,B,…", shell_complete=references,
              help="Cached references, reference 1 first; NAME=MODEL says where one is.  "
              "[default: the project's]")  # fmt: skip
@click.option("--ref", "definitions", multiple=True, metavar="NAME=MODEL",
              help="Where a reference's model is, outside a project.")  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), metavar="RECIPE",
              shell_complete=recipes,
              help="A recipe (YAML), or one that comes with mrpo: mrpo, dpo, mpo.")  # fmt: skip
@set_option
@dataset_options
@cache_option
@click.option("--output", type=click.Path(path_type=Path), metavar="RUN",
              help="The run's directory.")  # fmt: skip
@click.option("--resume", is_flag=True,
              help="Go on with the run in --output, its recipe and data.")  # fmt: skip
@click.option("--dry-run", is_flag=True,
              help="Say memory, steps and time; load no weights, write nothing.")  # fmt: skip
@click.option("--processes", type=click.IntRange(min=1), metavar="N",
              help="With --dry-run: on so many devices.  [default: as it was started]")  # fmt: skip
@click.option("--wrapping", type=choice(words.Wrapping),
              help="With --dry-run: how the policy is spread over them.  [default: as accelerate "
              "launch says, or ddp]")  # fmt: skip
@json_option
def train(
    *,
    config: Path | None,
    output: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    **options: Any,
) -> None:
    """Train a policy against cached references.

    The references' weights are not read: their log-probs are. Reference 1 is the policy's initial
    model unless --policy names another.

    A key that has an option here is the same key in a recipe, and any key can be --set. An option
    beats --set, --set beats the recipe of --config, and that beats the defaults.

    \b
    Example:
        mrpo train --loss mrpo --refs llama,mistral,qwen --output runs/mrpo
        mrpo train --config recipe.yaml --learning-rate 5e-6 --output runs/slow
        mrpo train --loss mrpo --refs llama,mistral,qwen --dry-run
        mrpo train --resume --output runs/slow
    """
    from mrpo_tools.cache import Cache
    from mrpo_tools.config import pinned

    _check_options(output, options, resume=resume)
    project, config = _project(config, output, options, resume=resume)
    names, placed = _names(options["refs"])
    recipe = _with_references(_recipe(config, options, settings, names), project)
    placed = [*options["definitions"], *placed]
    models = {**project.references, **references_named(placed, project, {})}
    dataset = _drawn(dataset_of(project, options), recipe, options["split_seed"])
    cache = Cache(options["cache"] or project.cache)
    source = _read(dataset, recipe, cache)
    _begin()
    if output is None or options["dry_run"]:
        estimate = _estimate(recipe, source.groups, cache, models, options)
        _print_estimate(estimate, as_json=options["as_json"])
        return
    from mrpo_tools.training.train import train as phase2

    result = phase2(
        recipe=recipe,
        groups=source.groups,
        cache=cache,
        references=models,
        output=output,
        dataset=pinned(dataset, source.revision),
        resume=resume,
    )
    _print(result, recipe.loss, as_json=options["as_json"])


def _check_options(output: Path | None, options: dict[str, Any], *, resume: bool) -> None:
    if output is None and (resume or not options["dry_run"]):
        raise click.MissingParameter(param_hint="'--output'", param_type="option")
    for name in ("processes", "wrapping"):
        if options[name] is not None and not options["dry_run"]:
            raise click.UsageError(
                f"--{name} goes with --dry-run; torchrun or accelerate launch starts processes"
            )


def _drawn(dataset: Dataset, recipe: Recipe, split_seed: int | None) -> Dataset:
    """The data set with the splits that the recipe draws."""
    from mrpo_tools.config import drawn_as
    from mrpo_tools.errors import UsageError

    if recipe.split_seed is not None and split_seed not in (None, recipe.split_seed):
        raise UsageError(
            f"--split-seed {split_seed}, but the recipe's split_seed is {recipe.split_seed}",
            "leave one of them out",
        )
    return drawn_as(dataset, recipe)


def _read(dataset: Dataset, recipe: Recipe, cache: Cache) -> Source:
    """The data, with splits that were drawn where the recipe draws them."""
    from mrpo_tools.sources import check_drawn

    if recipe.refs and cache.references():  # a name that is not there, before anything is read
        for name in recipe.refs:
            cache.require(name)
    source = read_groups(dataset)
    check_drawn(source, recipe)
    return source


def _begin() -> None:
    """Quiet the libraries, before they are imported, and say which GPUs lie idle."""
    from mrpo_tools.progress import say
    from mrpo_tools.references.devices import idle_gpus, visible_gpus
    from mrpo_tools.references.loading import quiet_libraries

    quiet_libraries()
    gpus = visible_gpus()
    if idle := idle_gpus("train", gpus):
        say(f"{idle} (a step then takes {len(gpus)} times the groups)")


def _project(
    config: Path | None, output: Path | None, options: dict[str, Any], *, resume: bool
) -> tuple[Project, Path | None]:
    """The project and the recipe's file; of the run in `output` where that goes on."""
    from mrpo_tools.config import load_project
    from mrpo_tools.errors import UsageError
    from mrpo_tools.runs.run import RECIPE, is_run, project_of

    if resume and output and is_run(output):
        return project_of(output), config or output / RECIPE
    if resume and config is None and options["loss"] is None and options["refs"] is None:
        raise UsageError(f"{output} holds no run to go on with", "mrpo train --output RUN")
    return load_project(), config


def _estimate(
    recipe: Recipe,
    groups: list[Group],
    cache: Cache,
    references: dict[str, Reference],
    options: dict[str, Any],
) -> TrainingEstimate:
    from mrpo_tools.training.device_memory import layout_of
    from mrpo_tools.training.estimate import estimate_training
    from mrpo_tools.training.prepare import prepare

    layout = layout_of(recipe.trainer, options["processes"], options["wrapping"])
    return estimate_training(recipe, prepare(recipe, groups, cache, references), layout=layout)


def _print_estimate(estimate: TrainingEstimate, *, as_json: bool) -> None:
    """What it would take; memory with every activation kept, and with most of them recomputed."""
    from dataclasses import asdict

    from mrpo_tools.progress import is_first_process

    if not is_first_process():
        return
    if as_json:
        print_json({**asdict(estimate), "layout": estimate.layout._asdict()})
        return
    print_table(
        ("groups", "steps", "tokens a step", "largest micro-batch", "disk MB", "seconds"),
        [
            (
                estimate.groups,
                estimate.steps,
                estimate.step_tokens,
                estimate.largest_tokens,
                rounded_up(estimate.disk_bytes / 1e6),
                rounded_up(estimate.seconds),
            )
        ],
    )
    both = {"false": estimate.plain, "true": estimate.checkpointed}
    print_table(
        ("checkpointing", *PARTS.values()),
        [
            (name, *(rounded_up(getattr(step, part) / 1e6) for part in PARTS))
            for name, step in both.items()
        ],
    )
    _print_notes(estimate)


PARTS = {
    "weights_bytes": "parameters", "gradient_bytes": "gradients", "optimizer_bytes": "optimizer",
    "gathered_bytes": "gathered", "kept_bytes": "activations", "logits_bytes": "logits",
    "peak_bytes": "peak MB",
}  # fmt: skip
"""Columns of the dry run's memory: of a device, in a step."""


def _print_notes(estimate: TrainingEstimate) -> None:
    """What the figures are of, and what is decided by them."""
    layout = estimate.layout
    spread = f"each of {layout.processes} under {layout.wrapping}" if layout.wrapping else "one"
    paged = ", whose states may be paged out" if estimate.paged else ""
    print(f"memory is of a device ({spread}), of tensors, in the largest micro-batch that the data")
    print(f"can make; the optimizer is {estimate.optimizer}{paged}")
    chosen = "true" if estimate.gradient_checkpointing else "false"
    print(
        f"gradient_checkpointing: {chosen} here, where {estimate.free_bytes / 1e6:,.0f} MB are free"
    )
    for reason in estimate.rough:
        print(f"about, by {reason}")


def _names(refs: str | None) -> tuple[list[str] | None, list[str]]:
    """`a,b=MODEL` -> the names, and those words that say where a model is."""
    if refs is None:
        return None, []
    words = [word for word in refs.split(",") if word]
    return [word.partition("=")[0] for word in words], [word for word in words if "=" in word]


def _with_references(recipe: Recipe, project: Project) -> Recipe:
    """The recipe; where it names no reference and its loss needs one, with the project's: the first
    for a loss of one reference, all of them for one of several."""
    from mrpo_tools.methods.method import find_loss, objective_of
    from mrpo_tools.methods.presets import PRESETS
    from mrpo_tools.progress import say_once

    loss = find_loss(recipe.loss)
    if recipe.refs or not project.references or objective_of(loss).references == "none":
        return recipe
    several = loss in PRESETS or objective_of(loss).references == "several"
    names = list(project.references)[: None if several else 1]
    say_once(f"references: {', '.join(names)} (the project's; --refs takes others)")
    return recipe.model_copy(update={"refs": names})


def _recipe(
    config: Path | None,
    options: dict[str, Any],
    settings: tuple[str, ...],
    refs: list[str] | None,
) -> Recipe:
    """The recipe file with `--set` over it, then the options."""
    from mrpo_tools.config import Recipe, load_recipe, parse

    values = load_recipe(config) if config else {}
    values |= recipe_keys(settings) | given(options)
    if refs is not None:
        values["refs"] = refs
    return parse(Recipe, values, str(config) if config else "recipe")


def _print(result: TrainResult, loss: str, *, as_json: bool) -> None:
    """Where the run ended, and the next command; of several processes the first one says it."""
    from mrpo_tools.progress import is_first_process

    if not is_first_process():
        return
    if as_json:
        print_json({"run": str(result.path), **result.metrics.as_json()})
        return
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
                rounded_up(metrics.train_seconds or 0.0),
                round((metrics.peak_memory_bytes or 0) / 1e6),
            )
        ],
    )
    print(f"next: mrpo evaluate {result.path}")
