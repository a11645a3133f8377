"""Scorers on the command line: rules, reward models and judges by name, and `--score`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mrpo_tools.cli.completion import scorers
from mrpo_tools.cli.options import REFERENCE_FIELDS

if TYPE_CHECKING:
    from mrpo_tools.cache import Cache, ScoreStore
    from mrpo_tools.config import Project
    from mrpo_tools.scoring import Scorer

reward_model_option = click.option(
    "--reward-model", "reward_models", multiple=True, metavar="NAME[=MODEL]",
    shell_complete=scorers,
    help="A sequence classifier of one label. Repeats and takes commas.",
)  # fmt: skip

judge_option = click.option(
    "--judge", "judges", multiple=True, metavar="URL#MODEL",
    help="A chat endpoint rates the answers: http://HOST:PORT/v1#MODEL. Repeats.",
)  # fmt: skip

score_option = click.option(
    "--score", metavar="NAME", shell_complete=scorers,
    help="Scorer of `mrpo score` whose scores count.  [default: the data's own]",
)  # fmt: skip


def scorers_named(
    options: Mapping[str, Any], project: Project, cache: Cache, name: str | None = None
) -> list[Scorer]:
    """The scorers of `--rule`, `--reward-model` and `--judge`, in this order.

    Words of a model among the options (`--dtype`, …) hold for every reward model.

    Args:
        options: `rules`, `reward_models`, `full_marks`, a reference's fields; `judges` and
            `template` where a command has them.
        project: its `scorers:` may be named.
        cache: reward models that it knows may be named.
        name: as the cache is to call the one rule, or the one judge.

    Raises:
        UsageError: there is no such rule or model, or two would share a name.
    """
    from mrpo_tools.errors import UsageError

    rules, judges = options["rules"], options.get("judges") or ()
    if name is not None and len(rules) + len(judges) != 1:
        raise UsageError(
            f"--name {name} is of one --rule or --judge, and there are {len(rules) + len(judges)}",
            "a reward model's name stands before its `=`: --reward-model NAME=MODEL",
        )
    models = [part for word in options["reward_models"] for part in word.split(",") if part]
    chosen = [_rule(word, options["full_marks"], name, project) for word in rules]
    chosen += [_reward_model(word, options, project, cache) for word in models]
    chosen += [_judge(word, options.get("template"), name, project) for word in judges]
    names = [scorer.store_name for scorer in chosen]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two scorers have the name {max(names, key=names.count)}",
            "one --name a --rule, or a --judge",
        )
    return chosen


def _rule(word: str, full_marks: float | None, name: str | None, project: Project) -> Scorer:
    """`MODULE:FUNCTION`, or the project's name of one."""
    from mrpo_tools.config import ScoringRule
    from mrpo_tools.scoring.named import scorer_of
    from mrpo_tools.scoring.rules import load_rule

    known = project.scorers.get(word)
    if isinstance(known, ScoringRule):
        return scorer_of(name or word, known)
    rule = load_rule(word, full_marks, name or "")
    scorer_of(rule.store_name, ScoringRule(rule=word))  # whether a scorer can be called so
    return rule


def _reward_model(word: str, options: Mapping[str, Any], project: Project, cache: Cache) -> Scorer:
    """`NAME=MODEL`, or a name of the project or of the cache, with the options over its words."""
    from mrpo_tools.config import Reference, parse
    from mrpo_tools.errors import UsageError
    from mrpo_tools.scoring.named import scorer_named, scorer_of

    name, equals, model = word.partition("=")
    if equals and not model:
        raise UsageError(
            f"--reward-model {word}: no model after '='", f"--reward-model {name}=PATH_OR_HUB_ID"
        )
    fields = {key: options[key] for key in REFERENCE_FIELDS if options.get(key) is not None}
    if equals:
        return scorer_of(name, parse(Reference, {"model": model, **fields}, f"scorer {name}"))
    scorer = scorer_named(name, project.scorers, cache)
    if scorer.kind != "reward":
        raise UsageError(f"scorer {name!r} is no reward model", f"--rule {name}")
    if not fields:
        return scorer
    return scorer_of(name, parse(Reference, {**scorer.words, **fields}, f"scorer {name}"))


def _judge(word: str, template: str | None, name: str | None, project: Project) -> Scorer:
    """`URL#MODEL`, or the project's name of one."""
    from mrpo_tools.config import ScoringJudge, parse
    from mrpo_tools.scoring.judge import judge_scorer
    from mrpo_tools.scoring.named import scorer_of

    known = project.scorers.get(word)
    given = {} if template is None else {"template": template}
    if isinstance(known, ScoringJudge):
        return scorer_of(name or word, known.model_copy(update=given))
    scorer = judge_scorer(name or "", parse(ScoringJudge, {"judge": word, **given}, "judge"))
    return scorer if name is None else scorer_of(name, scorer.project_words)


def stored_scores(word: str | None, cache: Cache, project: Project) -> ScoreStore | None:
    """The stored scores that `--score` names; None where it names nothing.

    Raises:
        CacheError: there are none of this name, or several, or others than the project's now.
    """
    if word is None:
        return None
    from mrpo_tools.scoring.named import current_scores

    return current_scores(cache, word, project.scorers)


def pinned_scores(word: str | None, cache: Cache, project: Project) -> str | None:
    """`name@identity` of these scores.

    Raises:
        As `stored_scores`.
    """
    store = stored_scores(word, cache, project)
    return None if store is None else str(store)


def scorer_word(options: dict[str, Any]) -> str | None:
    """The scorer that `--score` names, taken from the options; a kind of score that data has of its
    own stays there."""
    from mrpo_tools.scoring.named import SCORES_OF_DATA

    word: str | None = options["score"]
    if word in SCORES_OF_DATA:
        return None
    options["score"] = None
    return word


def tell_scores(store: str) -> None:
    """Say whose scores count."""
    from mrpo_tools.progress import say_once

    say_once(f"scores: those by {store} count; scores and labels of the data are not used")
