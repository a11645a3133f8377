"""Outcomes: what rules and reward models say of a policy's answers, and how far it went for them.

KL(π‖π_1) is estimated from the policy's own samples: the mean of ℓ − r_1 over answers drawn at
temperature 1 from all tokens, both of the very ids that were drawn. It is a mean over prompts, nats
a whole answer; of an answer that the token limit cut, it counts what was drawn. In place of
reference 1 stands the untrained policy, which began as it unless the recipe names another `policy`;
so the distance is one thing for every method of a sweep, and 0 before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mrpo_tools.cache import Cache, ReferenceStore
from mrpo_tools.config import Dataset, Reference, loaded_here
from mrpo_tools.evaluation.estimates import estimates
from mrpo_tools.evaluation.judging import Given, judged
from mrpo_tools.groups import Group, content_id, in_split, one_a_prompt
from mrpo_tools.references.resolved import ResolvedReference, resolve
from mrpo_tools.runs.answers import answers_file, write_answers
from mrpo_tools.runs.outcomes import OUTCOMES, OutcomesRecord, outcomes_file, read_outcomes
from mrpo_tools.runs.record import Estimate
from mrpo_tools.runs.run import Run
from mrpo_tools.sampling import GREEDY, Sampler, Sampling, prompts_of
from mrpo_tools.sampling.kept import KeptAnswers
from mrpo_tools.scoring.protocol import Scorer

ANSWERS = "answers"
"""Where answers are kept: of a trained policy in its run, of others in the cache."""
READING = {
    "rendering_version", "tokenizer", "chat_template", "pinned_date", "bos_token", "eos_token",
    "system", "added_tokens",
}  # fmt: skip
"""Fields of an identity that decide which ids a text has."""


def measure_outcomes(
    run: Run,
    groups: Sequence[Group],
    scorers: Sequence[Scorer],
    cache: Cache,
    sampling: Sampling | None = None,
    split: str = "test",
    dataset: Dataset | None = None,
    held_out: Sequence[Scorer] = (),
    origin: Reference | None = None,
) -> OutcomesRecord:
    """Generate a run's answers to the prompts of a split, and the untrained policy's; judge both.

    What was generated before is not generated again. RUN/outcomes/<split>.json holds the result,
    <split>.answers.jsonl the answers; for other data than the run's own, <split>-<hash>.

    Args:
        run: a finished run.
        groups: all of the data.
        scorers: the first one leads.
        cache: keeps the untrained policy's answers, which runs share, and models' scores.
        sampling: of the sampled answers, beside the greedy ones; None or greedy: no others.
        split: `all` for everything.
        dataset: where the groups came from; None means the run's own data.
        origin: from which the way is measured, KL and gain; None means the untrained policy. In
            rounds it is the first one's policy.
        held_out: scorers whose means stand beside.

    Raises:
        UsageError: no group is in the split, a rule fails, or an answer gets no score.
        ResourceError: out of memory or disk.
    """
    asked = asked_of(groups, split)
    trained = resolve("policy", run.trained_policy)
    untrained = resolve("policy-step0", origin or run.record.policy)
    note = None if origin else _began_elsewhere(run)
    ways = ways_of(sampling)
    after = _given(asked, trained, run.path / OUTCOMES / ANSWERS, ways, untrained, note)
    before = _given(asked, untrained, cache.path / ANSWERS, ways, untrained, note)
    record, rows = judged(asked, scorers, after, before, cache=cache, held_out=held_out)
    stem = _stem(run, asked, split, dataset)
    about = {"split": split, "prompts_hash": hash_prompts(asked)}
    record = record.model_copy(update=about).over(read_outcomes(run.path, stem))
    write_answers(answers_file(run.path, stem), rows)
    record.write(outcomes_file(run.path, stem))
    return record


def kl_to(
    run: Run,
    groups: Sequence[Group],
    under: Reference,
    sampling: Sampling,
    split: str = "test",
) -> Estimate:
    """KL(π‖another model) of a run's sampled answers, nats a whole answer, with its interval.

    Args:
        run: a finished run.
        groups: all of the data.
        under: the other model, which reads the same tokens.
        sampling: plain: temperature 1, all tokens. Answers that are there are not drawn again.
        split: `all` for everything.

    Raises:
        As `measure_outcomes`.
    """
    prompts = prompts_of(asked_of(groups, split))
    policy, other = (
        Sampler(resolve(name, loaded_here(model)))
        for name, model in (("policy", run.trained_policy), ("other", under))
    )
    kept = KeptAnswers(run.path / OUTCOMES / ANSWERS, policy, sampling)
    logps = []
    for sampler in (policy, other):
        logps.append(torch.tensor(kept.logps(prompts, sampler), dtype=torch.float64))
        sampler.release()  # one model at a time
    means = (logps[0] - logps[1]).mean(1, keepdim=True)
    return estimates(means, torch.arange(len(means)))[0]


def measured_outcomes(
    run: Run, groups: Sequence[Group], split: str = "test", dataset: Dataset | None = None
) -> OutcomesRecord | None:
    """What was measured of these prompts before; None where nothing was.

    Raises:
        UsageError: no group is in the split, or the record cannot be read.
    """
    asked = asked_of(groups, split)
    record = read_outcomes(run.path, _stem(run, asked, split, dataset))
    same = record is not None and record.prompts_hash == hash_prompts(asked)
    return record if same else None


def is_measured(
    run: Run,
    groups: Sequence[Group],
    scorers: Sequence[Scorer],
    sampling: Sampling | None = None,
    split: str = "test",
) -> bool:
    """Whether a run has an outcome of each of these scorers, as they are now, on its own data.

    Raises:
        UsageError: no group is in the split, or the record cannot be read.
    """
    record = measured_outcomes(run, groups, split)
    measured = [] if record is None else record.outcomes
    kinds = [(each.identity, each.full_marks, each.sampling) for each in measured]
    return all(
        (scorer.identity, scorer.full_marks, way.as_dict()) in kinds
        for scorer in scorers
        for way in ways_of(sampling)
    )


def model_outcomes(
    model: Reference,
    groups: Sequence[Group],
    scorers: Sequence[Scorer],
    cache: Cache,
    sampling: Sampling | None = None,
    split: str = "test",
    reference_1: str | None = None,
    held_out: Sequence[Scorer] = (),
) -> OutcomesRecord:
    """The outcomes of any model, without a run; KL is that to a cached reference.

    Args:
        model: where it is.
        groups: all of the data.
        scorers: the first one leads.
        cache: keeps the answers, and models' scores.
        sampling: see `measure_outcomes`.
        split: `all` for everything.
        reference_1: its name in the cache; None leaves KL out.
        held_out: scorers whose means stand beside.

    Raises:
        As `measure_outcomes`.
    """
    asked = asked_of(groups, split)
    resolved = resolve("model", loaded_here(model))
    first, note = (
        (None, "no KL: no reference is named")
        if reference_1 is None
        else _cached_reference(resolved, cache.find(reference_1))
    )
    given = _given(asked, resolved, cache.path / ANSWERS, ways_of(sampling), first, note)
    record, _ = judged(asked, scorers, given, cache=cache, held_out=held_out)
    return record.model_copy(update={"split": split, "prompts_hash": hash_prompts(asked)})


def _stem(run: Run, asked: Sequence[Group], split: str, dataset: Dataset | None) -> str:
    """What a run's files of a split are called: the split, of the run's own data."""
    own = run.record.dataset in (None, dataset or run.record.dataset)
    return split if own else f"{split}-{hash_prompts(asked)[:8]}"


def asked_of(groups: Sequence[Group], split: str) -> list[Group]:
    """A group of each prompt of a split, the first of those that share one."""
    return one_a_prompt(in_split(groups, split))


def hash_prompts(asked: Sequence[Group]) -> str:
    """Which prompts were answered, in any order."""
    return content_id(sorted(group.prompt_id for group in asked))


def ways_of(sampling: Sampling | None) -> list[Sampling]:
    """Greedy, and as asked for."""
    if sampling is None:
        return [GREEDY]
    greedy = replace(GREEDY, max_new_tokens=sampling.max_new_tokens)
    return [greedy, sampling] if sampling.temperature else [greedy]


def _given(
    asked: Sequence[Group],
    policy: ResolvedReference,
    home: Path,
    ways: Sequence[Sampling],
    first: ResolvedReference | None,
    note: str | None,
) -> list[Given]:
    """A policy's answers in every way, with log-ratios to reference 1 where they are of π."""
    prompts = prompts_of(asked)
    sampler = Sampler(policy)
    kept = [KeptAnswers(home, sampler, way) for way in ways]
    answers = [each.answers(prompts) for each in kept]
    plain = [each for each in kept if each.sampling.is_plain and first is not None]
    own = {each.identity: each.logps(prompts, sampler) for each in plain}
    sampler.release()
    theirs: dict[str, list[list[float]]] = {}
    if first is not None and plain:
        reference = Sampler(first)
        theirs = {each.identity: each.logps(prompts, reference) for each in plain}
        reference.release()  # one model at a time
    return [
        Given(
            sampling=each.sampling,
            answers=each_answers,
            logps=own.get(each.identity),
            logps_reference_1=theirs.get(each.identity),
            note=(_no_kl(each.sampling) or note) if each.sampling.temperature else None,
        )
        for each, each_answers in zip(kept, answers, strict=True)
    ]


def _no_kl(sampling: Sampling) -> str | None:
    """Why answers drawn so say nothing of KL(π‖reference 1)."""
    if sampling.is_plain:
        return None
    return (
        "no KL: these answers are not drawn from π itself, which takes temperature 1, top-p 1 and "
        "every token"
    )


def _began_elsewhere(run: Run) -> str | None:
    """What to say of KL where the policy did not begin as reference 1; None where it did."""
    references = run.record.references
    if run.recipe.policy is None or not references:
        return None
    name, _, digits = references[0].partition("@")
    if (run.record.policy_identity or "").startswith(digits):
        return None
    return f"KL is from the untrained policy, which is not reference 1 ({name})"


def _cached_reference(
    policy: ResolvedReference, store: ReferenceStore
) -> tuple[ResolvedReference | None, str | None]:
    """The model of a cached reference and None, or None and why it cannot read a policy's ids."""
    if store.identity.hash == policy.identity.hash:
        return policy, None
    fields = {each.field for each in policy.identity.differences(store.identity)}
    if reading := fields & READING:
        return None, (
            f"no KL: reference 1 ({store.name}) reads other tokens than the policy: their "
            f"{', '.join(sorted(reading))} differ"
        )
    recorded = store.recorded_reference()
    if recorded.server is not None:
        return None, f"no KL: a server has the weights of reference 1 ({store.name})"
    resolved = resolve(store.name, recorded)
    if resolved.identity.hash != store.identity.hash:
        return None, f"no KL: the model of reference 1 ({store.name}) has changed"
    return resolved, None
