"""Which runs can stand in one table: those that were measured, on the same prompts, by the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mrpo_tools.errors import UsageError, did_you_mean
from mrpo_tools.progress import say
from mrpo_tools.runs.columns import outcomes_of
from mrpo_tools.runs.methods import MethodRuns
from mrpo_tools.runs.read import DATA_SPLIT, Result


def check_comparable(methods: Sequence[MethodRuns], split: str, baselines: Sequence[str]) -> None:
    """Refuse runs that cannot be compared, and warn of what is missing.

    Raises:
        UsageError: no run was evaluated on the split, or on other groups or prompts or by another
            version of a rule than the rest, or a baseline that is none of the methods.
    """
    labels = [method.label for method in methods]
    for wanted in baselines:
        if wanted not in labels:
            raise UsageError(
                f"no method is labelled {wanted!r}; there are: {', '.join(labels)}",
                did_you_mean(wanted, labels),
            )
    runs = [run for method in methods for run in method.runs]
    missing = [run for run in runs if run.evaluation is None]
    if len(missing) == len(runs):
        raise UsageError(
            f"no run was evaluated on split {split!r}", f"mrpo evaluate RUN --split {split}"
        )
    for run in missing:
        say(f"warning: {run.path} was not evaluated on split {split!r}: mrpo evaluate {run.path}")
    for run in runs:
        if run.evaluation and run.evaluation.hardly_moved:
            say(f"warning: {run.path}: {run.evaluation.hardly_moved}")
    for kinds in _by_split(runs, _scores):
        if len(kinds) > 1:
            say("warning: the runs were evaluated by different scores, so their accuracies do not "
                f"compare: {_named(kinds, 'scores', 40)}")  # fmt: skip
    _check_data(runs, split)
    _check_outcomes(runs, split)
    for sizes in _by_split(runs, lambda run: run.evaluation.groups if run.evaluation else None):
        if len(sizes) > 1:
            say("warning: the runs were evaluated on different numbers of groups")


def _check_data(runs: Sequence[Result], split: str) -> None:
    """Refuse evaluations of different groups; older ones do not say which theirs were."""
    for first in _by_split(runs, _groups_hash):
        if len(first) > 1:
            raise UsageError(
                f"split {split!r} was not the same groups for all runs: {_named(first, 'groups')}",
                f"mrpo evaluate RUN --split {split} with the same data for all, or compare them "
                "apart",
            )


def _check_outcomes(runs: Sequence[Result], split: str) -> None:
    """Refuse outcomes of other prompts, of another version of what scored, or sampled otherwise."""
    again = f"mrpo evaluate RUN --split {split} --rule … for all anew, or compare them apart"
    for first in _by_split(runs, _prompts_hash):
        if len(first) > 1:
            raise UsageError(
                f"outcomes on split {split!r} are of different prompts: {_named(first, 'prompts')}",
                again,
            )
    versions: dict[str, dict[str, Result]] = {}
    temperatures: dict[str, dict[str, Result]] = {}
    for run in runs:
        for outcome in outcomes_of(run):
            if outcome.identity:
                versions.setdefault(outcome.key, {}).setdefault(outcome.identity, run)
            at = temperatures.setdefault(outcome.key, {})
            at.setdefault(f"{outcome.temperature:g}", run)
    for words, kinds in (("version", versions), ("temperature", temperatures)):
        for key, first in kinds.items():
            if len(first) > 1:
                raise UsageError(
                    f"{key} is not of the same {words} for all runs: {_named(first, words)}", again
                )
    if temperatures:
        for run in runs:
            if not outcomes_of(run):
                say(f"warning: {run.path} has no outcomes: mrpo evaluate {run.path} --rule …")


def _scores(run: Result) -> str | None:
    """Whose scores, or labels, said what is better."""
    return (run.evaluation.score or "the data's own") if run.evaluation else None


def _groups_hash(run: Result) -> str | None:
    return run.evaluation.groups_hash if run.evaluation else None


def _prompts_hash(run: Result) -> str | None:
    return run.outcomes.prompts_hash if run.outcomes else None


def _by_split(
    runs: Iterable[Result], what: Callable[[Result], str | int | None]
) -> list[dict[str, Result]]:
    """For each draw of the split: what runs measured on it, with the first that did."""
    first: dict[int, dict[str, Result]] = {}
    for run in runs:
        measured = what(run)
        if measured:
            drawn = first.setdefault(run.replicate.split_seed, {})
            drawn.setdefault(str(measured), run)
    return list(first.values())


def _named(first: dict[str, Result], what: str, shown: int = 8) -> str:
    """Each kind, so many characters of it, with a run that has it."""
    splits = {run.replicate.split_seed for run in first.values()} - {DATA_SPLIT}
    drawn = f" of split seed {splits.pop()}" if len(splits) == 1 else ""
    return ", ".join(f"{run.path} ({what} {key[:shown]})" for key, run in first.items()) + drawn
