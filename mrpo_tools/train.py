"""Phase 2: train a policy on groups, against the cached log-probs of its references."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrpo_tools.batching import Row
from mrpo_tools.cache import Cache, ReferenceStore, library_versions
from mrpo_tools.config import Dataset, Recipe, Reference
from mrpo_tools.errors import CacheStale, Preempted, ResourceError, UsageError
from mrpo_tools.groups import Group
from mrpo_tools.identity import identify, locate
from mrpo_tools.maths import contrasts, objectives
from mrpo_tools.methods import Method, resolve_method
from mrpo_tools.models import (
    add_lora,
    load_model,
    peak_memory_bytes,
    pick_device,
    reset_peak_memory,
)
from mrpo_tools.progress import bar, say
from mrpo_tools.reference_logps import (
    Combination,
    Combined,
    GroupTensors,
    combine,
    look_up,
    reference_accuracies,
)
from mrpo_tools.run import METRICS, RUN, save_json, save_recipe
from mrpo_tools.scorer import ResponseScorer, score, self_check
from mrpo_tools.scoring import Subject, check_current, renderer_of, resolve
from mrpo_tools.tokens import EncodedGroup

STEP0_ROWS = 32
STEP0_TOLERANCE = 1e-5
"""nats per token between a float32 policy at step 0 and its cached reference."""
HASHED_ROWS = 256


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reports; `metrics.json` holds the same."""

    path: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """Everything the trainer needs, before any weights are loaded.

    Attributes:
        method: the resolved `--loss`.
        policy: the policy's files and identity.
        stores: of the references, reference 1 first.
        groups: the usable groups.
        encoded: their ids under the policy's tokenizer.
        tensors: their cached numbers; the mask leaves out what does not take part.
        combined: reference log-probs and weights.
        report: what the combination did, and what was skipped.
    """

    method: Method
    policy: Subject
    stores: list[ReferenceStore]
    groups: list[Group]
    encoded: list[EncodedGroup]
    tensors: GroupTensors
    combined: Combined
    report: dict[str, Any]


def train(
    recipe: Recipe,
    groups: Sequence[Group],
    cache: Cache,
    references: Mapping[str, Reference],
    output: Path,
    dataset: Dataset | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train one policy and write its run.

    Args:
        recipe: everything that determines the run.
        groups: all of the data; the recipe's split is taken from it.
        cache: where the references' numbers are.
        references: by name, where the project knows them; weights of reference 1 only are read.
        output: the run's directory, created after everything else has been checked.
        dataset: where the groups came from, for the record.
        resume: go on from the last checkpoint in `output`.

    Raises:
        UsageError, CacheError: before anything is written.
        NonFiniteError: three steps in a row had no finite gradient.
        Preempted: SIGTERM; a checkpoint is saved.
    """
    started = time.monotonic()
    _check_output(output, recipe, resume)
    prepared = prepare(recipe, groups, cache, references)
    _tell(prepared)
    record = _record(prepared, cache, dataset)
    output.mkdir(parents=True, exist_ok=True)
    save_recipe(output, recipe)
    save_json(output / RUN, record)
    try:
        metrics = _fit(recipe, prepared, output, resume)
    except (torch.OutOfMemoryError, MemoryError):
        raise ResourceError(
            "out of memory while training",
            "lower per_device_train_batch_size, set gradient_checkpointing: true or "
            "quantization: nf4",
        ) from None
    metrics |= {"total_seconds": time.monotonic() - started, **prepared.report}
    save_json(output / METRICS, metrics)
    (output / "README.md").write_text(_model_card(recipe, prepared), encoding="utf-8")
    return TrainResult(output, metrics)


def _tell(prepared: Prepared) -> None:
    """What the combination did and what is left out, on stderr."""
    report = prepared.report
    if len(prepared.stores) > 1:
        weights = ", ".join(
            f"{store.name} {weight:.2f}"
            for store, weight in zip(prepared.stores, report["mean_weights"], strict=True)
        )
        say(
            f"references: mean weights {weights}; {report['clipped_fraction']:.0%} of the others' "
            f"numbers clipped; {report['mean_distance_from_reference_1_nats']:.3g} nats from "
            "reference 1 on average"
        )
    for reason, count in report["skipped_groups"].items():
        say(f"skipped {count:,} groups: {reason}")
    for reason, count in report["dropped_responses"].items():
        say(f"left out {count:,} responses: {reason.replace('_', ' ')}")


def prepare(
    recipe: Recipe,
    groups: Sequence[Group],
    cache: Cache,
    references: Mapping[str, Reference],
) -> Prepared:
    """Look up, check, encode and combine; nothing is written and no weights are loaded."""
    chosen = [group for group in groups if recipe.split in ("all", group.split)]
    if not chosen:
        splits = ", ".join(sorted({str(group.split) for group in groups}))
        raise UsageError(f"no group is in split {recipe.split!r} (there are: {splits})")
    method = resolve_method(
        recipe,
        len(recipe.refs),
        all(group.has_scores for group in chosen),
        all(group.has_labels for group in chosen),
    )
    stores = [cache.find(name) for name in recipe.refs]
    _check_stores(stores, references)
    if method.combination.weights == "accuracy":
        held_out = [group for group in groups if group.split not in (recipe.split, None)]
        method = method.weighted_by(_held_out_accuracies(cache, stores, held_out, recipe.split))
    policy = policy_subject(recipe, stores, references)
    tensors = look_up(cache, stores, chosen)
    encoded = _encode(policy, chosen)
    _check_token_hashes(policy, stores, encoded, tensors)
    return _combine(method, policy, stores, chosen, encoded, tensors)


def _held_out_accuracies(
    cache: Cache, stores: Sequence[ReferenceStore], groups: Sequence[Group], split: str
) -> list[float]:
    """Each reference's own preference accuracy on groups that training does not see."""
    if split == "all" or not groups:
        raise UsageError(
            "weights accuracy needs groups outside the training split",
            "hold some out with --test-size 0.1, or use --weights confidence",
        )
    return reference_accuracies(look_up(cache, stores, groups))["summed"]


def policy_subject(
    recipe: Recipe, stores: Sequence[ReferenceStore], references: Mapping[str, Reference]
) -> Subject:
    """The policy before training: reference 1 unless the recipe names another model."""
    words = recipe.policy
    if words is not None:
        reference = references.get(words) or Reference(model=words)
        name = words if words in references else "policy"
    elif stores:
        name = stores[0].name
        reference = references.get(name) or recorded_reference(stores[0])
        if reference.dtype is None:
            cached_dtype = stores[0].identity.fields["dtype"]
            reference = reference.model_copy(update={"dtype": cached_dtype})
    else:
        raise UsageError(f"{recipe.loss} has no reference 1 to start from", "--policy MODEL")
    changes: dict[str, Any] = {}
    for word in ("quantization", "dtype", "max_length"):
        if getattr(recipe, word) is not None:
            changes[word] = getattr(recipe, word)
    return resolve(name, reference.model_copy(update=changes))


def recorded_reference(store: ReferenceStore) -> Reference:
    """The words under which a reference was scored, from its latest part."""
    recorded = [one["reference"] for one in store.recorded() if "reference" in one]
    if not recorded:
        raise UsageError(
            f"the cache does not say where the model of reference {store.name!r} is",
            f"--ref {store.name}=PATH_OR_HUB_ID",
        )
    return Reference.model_validate(recorded[-1])


def _check_output(output: Path, recipe: Recipe, resume: bool) -> None:
    if output.is_file():
        raise UsageError(f"{output} is a file; a run needs a directory")
    if not (output / RUN).exists():
        if output.is_dir() and any(output.iterdir()):
            raise UsageError(f"{output} is not empty and holds no run", "choose another --output")
        return
    if not resume:
        raise UsageError(
            f"{output} already holds a run", "go on with --resume, or choose another --output"
        )
    from mrpo_tools.config import parse, read_yaml

    before = parse(Recipe, read_yaml(output / "recipe.yaml"), str(output / "recipe.yaml"))
    differing = [
        f"{key} was {getattr(before, key)!r}, is now {getattr(recipe, key)!r}"
        for key in Recipe.model_fields
        if getattr(before, key) != getattr(recipe, key)
    ]
    if differing:
        raise UsageError(
            f"{output} holds a run of another recipe: {'; '.join(differing)}",
            f"go on as it was: mrpo train --config {output / 'recipe.yaml'} "
            f"--output {output} --resume",
        )


def _check_stores(stores: Sequence[ReferenceStore], references: Mapping[str, Reference]) -> None:
    """Compare identities with the files at hand; other references need no files here."""
    names = [store.name for store in stores]
    if len(set(names)) < len(names):
        raise UsageError("a reference is named twice", "--refs takes each name once")
    for store in stores:
        reference = references.get(store.name)
        if reference is not None and Path(reference.model).expanduser().is_dir():
            files = locate(reference)
            dtype = reference.dtype or store.identity.fields["dtype"]
            identity = identify(reference, files, dtype)
            check_current(store, Subject(store.name, reference, files, dtype, identity))


def _encode(policy: Subject, groups: Sequence[Group]) -> list[EncodedGroup]:
    renderer = renderer_of(policy)
    encoded = []
    with bar("tokenising for the policy", len(groups), "groups") as advance:
        for group in groups:
            encoded.append(renderer.encode(group))
            advance()
    return encoded


def _check_token_hashes(
    policy: Subject,
    stores: Sequence[ReferenceStore],
    encoded: Sequence[EncodedGroup],
    tensors: GroupTensors,
) -> None:
    """The policy's ids are the ids its cached reference was scored on."""
    if not stores or not _same_text(policy, stores[0]):
        return
    step = max(1, len(encoded) // HASHED_ROWS)
    for g in range(0, len(encoded), step):
        for n, response in enumerate(encoded[g].responses):
            if response.token_hash != tensors.token_hashes[g][n][0]:
                raise CacheStale(
                    f"the tokens of reference {stores[0].name!r} differ from those it was scored "
                    "on, though its files are the same: the tokenizer library has changed",
                    f"score it again in a new cache: mrpo precompute --ref {stores[0].name} "
                    "--cache DIR",
                )


def _same_text(policy: Subject, store: ReferenceStore) -> bool:
    """Whether policy and reference render and tokenise alike."""
    fields = ("tokenizer", "chat_template", "system", "added_tokens", "max_length", "overlong")
    mine, theirs = policy.identity.fields, store.identity.fields
    return all(mine[field] == theirs[field] for field in fields)


def _combine(
    method: Method,
    policy: Subject,
    stores: list[ReferenceStore],
    groups: Sequence[Group],
    encoded: Sequence[EncodedGroup],
    tensors: GroupTensors,
) -> Prepared:
    overlong = _overlong(encoded, tensors.mask.shape[1])
    dropped = tensors.dropped + Counter(overlong_for_policy=int((tensors.mask & overlong).sum()))
    tensors = replace(tensors, mask=tensors.mask & ~overlong, dropped=dropped)
    hyper = method.complete_hyper
    sides = contrasts.choose_sides(
        tensors.scores, tensors.chosen, tensors.mask, hyper["partition"], hyper["top_bottom"]
    )
    combined = combine(tensors, method.combination, sides.mask)
    usable = _usable(method, tensors, combined)
    keep = [g for g in range(len(groups)) if usable[g]]
    report = {
        "groups": len(keep),
        "skipped_groups": _skipped(method, usable),
        "dropped_responses": {key: n for key, n in dropped.items() if n},
        "reference_accuracies": reference_accuracies(tensors),
        **combined.report,
    }
    if not keep:
        reason = objectives.REASONS[method.row.usable]
        raise UsageError(
            f"no group can be used by {method.name}: {reason}, in all {len(groups):,} groups",
            "mrpo losses lists what each objective needs",
        )
    return Prepared(
        method,
        policy,
        stores,
        [groups[g] for g in keep],
        [encoded[g] for g in keep],
        _take(replace(tensors, mask=sides.mask), keep),
        Combined(combined.logps[keep], combined.weights[keep], combined.report),
        report,
    )


def _overlong(encoded: Sequence[EncodedGroup], width: int) -> Tensor:
    """[G, N] responses that do not fit the policy."""
    overlong = torch.zeros(len(encoded), width, dtype=torch.bool)
    for g, group in enumerate(encoded):
        for n, response in enumerate(group.responses):
            overlong[g, n] = response.overlong
    return overlong


def _usable(method: Method, tensors: GroupTensors, combined: Combined) -> Tensor:
    zeros = torch.zeros(tensors.mask.shape, dtype=torch.float64)
    batch = objectives.Batch(
        zeros,
        combined.logps if method.row.reference else None,
        zeros,
        tensors.scores,
        tensors.chosen,
        tensors.mask,
        weights=combined.weights if combined.logps.dim() == 3 else None,
        seeds=torch.zeros(len(zeros), dtype=torch.int64),
    )
    return objectives.usable(method.objective, batch, **method.hyper)


def _skipped(method: Method, usable: Tensor) -> dict[str, int]:
    count = int((~usable).sum())
    return {objectives.REASONS[method.row.usable]: count} if count else {}


def _take(tensors: GroupTensors, keep: list[int]) -> GroupTensors:
    return replace(
        tensors,
        logps=tensors.logps[keep],
        mask=tensors.mask[keep],
        scores=None if tensors.scores is None else tensors.scores[keep],
        chosen=None if tensors.chosen is None else tensors.chosen[keep],
        num_tokens=tensors.num_tokens[keep],
        num_bytes=tensors.num_bytes[keep],
        token_hashes=[tensors.token_hashes[g] for g in keep],
    )


def _fit(recipe: Recipe, prepared: Prepared, output: Path, resume: bool) -> dict[str, Any]:
    """Load the policy, check it against its cached reference, train, save."""
    from mrpo_tools.trainer import GroupTrainer, StopOnSignal

    device = pick_device()
    reset_peak_memory(device)
    model = load_model(
        prepared.policy.files, prepared.policy.reference, prepared.policy.dtype, device
    )
    if recipe.finetuning == "lora":
        targets = recipe.lora_target_modules
        model = add_lora(model, recipe.lora_r, recipe.lora_alpha, targets, recipe.seed)
    elif recipe.quantization is not None:
        raise UsageError("finetuning full cannot train 4-bit weights", "use finetuning: lora")
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    scorer = ResponseScorer(model)
    groups = training_groups(prepared)
    difference = check_step0(scorer, prepared, device)
    with StopOnSignal() as stop:
        trainer = GroupTrainer(
            scorer,
            groups,
            prepared.method.objective,
            prepared.method.hyper,
            _arguments(recipe, output),
            [store.name for store in prepared.stores],
            _clipped(prepared),
            callbacks=[stop],
            processing_class=renderer_of(prepared.policy).tokenizer,
        )
        _quiet(trainer)
        checkpoint = _last_checkpoint(output) if resume else None
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
        if stop.received:
            raise Preempted(
                f"stopped by a signal after step {trainer.state.global_step}; checkpoint saved",
                f"go on with: mrpo train --config {output / 'recipe.yaml'} "
                f"--output {output} --resume",
            )
    trainer.save_model(str(output))
    trainer.save_state()
    return {
        "train_loss": outcome.training_loss,
        "steps": trainer.state.global_step,
        "train_seconds": outcome.metrics["train_runtime"],
        "peak_memory_bytes": peak_memory_bytes(device),
        "step0_difference_nats_per_token": difference,
        "last_log": _last_log(trainer.state.log_history),
    }


def training_groups(prepared: Prepared) -> Any:
    """The groups as the trainer takes them."""
    from mrpo_tools.trainer import TrainingGroups

    return TrainingGroups(
        [group.group_id for group in prepared.groups],
        prepared.encoded,
        prepared.combined.logps if prepared.method.row.reference else None,
        prepared.combined.weights,
        prepared.tensors.scores,
        prepared.tensors.chosen,
        prepared.tensors.mask,
    )


def check_step0(scorer: ResponseScorer, prepared: Prepared, device: torch.device) -> float | None:
    """The live policy against its cached reference, before the first step.

    Returns:
        The largest difference in nats per token, or None when the policy is another model.

    Raises:
        CacheStale: equal identities, and yet other numbers.
    """
    sample = [
        (g, n)
        for g in range(min(len(prepared.groups), STEP0_ROWS))
        for n in range(len(prepared.encoded[g].responses))
        if prepared.tensors.mask[g, n]
    ][:STEP0_ROWS]
    rows = [
        Row(prepared.encoded[g].prompt_ids, [prepared.encoded[g].responses[n].ids], [0])
        for g, n in sample
    ]
    self_check(scorer, rows[:4], device)
    if not prepared.stores:
        return None
    first = prepared.stores[0]
    differing = {field for field, _, _ in prepared.policy.identity.differences(first.identity)}
    names = ", ".join(sorted(differing))
    if {"weights", "tokenizer", "chat_template", "adapter"} & differing:
        say(
            f"warning: the policy is not reference 1 ({first.name}): they differ in {names}; "
            "log-ratios do not start at 0"
        )
        return None
    difference = max(
        abs(score(scorer, [row], device)[0] - float(prepared.tensors.logps[g, n, 0]))
        / max(len(row.responses[0]), 1)
        for (g, n), row in zip(sample, rows, strict=True)
    )
    _judge_step0(difference, differing & {"quantization", "dtype"}, prepared)
    return difference


def _judge_step0(difference: float, differing: set[str], prepared: Prepared) -> None:
    """Warn of a difference that the arithmetic explains; refuse one that nothing explains."""
    first = prepared.stores[0].name
    if differing:
        say(
            f"warning: the policy's {', '.join(sorted(differing))} differ from cached reference "
            f"1's; they are {difference:.3g} nats per token apart at step 0. To start at 0, score "
            "the reference with the policy's quantization and dtype"
        )
    elif difference > _step0_tolerance(prepared):
        raise CacheStale(
            f"the policy at step 0 differs from cached reference {first!r} by "
            f"{difference:.3g} nats per token, though their identities are equal",
            "mrpo precompute again in a new cache on this machine, and compare library versions",
        )


def _step0_tolerance(prepared: Prepared) -> float:
    if prepared.policy.dtype == "float32" and not prepared.policy.reference.quantization:
        return STEP0_TOLERANCE
    noise = max((one.get("noise", 0.0) for one in prepared.stores[0].recorded()), default=0.0)
    return max(STEP0_TOLERANCE, 4 * float(noise))


def _arguments(recipe: Recipe, output: Path) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(output),
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_ratio,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=recipe.logging_steps,
        save_steps=recipe.save_steps,
        save_total_limit=recipe.save_total_limit,
        logging_first_step=True,
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )


def _quiet(trainer: Any) -> None:
    """Progress in the project's own way: one bar on a terminal, log lines on stderr elsewhere."""
    from transformers.trainer_callback import PrinterCallback

    from mrpo_tools.trainer import ProgressLog

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLog())


def _clipped(prepared: Prepared) -> Tensor | None:
    """[G, N, K − 1] which cached numbers the trust region moved; None without references."""
    if not prepared.stores:
        return None
    how: Combination = replace(prepared.method.combination, combine="separate", weights="uniform")
    logps = prepared.tensors.logps
    moved = combine(prepared.tensors, how).logps
    return moved[..., 1:] != logps[..., 1:]


def _last_checkpoint(output: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    found: str | None = get_last_checkpoint(str(output))
    return found


def _last_log(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    entries = [dict(entry) for entry in history if "loss" in entry]
    return entries[-1] if entries else {}


def _record(prepared: Prepared, cache: Cache, dataset: Dataset | None) -> dict[str, Any]:
    policy = prepared.policy.reference
    local = Path(policy.model).expanduser()
    if local.is_dir():
        policy = policy.model_copy(update={"model": str(local.resolve())})
    policy = policy.model_copy(update={"dtype": prepared.policy.dtype})
    return {
        "policy": policy.model_dump(mode="json"),
        "policy_identity": prepared.policy.identity.hash,
        "references": [str(store) for store in prepared.stores],
        "cache": str(cache.path.resolve()),
        "dataset": dataset.model_dump(mode="json") if dataset else None,
        "objective": prepared.method.objective,
        "hyper": prepared.method.complete_hyper,
        "combination": vars(prepared.method.combination),
        "report": prepared.report,
        "versions": library_versions(),
    }


def _model_card(recipe: Recipe, prepared: Prepared) -> str:
    references = ", ".join(store.name for store in prepared.stores) or "none"
    hyper = json.dumps(prepared.method.complete_hyper)
    return (
        f"---\nlibrary_name: {'peft' if recipe.finetuning == 'lora' else 'transformers'}\n"
        f"base_model: {prepared.policy.files.hub_id or prepared.policy.name}\n"
        "tags: [preference-optimization, mrpo]\n---\n\n"
        f"# {prepared.method.name} of {prepared.policy.name}\n\n"
        f"Trained with `mrpo train` on {len(prepared.groups):,} groups against the cached "
        f"log-probs of: {references}.\n\n"
        f"- objective: {prepared.method.row.formula} ({prepared.method.row.source})\n"
        f"- hyper-parameters: {hyper}\n"
        f"- recipe: `recipe.yaml`; figures: `metrics.json`; log: `trainer_state.json`\n"
    )
