"""`mrpo rank` on made-up caches: numbers by plain loops and by SQL, advice by its rules."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import pytest
import scipy.stats
from made_up import knowing, knowing_half, made_up_cache, made_up_groups
from stores import logps_of

from mrpo_tools.cache import Cache
from mrpo_tools.cli import run
from mrpo_tools.errors import CacheMissing, UsageError
from mrpo_tools.evaluation.rank import rank
from mrpo_tools.groups import Group, Response, in_split, user_prompt
from mrpo_tools.runs.record import Estimate
from mrpo_tools.sql import open_sql

SIZES = {
    "summed": lambda text: 1,
    "per_token": lambda text: 1 + len(text) // 4,
    "per_byte": lambda text: len(text.encode()),
}
SPEAKERS = {"fair": knowing(4.0), "good": knowing(1.0), "blind": knowing(3.0, spread=0.0)}


@pytest.fixture(scope="module")
def groups():
    return made_up_groups()


@pytest.fixture(scope="module")
def cache(tmp_path_factory, groups) -> Cache:
    return made_up_cache(tmp_path_factory.mktemp("rank") / "cache", groups, SPEAKERS)


@pytest.fixture(scope="module")
def ranking(cache):
    return rank(cache)


def pairs_of(group):
    """(better, worse) places in a group."""
    n = range(len(group.responses))
    return [(a, b) for a in n for b in n if group.responses[a].score > group.responses[b].score]


def test_accuracies_by_a_plain_loop(cache, groups, ranking):
    train = in_split(groups, "train")
    for reference in ranking.references:
        logps = logps_of(cache, reference.name)
        for kind, size in SIZES.items():
            shares = []
            for group in train:
                texts = zip(group.response_ids, group.responses, strict=True)
                rewards = [logps[key] / size(response.content) for key, response in texts]
                shares.append(fmean(rewards[a] > rewards[b] for a, b in pairs_of(group)))
            accuracy = reference.accuracy[kind]
            assert accuracy.value == pytest.approx(fmean(shares))
            assert accuracy.low < accuracy.value < accuracy.high
    assert [reference.name for reference in ranking.references] == ["good", "fair", "blind"]


def test_agreement_by_a_plain_loop(cache, groups, ranking):
    first = next(two for two in ranking.agreement if two.second == "fair")
    good, fair = logps_of(cache, "good"), logps_of(cache, "fair")
    decisions = [
        tuple(logps[group.response_ids[a]] > logps[group.response_ids[b]] for logps in (good, fair))
        for group in in_split(groups, "train")
        for a, b in pairs_of(group)
    ]
    assert first.pairs == len(decisions)
    assert first.first_only == sum(a and not b for a, b in decisions)
    assert first.agreement == pytest.approx(sum(a == b for a, b in decisions) / len(decisions))
    crossed = scipy.stats.contingency.crosstab(*zip(*decisions, strict=True)).count
    chance = scipy.stats.contingency.expected_freq(crossed).trace() / len(decisions)
    kappa = (first.agreement - chance) / (1 - chance)
    assert first.kappa == pytest.approx(kappa)


def test_the_same_by_sql(cache, ranking):
    """Weights, clipping and the virtual reference as the macros compute them."""
    order = "['good', 'fair', 'blind']"
    with open_sql(cache.path) as database:

        def ask(sql: str) -> dict:
            rows = database.query(sql).to_pylist()
            return dict(tuple(row.values()) for row in rows)

        weights = ask(
            f"SELECT reference, avg(weight) AS w FROM weights(refs := {order}) "
            "WHERE split = 'train' GROUP BY 1"
        )
        clipped = ask(
            "SELECT reference, avg(moved::INTEGER) AS share "
            f"FROM trust_region(eps_max := 0.1, refs := {order}) WHERE split = 'train' GROUP BY 1"
        )
        virtual = ask(
            f"""WITH v AS (SELECT group_id, score, v.logp AS logp
                  FROM virtual_reference(eps_max := 0.1, refs := {order}) v
                  JOIN responses USING (group_id, response_id) WHERE v.split = 'train')
                SELECT 'all', avg(share) AS share FROM (
                  SELECT avg((a.logp > b.logp)::INTEGER) AS share FROM v a JOIN v b
                  ON a.group_id = b.group_id AND a.score > b.score GROUP BY a.group_id)"""
        )
    mean_weights = {reference.name: reference.mean_weight for reference in ranking.references}
    assert mean_weights == pytest.approx(weights)
    shares = next(row.shares for row in ranking.clipped if row.epsilon_max == 0.1)
    assert {"good": 0.0, **shares} == pytest.approx(clipped)
    three = next(
        row for row in ranking.virtual
        if len(row.references) == 3 and row.combination == "harmonic" and row.epsilon_max == 0.1
    )  # fmt: skip
    assert three.accuracy.value == pytest.approx(virtual["all"])


def test_parts_are_those_of_the_ids(ranking):
    assert [(part.part, part.groups) for part in ranking.parts] == [("sort", 32), ("sum", 32)]


def test_one_reference_is_enough_where_the_others_add_nothing(ranking):
    advice = ranking.recommendation
    assert list(ranking.as_json()["recommendation"].items()) == [
        ("reference_1", "good"), ("others", []), ("combination", None), ("epsilon_max", None),
        ("why", advice.why), ("confidence", "high"), ("combination_confidence", "low"),
        ("combination_gain", asdict(advice.combination_gain)), ("notes", []),
    ]  # fmt: skip
    assert "no gain is shown" in advice.why
    assert "2512.10040" in advice.why


def test_several_where_they_know_different_things(tmp_path, groups):
    """Each knows half of the groups and says so by its spread: together they know all."""
    speakers = {"even": knowing_half(True), "odd": knowing_half(False)}
    advice = rank(made_up_cache(tmp_path / "cache", groups, speakers)).recommendation
    assert {advice.reference_1, *advice.others} == {"even", "odd"}
    assert advice.combination in ("harmonic", "geometric", "arithmetic")
    assert "enough" not in advice.why
    assert "no promise" in advice.why


def test_references_that_know_nothing_are_called_so(tmp_path, groups):
    speakers = {"blind": knowing(1.0, spread=0.0), "upside_down": knowing(1.0, spread=-2.0)}
    advice = rank(made_up_cache(tmp_path / "cache", groups, speakers)).recommendation
    assert advice.confidence == "low"
    assert "not above chance" in advice.why


def test_few_groups_give_no_confidence(tmp_path):
    """Five groups ranked perfectly: their bootstrap interval is a point, and says nothing."""
    groups = made_up_groups(6)
    ranking = rank(made_up_cache(tmp_path / "cache", groups, {"sure": knowing(0.0)}))
    assert ranking.references[0].accuracy["summed"] == Estimate(1.0, 1.0, 1.0)
    assert ranking.recommendation.confidence == "low"
    assert "Prompts to judge by: 5, too few" in ranking.recommendation.why


def test_groups_of_one_prompt_count_once(tmp_path):
    """Eighty groups of four prompts: no more evidence than four, and wider intervals for it."""
    few = [
        Group(user_prompt(f"{i % 4}"), (Response(f"good {i}", 1.0), Response(f"poor {i}", 0.0)))
        for i in range(80)
    ]
    many = [Group(user_prompt(f"{i}"), group.responses) for i, group in enumerate(few)]
    right = {"half": lambda rng, index, text: (text.score or 0) * (1 if index % 4 < 2 else -1) - 9}
    clustered = rank(made_up_cache(tmp_path / "few", few, right))
    single = rank(made_up_cache(tmp_path / "many", many, right))
    assert "Prompts to judge by: 4, too few" in clustered.recommendation.why
    assert "too few" not in single.recommendation.why
    wide, narrow = (measured.references[0].accuracy["summed"] for measured in (clustered, single))
    assert wide.value == narrow.value == 0.5
    assert (wide.low, wide.high) == (0.0, 1.0)  # all four prompts of one kind: 2/16 of draws
    assert 0.35 < narrow.low < narrow.high < 0.65


def test_labels_without_scores_and_without_splits(tmp_path):
    """A pair of each prompt; the longer one is always chosen: nothing else can be told."""
    groups = [
        Group(user_prompt(f"{i}"), (Response("long one", None, True), Response("no", None, False)))
        for i in range(40)
    ]
    sure = {"sure": lambda rng, index, text: -10 + 9 * bool(text.chosen)}
    ranking = rank(made_up_cache(tmp_path / "cache", groups, sure))
    assert ranking.split == "all"
    assert (ranking.longer.value, ranking.shorter.value) == (1.0, 0.0)
    assert ranking.better_length == "longer"
    assert ranking.references[0].accuracy["summed"].value == 1.0
    assert ranking.references[0].leading == Estimate(None, None, None)
    assert "the longer response ranks 100.0% right" in ranking.recommendation.why
    assert "Prompts to judge by: 0, too few" in ranking.recommendation.why
    assert ranking.recommendation.confidence == "low"


def test_a_single_reference(cache):
    single = rank(cache, ["fair"])
    assert single.agreement == single.virtual == single.clipped == []
    assert single.recommendation.reference_1 == "fair"


def test_twice_the_same(cache, ranking):
    assert rank(cache) == ranking


def test_the_command(cache, ranking, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["rank", "--cache", str(cache.path)]) == 0
    out = capsys.readouterr().out
    good = ranking.references[0].accuracy["summed"]
    assert f"good                {good.value:.3f} [{good.low:.3f}, {good.high:.3f}]" in out
    assert "  reference 1  good\n  others       none\n" in out
    assert "  confidence   high: good is the best reference\n" in out
    assert "  combining    low: no gain of a combination is shown, and none ruled out\n" in out
    assert f"always the shorter  {ranking.shorter.value:.3f}" in out
    assert run(["rank", "--cache", str(cache.path), "--json", "--epsilon-max", "0.5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["epsilon_max"] for row in printed["clipped"]] == [0.5]


def test_what_cannot_be_ranked(cache, groups, tmp_path):
    with pytest.raises(UsageError, match="no group is in split 'dev'"):
        rank(cache, split="dev")
    with pytest.raises(UsageError, match="no groups of data set 'other'"):
        rank(cache, dataset="other")
    with pytest.raises(CacheMissing, match="no cache at"):
        rank(Cache(Path("nowhere")))
    more = made_up_groups(81)
    cache = made_up_cache(tmp_path / "cache", groups, SPEAKERS)
    cache.save_groups("more", more)
    with pytest.raises(CacheMissing, match="for 230 of 232") as caught:
        rank(cache, ["good"], split="all")
    assert "mrpo precompute --ref good" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "a", "-1", "nan"])
def test_epsilons_that_are_none(cache, text, capsys):
    assert run(["rank", "--cache", str(cache.path), "--epsilon-max", text]) == 2
    assert "numbers of 0 or more" in capsys.readouterr().err
