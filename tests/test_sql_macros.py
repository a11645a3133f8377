"""The macros of `mrpo sql`, against plain loops, the tensors of training and numbers by hand."""

from __future__ import annotations

import math

import oracle
import pytest
from sql_world import (
    NAMES,
    ask,
    cache_of,
    close,
    fill,
    identity,
    make_groups,
    make_numbers,
    one_column,
    row,
)

from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.methods.combination import Combination, combine
from mrpo_tools.methods.tensors import look_up, reference_accuracies
from mrpo_tools.sql import open_sql

ORDERS = [NAMES, ("qwen", "llama"), ("mistral", "qwen", "llama"), ("mistral",)]
VIRTUAL = "SELECT group_id, position, logp FROM virtual_reference"
WEIGHTS = "SELECT group_id, reference, weight FROM weights"


def keyed(rows: list[tuple]) -> dict[tuple, float]:
    """The last column by all others."""
    return {row[:-1]: row[-1] for row in rows}


@pytest.mark.parametrize("names", ORDERS)
def test_weights_are_those_of_equation_10(world, database, names):
    """Of a group without a usable response they are equal, as of one without a spread."""
    no_spread = [[0.0] * len(names)]
    expected = {
        (group.group_id, name): weight
        for group in world.groups
        for name, weight in zip(
            names, oracle.confidence_weights(world.rows(group, names) or no_spread), strict=True
        )
    }
    close(keyed(ask(database, f"{WEIGHTS}(refs := $refs)", refs=list(names))), expected)


@pytest.mark.parametrize("names", ORDERS)
@pytest.mark.parametrize("eps", [0.0, 0.1, 3])
def test_radius_clip_and_virtual_reference_are_those_of_the_paper(world, database, names, eps):
    def answers(columns: str, macro: str) -> list[tuple]:
        query = f"SELECT group_id, position, {columns} FROM {macro}($eps, refs := $refs)"
        return ask(database, query, eps=eps, refs=list(names))

    def radius(rows: list[list[float]]) -> list[float]:
        return oracle.adaptive_radius(rows, eps)

    clipped = world.by_response(names, lambda rows: oracle.clip(rows, radius(rows)))
    virtual = world.by_response(names, lambda rows: oracle.virtual_reference(rows, eps))
    first = world.by_response(names, lambda rows: [row[0] for row in rows])
    keys = {group.group_id: group.response_ids for group in world.groups}
    close(keyed(answers("radius", "radius")), world.by_response(names, radius))
    close(
        keyed(answers("reference, clipped", "trust_region")),
        {(*place, names[k]): r for place, of in clipped.items() for k, r in enumerate(of)},
    )
    close(keyed(answers("logp", "virtual_reference")), virtual)
    for group_id, place, key in answers("response_id", "radius"):
        assert key == keys[group_id][place]
    for *_, bounded, logp, moved in answers("clipped, logp, moved", "trust_region"):
        assert moved == (bounded != logp)
    for group_id, place, logp, key in answers("reference_1, response_id", "virtual_reference"):
        assert (logp, key) == (first[group_id, place], keys[group_id][place])


def test_the_default_order_is_by_name_or_as_opened(world, database):
    def expected(*names: str) -> dict:
        return world.by_response(names, oracle.virtual_reference)

    close(keyed(ask(database, f"{VIRTUAL}(0.1)")), expected(*NAMES))
    with open_sql(world.cache.path, references=("qwen", "mistral")) as opened:
        close(keyed(ask(opened, f"{VIRTUAL}()")), expected("qwen", "mistral"))


def test_extreme_numbers_stay_exact(tmp_path):
    """Log-probs of -10,000, equal ones, spreads of a billionth, weights of zero."""
    group = Group(user_prompt("p"), tuple(Response(str(n), float(n)) for n in range(3)))
    equal = Group(user_prompt("q"), tuple(Response(str(n), float(n)) for n in range(2)))
    cache = cache_of(tmp_path, [group, equal])
    values = {"a": [-10000.0, -10000.000000002, -5000.0], "b": [-7.0, -7.0, -7.0]}
    for name, logps in values.items():
        rows = [row(group, place, logp) for place, logp in enumerate(logps)]
        rows += [row(equal, place, 0.0) for place in range(2)]
        cache.store(name, identity(name)).append(rows)
    with open_sql(tmp_path) as database:
        weights = keyed(ask(database, f"{WEIGHTS}(refs := ['a', 'b'])"))
        virtual = keyed(ask(database, f"{VIRTUAL}(0.5, refs := ['b', 'a'])"))
        radii = keyed(ask(database, "SELECT group_id, position, radius FROM radius(0.3)"))
    # b holds all responses equally likely, so a has all the weight; its clipped numbers are left.
    assert weights[group.group_id, "a"] == 1.0
    assert weights[group.group_id, "b"] == 0.0
    # All sums 0: nothing to share by, so the halves of 0.3; equal references weigh the same.
    assert [radii[equal.group_id, place] for place in range(2)] == [0.15, 0.15]
    assert weights[equal.group_id, "a"] == weights[equal.group_id, "b"] == 0.5
    sums = [abs(a - 7.0) for a in values["a"]]
    for place, size in enumerate(sums):
        expected = -7.0 - 0.5 * size / sum(sums) * 7.0
        assert virtual[group.group_id, place] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["made up, some missing", "of real models"])
def test_macros_agree_with_the_tensors_that_training_uses(world, cached, some_groups, kind):
    real = kind == "of real models"
    cache, groups = (cached, some_groups) if real else (world.cache, world.groups)
    order = ["qwen", "llama", "mistral"]
    tensors = look_up([cache.find(name) for name in order], groups)
    assert real or 0 < sum(tensors.dropped.values()) < tensors.mask.sum()
    combined = combine(tensors.logps, tensors.mask, Combination(epsilon_max=0.05))
    virtual, weights = {}, {}
    for g, group in enumerate(groups):
        for place in tensors.mask[g].nonzero().flatten().tolist():
            virtual[group.group_id, place] = combined.logps[g, place].item()
        for k, name in enumerate(order):
            weights[group.group_id, name] = combined.weights[g, k].item()
    with open_sql(cache.path) as database:
        close(keyed(ask(database, f"{VIRTUAL}(0.05, refs := $refs)", refs=order)), virtual)
        close(keyed(ask(database, f"{WEIGHTS}(refs := $refs)", refs=order)), weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["world", "labelled"])
def test_margins_by_loops(kind, name, request):
    """One reference at a time: its own margin needs no other's number."""
    world = request.getfixturevalue(kind)
    expected = {}
    for group in world.groups:
        places = world.usable(group, [name])
        if places:
            logps = [logp for (logp,) in world.rows(group, [name])]
            rows = [row(group, place, logp) for place, logp in zip(places, logps, strict=True)]
            per_token = [response.logp / max(response.num_tokens, 1) for response in rows]
            per_byte = [response.logp / response.num_bytes for response in rows]
            responses = [group.responses[place] for place in places]
            scores, chosen = [each.score for each in responses], [each.chosen for each in responses]
            judged = {"chosen": chosen} if kind == "labelled" else {"scores": scores}
            of_group = oracle.Group(logps, reference=[], lengths=[], **judged)
            expected[group.group_id] = [
                len(places), len(oracle.pairs(of_group, "all")), oracle.margins(logps, of_group),
                *(oracle.accuracies(each, of_group) for each in (logps, per_token, per_byte)),
            ]  # fmt: skip
    query = (
        "SELECT group_id, responses, pairs, margin, accuracy, accuracy_per_token, "
        "accuracy_per_byte FROM {} WHERE reference = $name"
    )
    with open_sql(world.cache.path) as database:
        for macro in ("margins()", "margins($name)"):
            answers = ask(database, query.format(macro), name=name)
            numbers = {
                group_id: [math.nan if value is None else value for value in values]
                for group_id, *values in answers
            }
            assert len(numbers) == len(answers)
            assert numbers.keys() == expected.keys()
            for group_id, values in numbers.items():
                assert values == pytest.approx(expected[group_id], abs=1e-9, nan_ok=True)
    tensors = look_up([world.cache.find(name)], world.groups)
    shares = [values[3:] for values in expected.values() if values[1]]
    means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    assert [share for (share,) in reference_accuracies(tensors).values()] == pytest.approx(means)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ("agreement('mistral', 'llama')", ("mistral", "llama")),
        ("agreement()", ("llama", "mistral")),
        ("agreement('qwen')", ("qwen", "llama")),
    ],
)
def test_agreement_by_loops(world, database, call, names):
    """Without ties tau-b is the share alike minus the share unlike."""
    expected = {}
    for group in world.groups:
        rows = world.rows(group, names)
        if len(rows) > 1:
            first, second = zip(*rows, strict=True)
            rated = oracle.Group(first, first, [1] * len(first), scores=second)
            tau = oracle.kendall_tau(first, rated)
            expected[group.group_id] = (math.comb(len(rows), 2), (1 + tau) / 2, tau)
    answers = ask(database, f"SELECT group_id, pairs, agreement, tau FROM {call}")
    assert len(answers) == len(expected)
    for group_id, *values in answers:
        assert values == pytest.approx(expected[group_id], abs=1e-12)


def test_groups_that_are_not_scored_completely_are_left_out(tmp_path):
    """Training would refuse them; a macro that showed them would show numbers that change later."""
    cache = cache_of(tmp_path, groups := make_groups(10, seed=4))
    numbers = make_numbers(groups, 0)
    fill(cache, "a", groups, numbers)
    missing = next(group for group in groups if len(group.responses) > 1).response_ids[0]
    fill(cache, "b", groups, {key: number for key, number in numbers.items() if key != missing})
    macros = ("virtual_reference", "trust_region", "radius", "weights", "agreement")
    with open_sql(tmp_path) as database:
        for name, count in (("a", 10), ("b", 9)):
            for macro in ("weights(refs := [$name])", "margins($name)"):
                ids = one_column(database, f"SELECT group_id FROM {macro}", name=name)
                assert len(set(ids)) == len(ids) == count
        groups_of = {
            macro: set(one_column(database, f"SELECT group_id FROM {macro}()")) for macro in macros
        }
    missed = next(group.group_id for group in groups if missing in group.response_ids)
    expected = {group.group_id for group in groups} - {missed}
    pairs = {group.group_id for group in groups if len(group.responses) > 1} - {missed}
    assert groups_of.pop("agreement") == pairs
    assert all(ids == expected for ids in groups_of.values())


def test_a_querys_own_names_do_not_reach_into_macros(world, database):
    """A common table expression called `logps` is the query's, not the macros'."""
    for name in ("logps", "judged_groups", "stored_judgements", "stored_logps_0", "numbers"):
        query = f"WITH {name} AS (SELECT 1 AS one) SELECT count(*), max(one) FROM weights(), {name}"
        assert ask(database, query) == [(3 * len(world.groups), 1)]


def test_an_unknown_reference_is_named_with_the_known_ones(database):
    for call in ("margins('lama')", "weights(refs := ['llama', 'lama'])", "agreement('lama')"):
        with pytest.raises(UsageError, match=r"no reference lama in this cache \(llama, mistral"):
            database.query(f"SELECT * FROM {call}")
