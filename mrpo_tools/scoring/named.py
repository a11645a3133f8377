"""From a name, or a project's words, to a scorer; and whether stored scores are still its own."""

from __future__ import annotations

from collections.abc import Mapping

from mrpo_tools.cache import Cache, ScoreStore
from mrpo_tools.config import Reference, ScorerWords, ScoringJudge, ScoringRule, check_name
from mrpo_tools.errors import CacheMissing, CacheStale, UsageError, did_you_mean
from mrpo_tools.references.locate import is_here
from mrpo_tools.scoring.judge import judge_scorer
from mrpo_tools.scoring.protocol import Scorer
from mrpo_tools.scoring.reward import reward_model
from mrpo_tools.scoring.rules import load_rule, source_hash
from mrpo_tools.sources import ADAPTERS

SCORES_OF_DATA = frozenset(kind for adapter in ADAPTERS.values() for kind in adapter.scores)
"""Kinds of scores that data has of its own; no scorer is called so, as `--score` names both."""


def scorer_of(name: str, words: ScorerWords) -> Scorer:
    """The scorer of a project's words; a rule's module is imported, no weights are loaded.

    Raises:
        UsageError: the name is none, or there is no such rule or model.
    """
    if check_name(name) in SCORES_OF_DATA:
        raise UsageError(
            f"scorer {name!r}: data may have scores of this name, and --score names either",
            "give it another name",
        )
    if isinstance(words, ScoringRule):
        return load_rule(words.rule, words.full_marks, name)
    if isinstance(words, ScoringJudge):
        return judge_scorer(name, words)
    return reward_model(name, words)


def scorer_named(name: str, scorers: Mapping[str, ScorerWords], cache: Cache) -> Scorer:
    """A scorer by its name: the project's, or a reward model that the cache knows.

    A rule that only the cache names is not loaded: a cache may come from elsewhere, and a rule is
    code.

    Raises:
        UsageError: there is none of this name, or, for `skywork@ab12`, it is another by now.
    """
    bare, _, digits = name.partition("@")
    known = bare in scorers
    scorer = scorer_of(bare, scorers[bare]) if known else _recorded(name, scorers, cache)
    if not scorer.stored_identity.short.startswith(digits):
        raise UsageError(
            f"scorer {bare!r} is no longer {name}: its files or settings have changed",
            "give those it had, or name another scorer",
        )
    return scorer


def _recorded(name: str, scorers: Mapping[str, ScorerWords], cache: Cache) -> Scorer:
    """A reward model as the cache recorded it."""
    bare = name.partition("@")[0]
    try:
        store = cache.find_scores(name)
    except CacheMissing:
        near, ways = did_you_mean(bare, scorers), f"`scorers: {{{bare}: …}}` in mrpo.yaml"
        raise UsageError(
            f"no scorer is named {bare!r}", f"{near} Or {ways}" if near else ways
        ) from None
    words = store.recorded_scorer()
    if "rule" in words or words.get("trust_remote_code"):
        raise UsageError(
            f"scorer {bare!r} is code, which is run only where the command line or mrpo.yaml "
            "names it",
            f"`scorers: {{{bare}: …}}` in mrpo.yaml",
        )
    if "judge" in words:  # a cache may come from elsewhere, and with it where answers would go
        raise UsageError(
            f"scorer {bare!r} is a judge, which is asked only where the command line or mrpo.yaml "
            "names its server",
            f"`scorers: {{{bare}: {{judge: URL#MODEL}}}}` in mrpo.yaml",
        )
    return reward_model(store.name, Reference.model_validate(words))


def current_scores(cache: Cache, name: str, scorers: Mapping[str, ScorerWords]) -> ScoreStore:
    """The stored scores that a name means, checked against the project where it knows the scorer.

    Of several identities of a name, `skywork` means the one that the project's words and files give
    now; `skywork@ab12` means that one. No rule is run for that.

    Raises:
        CacheMissing: it has none.
        CacheStale: the scorer has changed since; or several identities, and nothing tells which.
    """
    bare, digits = name.partition("@")[::2]
    if bare not in scorers or digits:
        return cache.find_scores(name)
    stores = [store for store in cache.scorers() if store.name == bare]
    current = [store for store in stores if _is_current(store, bare, scorers[bare])]
    if current:
        return current[0]
    store = cache.find_scores(name)
    words = scorers[bare]
    option = (
        "--rule" if isinstance(words, ScoringRule)
        else "--judge" if isinstance(words, ScoringJudge) else "--reward-model"
    )  # fmt: skip
    raise CacheStale(
        f"the cached scores by {store} are of another identity: scorer {bare!r} has changed since",
        f"score again with: mrpo score {option} {bare}; or name the old ones: --score "
        f"{bare}@{store.short[:4]}",
    )


def _is_current(store: ScoreStore, name: str, words: ScorerWords) -> bool:
    """Whether scores are of what these words mean now; yes where its files are not here."""
    fields = store.identity.fields
    if isinstance(words, ScoringRule):
        now = source_hash(words.rule)
        return fields.get("rule") == words.rule and now in (None, fields.get("source"))
    if isinstance(words, ScoringJudge):
        return fields.get("scorer") == "judge" and _names_this_judge(store, words)
    if fields.get("scorer") != "reward":
        return False
    if not is_here(words):
        return True
    dtype = words.dtype or fields["dtype"]
    scorer = reward_model(name, words.model_copy(update={"dtype": dtype}))
    return scorer.stored_identity.hash == store.identity.hash


def _names_this_judge(store: ScoreStore, words: ScoringJudge) -> bool:
    """Whether a store's judge is the one of these words; a server need not answer for that."""
    _, _, model = words.judge.partition("#")
    named = model or str(store.identity.fields["model"])
    asked = words.model_copy(update={"judge": f"{words.judge.partition('#')[0]}#{named}"})
    return judge_scorer(store.name, asked).stored_identity.hash == store.identity.hash
