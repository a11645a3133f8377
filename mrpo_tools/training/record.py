"""What a training run says of itself, beside its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mrpo_tools.cache import Cache, library_versions
from mrpo_tools.config import Dataset, Recipe, Reference, absolute_paths
from mrpo_tools.errors import ResourceError, UsageError
from mrpo_tools.groups import Group, hash_groups, in_split
from mrpo_tools.progress import is_first_process
from mrpo_tools.references.devices import wait_for_everyone
from mrpo_tools.references.resolved import ResolvedReference
from mrpo_tools.runs.record import FIXED, RUN, CombinationWords, RunRecord
from mrpo_tools.runs.run import Stage, save_recipe
from mrpo_tools.training.prepare import Prepared


def run_record(
    recipe: Recipe,
    prepared: Prepared,
    groups: Sequence[Group],
    cache: Cache,
    references: Mapping[str, Reference],
    dataset: Dataset | None,
) -> RunRecord:
    """What `run.json` holds; `groups` are all of the data."""
    policy = _placed(prepared.policy)
    used = [name for name in references if name in (*recipe.refs, recipe.policy)]
    record = RunRecord(
        policy=policy,
        policy_identity=prepared.policy.identity.hash,
        references=[str(store) for store in prepared.stores],
        models={name: absolute_paths(references[name]) for name in used},
        cache=str(cache.path.resolve()),
        dataset=dataset,
        groups_hash=hash_groups(prepared.groups),
        objective=prepared.method.row.name,
        hyper=dict(prepared.method.hyper),
        combination=CombinationWords.model_validate(vars(prepared.method.combination)),
        report=prepared.report,
        versions={"mrpo-tools": version("mrpo-tools"), **library_versions()},
        split_hash=hash_groups(in_split(groups, recipe.split)),
        data_hash=_data_hash(groups, dataset),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    said = {"score": prepared.score, "behaviour": prepared.behaviour}
    return record.model_copy(
        update={name: str(store) for name, store in said.items() if store is not None}
    )


def _data_hash(groups: Sequence[Group], dataset: Dataset | None) -> str | None:
    if dataset is not None and dataset.limit is not None:
        return None
    return hash_groups(groups, in_order=False)


def check_split(recipe: Recipe, dataset: Dataset | None) -> None:
    """Refuse groups that were split otherwise than the recipe says.

    Raises:
        UsageError: the recipe draws the splits, and the data was read with another seed.
    """
    wanted = recipe.split_seed
    if wanted is None or (dataset is not None and dataset.split_seed == wanted):
        return
    read = "read from no data set" if dataset is None else f"drawn with {dataset.split_seed}"
    raise UsageError(
        f"the recipe's split_seed is {wanted}, the groups were {read}",
        "load_dataset(drawn_as(dataset, recipe)) reads them so, and train takes the same dataset",
    )


def _placed(policy: ResolvedReference) -> Reference:
    """Where the policy lies; an adapter that goes on is named beside the model under it."""
    files = policy.files
    update: dict[str, str | None] = {"dtype": policy.dtype}
    if files.adapter is not None:
        update |= {
            "model": files.hub_id or str(files.model),
            "revision": files.revision,
            "adapter": str(files.adapter),
        }
    return absolute_paths(policy.reference.model_copy(update=update))


def open_run(output: Path, stage: Stage, recipe: Recipe, record: RunRecord) -> None:
    """Begin a run, or make sure that the one which is there goes on as it began; all processes call
    it together.

    Raises:
        ResourceError: the directory cannot be written.
        UsageError: it holds a run of other data, references or weights.
    """
    if stage is Stage.INTERRUPTED:
        _check_record(output, record)
    elif is_first_process():
        _begin_run(output, recipe, record)
    wait_for_everyone()


def _check_record(output: Path, record: RunRecord) -> None:
    """Refuse to go on with other data, references or weights than the run began with."""
    before, now = RunRecord.read(output / RUN).as_json(), record.as_json()
    differing = [key.removesuffix("_hash") for key in FIXED if before.get(key) != now.get(key)]
    if differing:
        raise UsageError(
            f"{output} began with other {', '.join(differing)} than there are now",
            "give the data, cache and models it began with, or choose another --output",
        )


def _begin_run(output: Path, recipe: Recipe, record: RunRecord) -> None:
    """Make the run's directory, with the resolved recipe and the record."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        save_recipe(output, recipe)
        record.write(output / RUN)
    except OSError as error:
        raise ResourceError(
            f"cannot write to {output}: {error.strerror or error}", "choose another --output"
        ) from None


def model_card(recipe: Recipe, prepared: Prepared) -> str:
    """The README of a trained model, with the metadata that the hub reads."""
    references = ", ".join(store.name for store in prepared.stores) or "none"
    hyper = json.dumps(dict(prepared.method.hyper))
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
