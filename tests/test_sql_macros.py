"""The macros of `mrpo sql`, against plain loops, the tensors of training and numbers by hand."""

from __future__ import annotations

import itertools
import math

import pytest
from sql_world import (
    NAMES,
    ask,
    close,
    fill,
    identity,
    loops_clipped,
    loops_radius,
    loops_virtual,
    loops_weights,
    make_groups,
    make_numbers,
    one_column,
    row,
)

from mrpo_tools.cache import Cache
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.maths import metrics, references
from mrpo_tools.maths.judgements import Judgements
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
    rows = ask(database, f"{WEIGHTS}(refs := $refs)", refs=list(names))
    close(keyed(rows), loops_weights(world, names))


@pytest.mark.parametrize("names", ORDERS)
@pytest.mark.parametrize("eps", [0.0, 0.1, 3])
def test_radius_clip_and_virtual_reference_are_those_of_the_paper(world, database, names, eps):
    def rows(columns: str, macro: str) -> list[tuple]:
        query = f"SELECT group_id, position, {columns} FROM {macro}($eps, refs := $refs)"
        return ask(database, query, eps=eps, refs=list(names))

    by_id = {group.group_id: group for group in world.groups}
    close(keyed(rows("radius", "radius")), loops_radius(world, names, eps))
    close(keyed(rows("reference, clipped", "trust_region")), loops_clipped(world, names, eps))
    close(keyed(rows("logp", "virtual_reference")), loops_virtual(world, names, eps))
    for group, place, key in rows("response_id", "radius"):
        assert by_id[group].response_ids[place] == key
    for *_, clipped, logp, moved in rows("clipped, logp, moved", "trust_region"):
        assert moved == (clipped != logp)
    for group, place, first, key in rows("reference_1, response_id", "virtual_reference"):
        assert first == world.logp(by_id[group], place, names[0])
        assert key == by_id[group].response_ids[place]


def test_the_default_order_is_by_name_or_as_opened(world, database):
    close(keyed(ask(database, f"{VIRTUAL}(0.1)")), loops_virtual(world, NAMES, 0.1))
    order = ("qwen", "mistral")
    with open_sql(world.cache.path, references=order) as opened:
        close(keyed(ask(opened, f"{VIRTUAL}()")), loops_virtual(world, order, 0.1))


def test_extreme_numbers_stay_exact(tmp_path):
    """Log-probs of -10,000, equal ones, spreads of a billionth, weights of zero."""
    cache = Cache(tmp_path)
    group = Group(user_prompt("p"), tuple(Response(str(n), float(n)) for n in range(3)))
    equal = Group(user_prompt("q"), tuple(Response(str(n), float(n)) for n in range(2)))
    cache.save_groups("toy", [group, equal])
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


def by_place(groups: list[Group], mask, values) -> dict[tuple[str, int], float]:
    """What training's tensors say of each usable response."""
    return {
        (group.group_id, place): float(values[g, place])
        for g, group in enumerate(groups)
        for place in range(len(group.responses))
        if mask[g, place]
    }


def by_reference(groups: list[Group], order, weights) -> dict[tuple[str, str], float]:
    """The weight of each reference in each group, `[G, K]`."""
    return {
        (group.group_id, name): float(weights[g, k])
        for g, group in enumerate(groups)
        for k, name in enumerate(order)
    }


def test_macros_agree_with_the_tensors_that_training_uses(world, database):
    tensors = look_up([world.cache.find(name) for name in NAMES], world.groups)
    radius = references.trust_region_radius(tensors.logps, tensors.mask, 0.1)
    weights = references.confidence_weights(tensors.logps, tensors.mask)
    combined = combine(tensors.logps, tensors.mask, Combination()).logps
    assert 0 < sum(tensors.dropped.values()) < tensors.mask.sum()
    close(keyed(ask(database, f"{VIRTUAL}(0.1)")), by_place(world.groups, tensors.mask, combined))
    radii = keyed(ask(database, "SELECT group_id, position, radius FROM radius(0.1)"))
    close(radii, by_place(world.groups, tensors.mask, radius))
    close(keyed(ask(database, f"{WEIGHTS}()")), by_reference(world.groups, NAMES, weights))
    clipped = references.clip_to_trust_region(tensors.logps, radius)
    changed = (clipped != tensors.logps) & tensors.mask.unsqueeze(-1)
    moved = ask(database, "SELECT reference, sum(moved::INT) FROM trust_region(0.1) GROUP BY ALL")
    assert dict(moved) == dict(zip(NAMES, changed.sum((0, 1)).tolist(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_margins_agree_with_the_tensors_of_one_reference(world, database, name):
    """One reference at a time, because a reference's own margin needs no other's number."""
    alone = look_up([world.cache.find(name)], world.groups)
    margins = metrics.margins(alone.logps[..., 0], alone.judged)
    shares = metrics.accuracies(alone.logps[..., 0], alone.judged)
    ids = [group.group_id for group in world.groups]
    expected = dict(zip(ids, zip(margins.tolist(), shares.tolist(), strict=True), strict=True))
    rows = ask(database, "SELECT group_id, margin, accuracy FROM margins($name)", name=name)
    for group_id, *values in rows:
        numbers = [math.nan if value is None else value for value in values]
        assert numbers == pytest.approx(expected[group_id], abs=1e-9, nan_ok=True)
    averages = ask(
        database,
        "SELECT avg(accuracy), avg(accuracy_per_token), avg(accuracy_per_byte) FROM margins($name)",
        name=name,
    )
    own = reference_accuracies(alone)
    assert list(averages[0]) == pytest.approx(
        [own[kind][0] for kind in ("summed", "per_token", "per_byte")], abs=1e-9
    )


def test_tau_agrees_with_the_tensors(world, database):
    both = look_up([world.cache.find(name) for name in ("llama", "qwen")], world.groups)
    tau = metrics.kendall_tau(
        both.logps[..., 0], Judgements(both.mask, both.logps[..., 1].nan_to_num(), None)
    )
    expected = {group.group_id: float(tau[g]) for g, group in enumerate(world.groups)}
    for group_id, value in ask(database, "SELECT group_id, tau FROM agreement('llama', 'qwen')"):
        assert value == pytest.approx(expected[group_id], abs=1e-9)


def test_macros_agree_on_numbers_of_real_models(cached, some_groups):
    """What three models computed, combined by the tensors of training and by SQL."""
    order = ["qwen", "llama", "mistral"]
    tensors = look_up([cached.find(name) for name in order], some_groups)
    expected = combine(tensors.logps, tensors.mask, Combination(epsilon_max=0.05))
    with open_sql(cached.path) as database:
        virtual = ask(database, f"{VIRTUAL}(0.05, refs := $refs)", refs=order)
        weights = ask(database, f"{WEIGHTS}(refs := $refs)", refs=order)
    close(keyed(virtual), by_place(some_groups, tensors.mask, expected.logps))
    close(keyed(weights), by_reference(some_groups, order, expected.weights))


@pytest.mark.parametrize("kind", ["world", "labelled"])
def test_margins_by_loops(kind, request):
    world = request.getfixturevalue(kind)
    expected = {}
    for group in world.groups:
        for name in NAMES:
            places = world.usable(group, [name])
            if not places:
                continue
            scores = [group.responses[place].score for place in places]
            if kind == "labelled":
                best = [p for p in places if group.responses[p].chosen]
                rest = [p for p in places if not group.responses[p].chosen]
                pairs = [(b, w) for b in best for w in rest]
            else:
                mean = sum(scores) / len(scores)
                best = [p for p in places if group.responses[p].score - mean > 1e-9]
                rest = [p for p in places if p not in best]
                pairs = [
                    (b, w)
                    for b in places
                    for w in places
                    if group.responses[b].score > group.responses[w].score
                ]
            logp = {place: world.logp(group, place, name) for place in places}
            margin = accuracy = None
            if best and rest:
                margin = sum(logp[p] for p in best) / len(best)
                margin -= sum(logp[p] for p in rest) / len(rest)
            if pairs:
                accuracy = sum(logp[b] > logp[w] for b, w in pairs) / len(pairs)
            expected[group.group_id, name] = (len(places), len(pairs), margin, accuracy)
    query = "SELECT group_id, reference, responses, pairs, margin, accuracy FROM margins()"
    with open_sql(world.cache.path) as database:
        rows = ask(database, query)
    assert {row[:2] for row in rows} == expected.keys()
    assert len(rows) == len(expected)
    for group_id, name, *values in rows:
        assert values == pytest.approx(list(expected[group_id, name]), abs=1e-9, nan_ok=True)


def test_agreement_by_loops(world, database):
    expected = {}
    for group in world.groups:
        places = world.usable(group, ("mistral", "llama"))
        pairs = list(itertools.combinations(places, 2))
        alike = sum(
            (world.logp(group, i, "mistral") > world.logp(group, j, "mistral"))
            == (world.logp(group, i, "llama") > world.logp(group, j, "llama"))
            for i, j in pairs
        )
        if pairs:
            expected[group.group_id] = [len(pairs), alike / len(pairs)]
    query = "SELECT group_id, pairs, agreement FROM agreement('mistral', 'llama')"
    assert {group_id: values for group_id, *values in ask(database, query)} == expected
    # Without ties tau-b is the share alike minus the share unlike.
    query = "SELECT max(abs(tau - (2 * agreement - 1))) FROM agreement()"
    assert one_column(database, query)[0] < 1e-12


def test_groups_that_are_not_scored_completely_are_left_out(tmp_path):
    """Training would refuse them; a macro that showed them would show numbers that change later."""
    cache, groups = Cache(tmp_path), make_groups(10, seed=4)
    cache.save_groups("toy", groups)
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
