"""Phase 2: train a policy on groups, against the cached log-probs of its references."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback

from mrpo_tools.cache import Cache
from mrpo_tools.config import Dataset, Recipe, Reference
from mrpo_tools.errors import Preempted, UsageError
from mrpo_tools.groups import Group
from mrpo_tools.progress import is_first_process, say_once
from mrpo_tools.references.devices import (
    free_bytes,
    peak_memory_bytes,
    pick_device,
    reset_peak_memory,
    wait_for_everyone,
)
from mrpo_tools.references.resolved import renderer_of
from mrpo_tools.runs.checkpoints import last_whole
from mrpo_tools.runs.record import Metrics
from mrpo_tools.runs.run import (
    METRICS,
    Stage,
    resume_command,
    save_recipe,
    stage_of,
)
from mrpo_tools.scorer.scorer import ResponseScorer
from mrpo_tools.sources import COUNTS
from mrpo_tools.training.activations import activations_fit, recompute_activations
from mrpo_tools.training.arguments import trainer_words, training_arguments
from mrpo_tools.training.callbacks import (
    SealCheckpoints,
    StepSize,
    StopOnSignal,
    StopWithoutGain,
    show_progress,
)
from mrpo_tools.training.groups import TrainingGroups
from mrpo_tools.training.prepare import Prepared, prepare
from mrpo_tools.training.record import check_split, model_card, open_run, run_record
from mrpo_tools.training.resume import check_recipe, memory_errors_of
from mrpo_tools.training.saturation import tell_saturated
from mrpo_tools.training.step0 import check_step0
from mrpo_tools.training.step_size import check_goes_on, groups_a_step
from mrpo_tools.training.together import any_process
from mrpo_tools.training.trainer import GroupTrainer
from mrpo_tools.training.wrapping import (
    is_sharded,
    refuse_deepspeed,
    sharding_of,
    wrapped_scorer_of,
)

LogEntry = Mapping[str, float]
"""A line of the Trainer's log."""
DOUBTS = {**COUNTS, "unused_scores": "groups with scores that are not used, as others have none"}
"""What `DataReport.doubted_labels` counts, in words."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reports; `metrics.json` holds the same."""

    path: Path
    metrics: Metrics


def train(
    recipe: Recipe,
    groups: Sequence[Group],
    cache: Cache,
    references: Mapping[str, Reference],
    output: Path,
    dataset: Dataset | None = None,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train one policy and write its run.

    Args:
        recipe: everything that determines the run.
        groups: all of the data; the recipe's split is taken from it.
        cache: where the references' numbers are.
        references: by name, where the project knows them; weights of reference 1 only are read.
        output: the run's directory, created after everything else has been checked. A run that was
            stopped before its first checkpoint begins anew.
        dataset: where the groups came from, for the record.
        resume: go on from the last checkpoint in `output`; a finished run is left as it is.
        callbacks: of transformers' Trainer, beside the project's own.

    Raises:
        UsageError, CacheError: before anything is written.
        NonFiniteError: three steps in a row had no finite gradient.
        ResourceError: out of memory; names the command that goes on with less.
        Preempted: SIGTERM; a checkpoint is saved.
    """
    started = time.monotonic()
    check_split(recipe, dataset)
    trainer_words(recipe)  # refused before anything is read
    sharding_of(recipe)
    stage = stage_of(output)
    if stage not in (Stage.EMPTY, Stage.BEGUN):
        check_recipe(output, recipe, resume=resume)
    wait_for_everyone()
    if stage is Stage.FINISHED:
        say_once(f"{output} has finished already")
        return TrainResult(output, Metrics.read(output / METRICS))
    prepared = prepare(recipe, groups, cache, references)
    _tell(prepared)
    record = run_record(
        recipe=recipe, prepared=prepared, groups=groups, cache=cache,
        references=references, dataset=dataset,
    )  # fmt: skip
    open_run(output, stage, recipe, record)
    with memory_errors_of(recipe, output), _without_denormals():
        trainer, fitted = _fit(recipe, prepared, output, callbacks)
    metrics = Metrics(
        **prepared.report.model_dump(),
        **fitted.model_dump(exclude={"version"}),
        total_seconds=time.monotonic() - started,
    )
    _finish(output, metrics, model_card(recipe, prepared), trainer)
    return TrainResult(output, metrics)


def _finish(output: Path, metrics: Metrics, card: str, trainer: GroupTrainer) -> None:
    """Write what makes the run a finished one, and push it where the recipe says so."""
    if metrics.hardly_moved:
        say_once(f"warning: {metrics.hardly_moved}")
    if is_first_process():
        (output / "README.md").write_text(card, encoding="utf-8")
        metrics.write(output / METRICS)
    if trainer.args.push_to_hub:
        trainer.push_run()


def _tell(prepared: Prepared) -> None:
    """What the combination did and what is left out, on stderr."""
    report = prepared.report
    if len(prepared.stores) > 1:
        weights = ", ".join(
            f"{store.name} {weight:.2f}"
            for store, weight in zip(prepared.stores, report.mean_weights, strict=True)
        )
        say_once(
            f"references: mean weights {weights}; {report.clipped_fraction:.0%} of the "
            f"others' numbers clipped; {report.mean_distance_from_reference_1_nats:.3g} nats "
            "from reference 1 on average"
        )
    if prepared.score is not None:
        say_once(
            f"scores: those by {prepared.score} count; scores and labels of the data are not used"
        )
    if (held := report.held_out_score) is not None and held.agreement is not None:
        say_once(
            f"held out: {held.scorer} orders {held.agreement:.0%} of {held.pairs:,} pairs alike; "
            f"its mean is {held.better:.3g} for the better, {held.worse:.3g} for the worse"
        )
    tell_saturated(prepared.training)
    for doubt, count in report.doubted_labels.items():
        say_once(f"warning: trained on: {count:,} {DOUBTS[doubt]}")
    if report.prompts_in_two_splits:
        say_once(
            f"warning: {report.prompts_in_two_splits:,} prompts are trained on and stand in "
            "another split too: what is measured there has been seen"
        )
    for reason, count in report.skipped_groups.items():
        say_once(f"skipped {count:,} groups: {reason}")
    for reason, count in report.dropped_responses.items():
        hint = " (truncated: keep takes them)" if reason.startswith("truncated") else ""
        say_once(f"left out {count:,} responses: {reason.replace('_', ' ')}{hint}")


@contextlib.contextmanager
def _without_denormals() -> Iterator[None]:
    """Take tiny numbers for 0: the gradients of a saturated loss are denormal, which CPUs compute
    several times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _fit(
    recipe: Recipe, prepared: Prepared, output: Path, callbacks: Sequence[TrainerCallback]
) -> tuple[GroupTrainer, Metrics]:
    """Load the policy, check it against its cached reference, train, save."""
    device = pick_device()
    reset_peak_memory(device)
    policy = prepared.policy
    scorer = wrapped_scorer_of(policy, recipe, device)
    start = check_step0(scorer, prepared, device)
    recomputed = _recompute_activations(recipe, scorer, prepared.training, device)
    with StopOnSignal() as stop:
        trainer = GroupTrainer(
            scorer,
            prepared.training,
            training_arguments(recipe, output, policy.products),
            prepared.held_out,
            batch_tokens=recipe.batch_tokens,
            stop=stop,
            callbacks=[*_stops_early(recipe), *callbacks],
            processing_class=renderer_of(policy).tokenizer,
        )
        show_progress(trainer, recipe.eval_split)
        _run(trainer, output, recipe)
        if stop.received:
            raise Preempted(
                f"stopped by a signal after step {trainer.state.global_step}; checkpoint saved",
                f"go on with: {resume_command(output)}",
            )
    _save(trainer, output)
    history = trainer.state.log_history
    return trainer, Metrics(
        steps=trainer.state.global_step,
        peak_memory_bytes=peak_memory_bytes(device),
        step0_difference_nats_per_token=start.difference,
        moved_nats_per_token=start.moved(scorer, device),
        gradient_checkpointing=recomputed,
        train_loss=_mean_loss(history),
        train_seconds=trainer.clock.seconds,
        last_log=_last(history, "loss"),
        last_evaluation=_last(history, "eval_loss"),
    )


def _stops_early(recipe: Recipe) -> list[TrainerCallback]:
    patience = recipe.early_stopping_patience
    return [] if patience is None else [StopWithoutGain(patience)]


def _save(trainer: GroupTrainer, output: Path) -> None:
    """The trained policy and the log."""
    trainer.save_model(str(output), _internal_call=True)  # what is pushed comes last
    trainer.forget_closing_entry()
    trainer.save_state()


def _recompute_activations(
    recipe: Recipe, scorer: ResponseScorer, groups: TrainingGroups, device: torch.device
) -> bool:
    """Activation checkpointing: as the recipe says, or where activations would not fit."""
    wanted = recipe.gradient_checkpointing
    if wanted == "auto" and is_sharded(scorer):
        wanted = True
    elif wanted == "auto":
        micro_batch = recipe.per_device_train_batch_size
        rows = groups.trees(groups.sample(largest=micro_batch))
        free = free_bytes(device)
        too_few = not activations_fit(scorer, rows, micro_batch, free, recipe.trainer)
        wanted = any_process(torch.tensor(too_few, device=device))
    if wanted:
        recompute_activations(scorer)
    return wanted


def _run(trainer: GroupTrainer, output: Path, recipe: Recipe) -> None:
    """Train from the last whole checkpoint, if there is one."""
    refuse_deepspeed(trainer)
    trainer.add_callback(StepSize(groups_a_step(trainer.args)))
    trainer.add_callback(SealCheckpoints(recipe.save_total_limit))
    checkpoint = last_whole(output)
    if checkpoint is None:
        trainer.train()
        return
    check_goes_on(checkpoint, trainer.args, deepspeed=trainer.is_deepspeed_enabled)
    if is_first_process():
        save_recipe(output, recipe)  # what fits into memory now
    with _nothing_but_tensors(checkpoint):
        if trainer.restore_finished(str(checkpoint)):
            return
        trainer.args.eval_on_start = False
        trainer.train(resume_from_checkpoint=str(checkpoint))


@contextlib.contextmanager
def _nothing_but_tensors(checkpoint: Path) -> Iterator[None]:
    """A checkpoint's files are loaded as tensors and plain values; what else they hold is refused
    by their name, and has not run."""
    try:
        yield
    except pickle.UnpicklingError:
        planted = [path.name for path in sorted(checkpoint.glob("*.pt*")) if not _is_plain(path)]
        raise UsageError(
            f"{checkpoint} cannot be loaded: more than tensors and plain values is in "
            f"{', '.join(planted)}",
            f"mrpo did not write it so; remove {checkpoint} to go on from the one before",
        ) from None


def _is_plain(path: Path) -> bool:
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _last(history: Sequence[LogEntry], key: str) -> dict[str, int | float | None]:
    """The last log entry that has a key; empty where none has."""
    return dict(next((entry for entry in reversed(history) if key in entry), {}))


def _mean_loss(history: Sequence[LogEntry]) -> float | None:
    """Over all steps; each log entry is the mean since the one before."""
    total, before = 0.0, 0.0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total / before if before else None
