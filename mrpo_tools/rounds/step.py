"""One round, by the verbs that exist alone: sample, score, precompute, train, evaluate.

Each phase keeps what it has done and goes on from there, so a round that was stopped at any moment
is repeated by the same call; `round.json`, written last, finishes it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_tools.cache import Cache
from mrpo_tools.config import Dataset, Recipe, Reference
from mrpo_tools.errors import UsageError
from mrpo_tools.evaluation.evaluate import evaluate
from mrpo_tools.evaluation.outcomes import kl_to, measure_outcomes
from mrpo_tools.files import make_directory, save_json, write_whole
from mrpo_tools.groups import Group, in_split, one_a_prompt
from mrpo_tools.precomputing.precompute import precompute
from mrpo_tools.progress import is_first_process, say_once
from mrpo_tools.references.devices import wait_for_everyone
from mrpo_tools.references.resolved import resolve
from mrpo_tools.rounds.mixing import asked_in, beside_pairs, kept_of
from mrpo_tools.rounds.plan import RoundRecipe
from mrpo_tools.rounds.record import ROUND, SECONDS, RoundRecord, read_round, round_directory
from mrpo_tools.runs.record import read_object
from mrpo_tools.runs.run import is_finished, is_run, load_run
from mrpo_tools.sampling.samples import Samples, sample_groups
from mrpo_tools.scoring import Scorer, ensure_scores, with_scores
from mrpo_tools.server import Server
from mrpo_tools.sources import load_groups
from mrpo_tools.training.train import train

RUN, ANSWERS = "run", "answers"
SAMPLES, OWN, DATA = "samples.jsonl", "own.jsonl", "data.jsonl"
"""Every answer with its status; the groups that they make; what is trained on, and held out."""
TRAIN, TEST = "train", "test"
"""Splits of the data of a round."""


@dataclass(frozen=True)
class Steps:
    """How a round samples, scores, computes and trains."""

    sample: Callable[..., Samples] = sample_groups
    train: Callable[..., object] = train


@dataclass(frozen=True)
class Rounds:
    """Everything that the rounds of an experiment share.

    Attributes:
        output: the directory of the rounds.
        recipe: what each round does.
        base: name of the first policy.
        models: by name, where the project knows them.
        groups: the project's data.
        split: of the prompts that are answered.
        eval_split: of the prompts that measure a round.
        cache: of log-probs and scores.
        scorers: the one that is trained on, then a held-out one, if any.
        server: that samples; None samples here.
        steps: how.
    """

    output: Path
    recipe: RoundRecipe
    base: str
    models: Mapping[str, Reference]
    groups: Sequence[Group]
    split: str
    eval_split: str
    cache: Cache
    scorers: Sequence[Scorer]
    server: Server | None = None
    steps: Steps = field(default_factory=Steps)

    @property
    def data_name(self) -> str:
        """What the cache calls the data of the rounds."""
        return self.output.name

    def recipe_of(self, number: int) -> Recipe:
        """What round `number` trains by."""
        start = None
        if number > 1 and self.recipe.plan.start == "last":
            start = str((round_directory(self.output, number - 1) / RUN).resolve())
        recipe = self.recipe.recipe(self.base, self.earlier(number), start)
        if recipe.score is None:
            return recipe
        stores = [
            self.cache.score_store(scorer.store_name, scorer.stored_identity)
            for scorer in self.scorers
        ]
        names = dict(zip(("score", "held_out_score"), map(str, stores), strict=False))
        return recipe.model_copy(update=names)

    def name(self, number: int) -> str:
        """What the policy that round `number` made is called as a reference; 0 is the first."""
        return f"{self.output.name}-round-{number}" if number else self.base

    def model(self, number: int) -> Reference:
        """The policy that round `number` made; of 0 the first."""
        if number == 0:
            return self.models[self.base]
        return load_run(round_directory(self.output, number) / RUN).trained_policy

    def earlier(self, number: int) -> list[str]:
        """Names of the policies that rounds before `number` made, the last one first."""
        return [self.name(each) for each in range(number - 1, 0, -1)]

    def models_of(self, number: int) -> dict[str, Reference]:
        """Every model that round `number` may name."""
        made = {self.name(each): self.model(each) for each in range(1, number)}
        return {**self.models, **made}


def make_round(rounds: Rounds, number: int) -> RoundRecord:
    """Do what is left of a round.

    Raises:
        As the verbs do; what they kept stays.
    """
    done = read_round(rounds.output, number)
    if done is not None:
        return done
    directory = round_directory(rounds.output, number)
    make_directory(directory)
    clock = PhaseClock(directory / SECONDS)
    models = rounds.models_of(number)
    recipe = rounds.recipe_of(number)
    with clock.phase("sample"):
        samples = _sampled(rounds, number, directory)
    with clock.phase("score"):
        own = _usable(rounds, samples)
        score = _scored(rounds, own)
    data, kept = _data(rounds, number, own, directory)
    with clock.phase("precompute"):
        _precomputed(rounds, recipe, data, models)
    with clock.phase("train"):
        _trained(rounds, recipe, data, models, directory)
    with clock.phase("evaluate"):
        measured = _measured(rounds, number, data, directory / RUN)
    policy = resolve("policy", models[rounds.name(number - 1)])
    record = RoundRecord(
        number=number,
        policy=f"{rounds.name(number - 1)}@{policy.identity.short}",
        trained=rounds.name(number),
        references=recipe.refs,
        statuses=dict(samples.counts),
        groups=len(in_split(data, TRAIN)),
        kept=kept,
        score=score,
        seconds=clock.seconds,
        **measured,
    )
    if is_first_process():
        record.write(directory / ROUND)
    return record


def _sampled(rounds: Rounds, number: int, directory: Path) -> Samples:
    """Answers of the last round's policy; `samples.jsonl` holds all of them."""
    plan = rounds.recipe.plan
    asked = asked_in(
        one_a_prompt(in_split(rounds.groups, rounds.split)), number, plan.prompts, plan.seed
    )
    samples = rounds.steps.sample(
        rounds.model(number - 1), asked, plan.sampling(number), directory / ANSWERS,
        server=rounds.server, name=rounds.name(number - 1),
    )  # fmt: skip
    if is_first_process():
        samples.write(directory / SAMPLES)
    return samples


def _usable(rounds: Rounds, samples: Samples) -> list[Group]:
    """The groups that the answers make.

    Raises:
        UsageError: there are none.
    """
    groups = samples.groups(rounds.recipe.plan.keep_status)
    if groups:
        return groups
    counts = ", ".join(f"{count:,} {name}" for name, count in samples.counts.items() if count)
    raise UsageError(
        f"no prompt has two answers that can be trained on: {counts.replace('_', ' ')}",
        "raise rounds.max_new_tokens, or rounds.keep_status: [truncated]",
    )


def _scored(rounds: Rounds, groups: Sequence[Group]) -> float | None:
    """Every scorer's scores of the samples, and of what is held out, cached; the mean of the first
    one's over the samples."""
    every = [*groups, *in_split(rounds.groups, rounds.eval_split)]
    stores = [ensure_scores(scorer, every, rounds.cache).store for scorer in rounds.scorers]
    scored, _ = with_scores(groups, stores[0])
    scores = [response.score or 0.0 for group in scored for response in group.responses]
    return sum(scores) / len(scores) if scores else None


def _data(
    rounds: Rounds, number: int, own: Sequence[Group], directory: Path
) -> tuple[Sequence[Group], int]:
    """What the round trains on, as `data.jsonl` has it, and how many groups are of earlier ones;
    the held-out groups of the project stand in it too."""
    plan = rounds.recipe.plan
    if rounds.recipe.needs_pairs:
        own = beside_pairs(in_split(rounds.groups, rounds.split), own)
    before = [group for each in range(1, number) for group in _own_groups(rounds, each)]
    kept = kept_of(before, plan.keep, number, plan.seed)
    training = [group.with_split(TRAIN) for group in (*own, *kept)]
    held_out = [group.with_split(TEST) for group in in_split(rounds.groups, rounds.eval_split)]
    if is_first_process():
        _write(directory / OWN, own)
        _write(directory / DATA, [*training, *held_out])
    wait_for_everyone()
    return load_groups(directory / DATA, keep_status=plan.keep_status).groups, len(kept)


def _own_groups(rounds: Rounds, number: int) -> Sequence[Group]:
    """The groups that a finished round sampled."""
    file = round_directory(rounds.output, number) / OWN
    return load_groups(file, keep_status=rounds.recipe.plan.keep_status).groups


def _write(path: Path, groups: Sequence[Group]) -> None:
    lines = (json.dumps(group.as_dict(), ensure_ascii=False) for group in groups)
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def _precomputed(
    rounds: Rounds, recipe: Recipe, data: Sequence[Group], models: Mapping[str, Reference]
) -> None:
    """What the references, and the policy that the samples were drawn from, have no numbers for."""
    names = dict.fromkeys([*recipe.refs, *([recipe.behaviour] if recipe.behaviour else [])])
    for summary in precompute(
        {name: models[name] for name in names}, data, rounds.cache, rounds.data_name
    ):
        computed = sum(summary.computed.values())
        say_once(f"{summary.store}: {computed:,} computed, {summary.reused:,} were there")


def _trained(
    rounds: Rounds,
    recipe: Recipe,
    data: Sequence[Group],
    models: Mapping[str, Reference],
    directory: Path,
) -> None:
    run = directory / RUN
    if is_finished(run):
        return
    rounds.steps.train(
        recipe=recipe,
        groups=data,
        cache=rounds.cache,
        references=models,
        output=run,
        dataset=Dataset(
            source=str((directory / DATA).resolve()), keep_status=rounds.recipe.plan.keep_status
        ),
        resume=is_run(run),
    )


def _measured(rounds: Rounds, number: int, data: Sequence[Group], path: Path) -> dict[str, Any]:
    """Outcomes on the held-out prompts, from the first policy, and KL to the last round's; in the
    run's own directory also its preference accuracies, which tables and reports show below."""
    plan, run = rounds.recipe.plan, load_run(path)
    evaluate(run, data, rounds.cache, TEST)
    outcomes = measure_outcomes(
        run, data, rounds.scorers[:1], rounds.cache, plan.measuring, TEST,
        origin=rounds.model(0), held_out=rounds.scorers[1:],
    )  # fmt: skip
    last = kl_to(run, data, rounds.model(number - 1), plan.measuring, TEST)
    return {
        "outcomes": outcomes.outcomes,
        "untrained": outcomes.untrained,
        "kl_last_nats": last.value,
        "kl_last_interval": last.interval,
    }


class PhaseClock:
    """Seconds of each phase over all attempts at a round.

    Args:
        path: keeps them between attempts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_object(path) if path.exists() else {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what the block takes, also where it ends by an error."""
        say_once(f"{name} …")
        since = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - since
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            if is_first_process():
                save_json(self.path, self.seconds)
