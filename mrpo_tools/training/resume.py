"""A run that goes on: what its recipe may say anew, and what to try where memory ran out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mrpo_tools.config import Recipe
from mrpo_tools.errors import UsageError
from mrpo_tools.references.devices import memory_errors
from mrpo_tools.runs.record import determining
from mrpo_tools.runs.run import read_recipe, resume_command


def check_recipe(output: Path, recipe: Recipe, *, resume: bool) -> None:
    """Refuse to overwrite a run, or to go on with another recipe.

    Args:
        output: the run's directory, which holds a run.
        recipe: what it would go on with.
        resume: it is meant to go on.

    Raises:
        UsageError: it is not, or keys differ that would make it another run.
    """
    if not resume:
        raise UsageError(
            f"{output} already holds a run",
            f"go on with: {resume_command(output)}; or choose another --output",
        )
    before, now = (determining(each.model_dump()) for each in (read_recipe(output), recipe))
    differing = [
        f"{key} was {before[key]!r}, is now {now[key]!r}"
        for key in before
        if before[key] != now[key]
    ]
    if differing:
        raise UsageError(
            f"{output} holds a run of another recipe: {'; '.join(differing)}",
            f"go on as it was: {resume_command(output)}",
        )


def groups_a_step(recipe: Recipe) -> int:
    """Groups of an optimizer step in each process."""
    return recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps


@contextlib.contextmanager
def memory_errors_of(recipe: Recipe, output: Path) -> Iterator[None]:
    """Turn running out of memory into the command that goes on with less of it.

    Raises:
        ResourceError: in place of any error that means it.
    """
    with memory_errors("training", _less_memory(recipe, output)):
        yield


def _less_memory(recipe: Recipe, output: Path) -> str:
    """The command that makes the same steps in less memory, from the last checkpoint on."""
    command, ways = resume_command(output), []
    batch, parts = recipe.per_device_train_batch_size, _parts(recipe.per_device_train_batch_size)
    if batch > 1:
        accumulation = recipe.gradient_accumulation_steps * parts
        ways.append(
            f"go on with the same groups a step, in smaller parts: {command} "
            f"--per-device-train-batch-size {batch // parts} "
            f"--gradient-accumulation-steps {accumulation}"
        )
    if recipe.gradient_checkpointing is not True:
        ways.append(
            f"go on in less memory and more time: {command} --set gradient_checkpointing=true"
        )
    beyond = "quantization: nf4, a shorter max_length, or more devices (docs/training.md)"
    return (
        "; or ".join(ways) if ways else f"nothing smaller makes the same steps; a new run: {beyond}"
    )


def _parts(batch: int) -> int:
    """Into how many a micro-batch is split: two where it can be, else its smallest divisor."""
    return next((parts for parts in range(2, batch + 1) if batch % parts == 0), 1)
