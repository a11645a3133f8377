"""Evaluation: the metrics of docs/methods.md §5 with their uncertainty, from cached numbers.

The evaluated policy's log-probs are computed like any reference's, into a cache of its own, so that
evaluation can be interrupted, repeated at no cost and asked with SQL. Four accuracies always stand
together: the method's own reward is not comparable between methods, because a reference that ranks
well lowers it and one that ranks badly lifts it, with no training at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrpo_tools.cache import Cache, ReferenceStore, ScoreStore
from mrpo_tools.cache.current import stores_of
from mrpo_tools.config import Dataset, Recipe, Reference
from mrpo_tools.errors import CacheMissing, CacheStale
from mrpo_tools.evaluation.policy_metrics import PolicyLogps, policy_metrics
from mrpo_tools.evaluation.ranking import parts_of
from mrpo_tools.groups import Group, hash_groups, in_split
from mrpo_tools.methods.method import method_of
from mrpo_tools.methods.tensors import GroupTensors, look_up
from mrpo_tools.precomputing.ensure import ensure
from mrpo_tools.references.resolved import resolve
from mrpo_tools.runs.read import evaluation_file
from mrpo_tools.runs.record import EvaluationRecord
from mrpo_tools.runs.run import EVALUATION, Run
from mrpo_tools.scoring.apply import with_scores
from mrpo_tools.words import Truncated


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one policy on one split.

    Attributes:
        path: the file that holds the same: `RUN/evaluation/<split>.json`, or for other data than
            the run's own `<split>-<hash>.json`; None without a run.
        record: what `mrpo evaluate --json` prints.
    """

    path: Path | None
    record: EvaluationRecord


def evaluate(
    run: Run,
    groups: Sequence[Group],
    cache: Cache,
    split: str = "test",
    dataset: Dataset | None = None,
    own_groups: Sequence[Group] | None = None,
    score: str | None = None,
) -> Evaluation:
    """Compare a run's policy on a split with its references and with itself untrained.

    Args:
        run: a finished run.
        groups: all of the data.
        cache: where the references' numbers are; they are looked up, not computed.
        split: `all` for everything.
        dataset: where the groups came from; None means the run's own data.
        own_groups: the run's own data where `groups` are others, to say which prompts it was
            trained on; None where they cannot be had.
        score: the scorer whose stored scores say what is better; None takes the run's.

    Raises:
        UsageError: no group is in the split.
        CacheMissing: references have no numbers for it; names all of them and the command.
    """
    everything, by = in_split(groups, split), _scores(cache, score or run.recipe.score)
    measured, left_out = _scored(everything, by)
    references = run.record.references
    method = method_of(run.recipe, measured)
    if run.record.combination.accuracies is not None:
        method = method.weighted_by(run.record.combination.accuracies)
    cut = run.recipe.truncated
    stores, tensors = _references(cache, references, measured, truncated=cut)
    own = Cache(run.path / EVALUATION)
    trained = _policy_logps(own, "policy", run.trained_policy, measured, cut)
    if stores and stores[0].identity.hash == run.record.policy_identity:
        untrained = _first(tensors)
    else:
        untrained = _policy_logps(own, "policy-step0", run.record.policy, measured, cut)
    groups_hash = hash_groups(everything, in_order=False)
    dataset = dataset or run.record.dataset
    own_data = run.record.dataset in (None, dataset)
    about = {
        "prompts_trained_on": _trained_on(run, measured, groups if own_data else own_groups),
        "split": split,
        "loss": run.recipe.loss,
        "references": references,
        "precompute_seconds": [store.wall_seconds() for store in stores],
        "groups_hash": groups_hash,
        "dataset": dataset,
        **_about_scores(by),
    }
    record = policy_metrics(method, tensors, trained, untrained, parts_of(measured))
    record = _with_left_out(record, left_out)
    stem = split if own_data else f"{split}-{groups_hash[:8]}"
    return _written(run, stem, record.model_copy(update=about))


def _written(run: Run, stem: str, record: EvaluationRecord) -> Evaluation:
    """The record in its file; what other scores than the run's own say has one of its own."""
    if record.score not in (None, run.record.score):
        stem += f"-by-{record.score.partition('@')[0]}"
    path = evaluation_file(run.path, stem)
    record.write(path)
    return Evaluation(path, record)


def evaluate_model(
    name: str,
    reference: Reference,
    groups: Sequence[Group],
    cache: Cache,
    refs: Sequence[str] = (),
    split: str = "test",
    project: Mapping[str, Reference] | None = None,
    truncated: Truncated = "drop",
    score: str | None = None,
) -> Evaluation:
    """The same for any model, without a run: its reward is that of MRPO against `refs`.

    In place of the untrained policy stands reference 1. Without references the reward is the
    log-prob itself. A model that the cache knows by this name and identity is not asked again;
    another's numbers are stored in a cache of their own, beside the references.

    Args:
        name: what to call the model.
        reference: where it is and how its log-probs are computed.
        groups: all of the data.
        cache: where the references' numbers are.
        refs: names of cached references, reference 1 first.
        split: `all` for everything.
        project: what is known of the references, to check their numbers against.
        truncated: whether responses take part that the model or a reference read cut.
        score: the scorer whose stored scores say what is better; None for the data's own.

    Raises:
        As `evaluate`; CacheStale where a reference's files or settings have changed.
    """
    by = _scores(cache, score)
    measured, left_out = _scored(in_split(groups, split), by)
    stores, tensors = _references(cache, refs, measured, project, truncated)
    resolved = resolve(name, reference)
    same = [store for store in stores if store.identity.hash == resolved.identity.hash]
    home = cache if same and same[0].name == name else Cache(cache.path / EVALUATION)
    policy = _first(look_up([ensure(home, resolved, measured).store], measured, truncated))
    if refs:
        method = method_of(Recipe(loss="mrpo", refs=list(refs)), measured)
        record = policy_metrics(method, tensors, policy, _first(tensors), parts_of(measured))
    else:
        alone = look_up([], measured)
        method = method_of(Recipe(loss="slic"), measured)  # its reward is the log-prob
        record = policy_metrics(method, alone, policy, None, parts_of(measured))
    about = {
        "split": split,
        "model": name,
        "references": list(refs),
        "precompute_seconds": [store.wall_seconds() for store in stores],
        **_about_scores(by),
    }
    return Evaluation(None, _with_left_out(record, left_out).model_copy(update=about))


def _scores(cache: Cache, name: str | None) -> ScoreStore | None:
    """The stored scores of a name; None for the data's own."""
    return None if name is None else cache.find_scores(name)


def _scored(
    groups: Sequence[Group], store: ScoreStore | None
) -> tuple[Sequence[Group], Mapping[str, int]]:
    """Groups with the scores that count, and how many responses have none, by reason."""
    return (groups, {}) if store is None else with_scores(groups, store)


def _about_scores(store: ScoreStore | None) -> dict[str, object]:
    return {} if store is None else {"score": str(store)}


def _with_left_out(record: EvaluationRecord, left_out: Mapping[str, int]) -> EvaluationRecord:
    if not left_out:
        return record
    return record.model_copy(update={"dropped_responses": {**record.dropped_responses, **left_out}})


def _trained_on(
    run: Run, measured: Sequence[Group], own_groups: Sequence[Group] | None
) -> int | None:
    """How many prompts of the measured groups are in the split that the run was trained on."""
    if own_groups is None:
        return None
    split = run.recipe.split
    trained = {group.prompt_id for group in own_groups if split in ("all", group.split)}
    return len(trained & {group.prompt_id for group in measured})


def references_to_compute(
    names: Sequence[str], cache: Cache, project: Mapping[str, Reference]
) -> dict[str, Reference]:
    """How to compute each of these references' log-probs, so that a run's stay of one kind.

    A name with digits, `mistral@ab12…`, must come out with that identity: as the project has it,
    or else as the cache recorded it.

    Raises:
        CacheStale: neither gives that identity any more.
    """
    references: dict[str, Reference] = {}
    for wanted in names:
        name, _, digits = wanted.partition("@")
        fitting = [project[name]] if name in project else []
        if digits or not fitting:
            fitting.append(cache.find(wanted).recorded_reference())
        if digits:
            fitting = [
                reference
                for reference in fitting
                if resolve(name, reference).identity.short.startswith(digits)
            ]
        if not fitting:
            raise CacheStale(
                f"the model of reference {wanted} has changed since its log-probs were computed",
                f"restore it, or compute them and train anew: mrpo precompute --ref {name}",
            )
        references[name] = fitting[0]
    return references


def _references(
    cache: Cache,
    names: Sequence[str],
    groups: Sequence[Group],
    project: Mapping[str, Reference] | None = None,
    truncated: Truncated = "drop",
) -> tuple[list[ReferenceStore], GroupTensors]:
    """The cached numbers, or one error that names every reference without them."""
    missing, reasons = [], []
    stores = []
    for name in names:
        try:
            [store] = stores_of(cache, [name], project or {})
            look_up([store], groups)
            stores.append(store)
        except CacheMissing as error:
            missing.append(name.partition("@")[0])
            reasons.append(error.what)
    if missing:
        raise CacheMissing(
            "\n".join(reasons),
            "add --precompute, or compute them first: mrpo precompute --ref "
            f"{','.join(missing)} --cache {cache.path} (and --dataset, if it is another)",
        )
    return stores, look_up(stores, groups, truncated)


def _policy_logps(
    own: Cache, name: str, reference: Reference, groups: Sequence[Group], truncated: Truncated
) -> PolicyLogps:
    store = ensure(own, resolve(name, reference), groups).store
    return _first(look_up([store], groups, truncated))


def _first(tensors: GroupTensors) -> PolicyLogps:
    return PolicyLogps(tensors.logps[..., 0], tensors.num_tokens[..., 0], tensors.mask)
