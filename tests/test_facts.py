"""Facts of many groups at once: the same from groups, from a mapped file, and by hand."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_tools.cache.mapped import MappedGroups, write_groups
from mrpo_tools.errors import UsageError
from mrpo_tools.groups import (
    Group,
    Response,
    facts_of,
    hash_groups,
    in_split,
    kinds_of_judgement,
    taken,
    user_prompt,
)
from mrpo_tools.groups.facts import Ids, find, hash_keys, keys_of, numbered
from mrpo_tools.messages import Message, ToolCall
from mrpo_tools.pairing import count_doubted_labels, doubted_labels

TOOLS = '[{"type":"function","function":{"name":"add"}}]'


def made_up(count: int, seed: int = 0) -> list[Group]:
    """Groups of every kind: sizes, splits, judgements, repeated prompts, tools, more than ASCII."""
    rng = random.Random(seed)
    groups = []
    for number in range(count):
        scored, labelled = rng.random() < 0.7, rng.random() < 0.5
        responses = tuple(
            Response(
                f"☃ {number} {place}" * rng.randrange(3) + str(place),
                rng.choice([0.0, 1.5, -2.0]) if scored else None,
                rng.random() < 0.5 if labelled else None,
                rng.choice([None, "gpt"]),
                "hm" if rng.random() < 0.1 else None,
            )
            for place in range(rng.randrange(2, 6))
        )
        prompt = user_prompt(f"é {rng.randrange(count)}", rng.choice([None, "Be brief."]))
        split = rng.choice(["train", "test", None])
        tools = TOOLS if rng.random() < 0.1 else None
        groups.append(Group(prompt, responses, rng.choice([None, str(number)]), split, tools))
    calls = (ToolCall("add", '{"b":1,"a":2}', "c1"),)
    called = Response("", 1.0, True, tool_calls=calls)
    prompt = (Message("user", "1+2"), Message("assistant", "", tool_calls=calls),
              Message("tool", "3", tool_call_id="c1", name="add"))  # fmt: skip
    return [*groups, Group(prompt, (called, Response("3", 0.0, False)), split="train", tools=TOOLS)]


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return made_up(300)


@pytest.fixture(scope="module")
def mapped(groups, tmp_path_factory) -> MappedGroups:
    path = tmp_path_factory.mktemp("mapped") / "groups.arrow"
    with path.open("wb") as file:
        write_groups(file, groups, rows=64)
    return MappedGroups.of_file(path)


def test_a_mapped_group_is_the_group(groups, mapped):
    assert list(mapped) == groups
    assert [group.group_id for group in mapped[-3:]] == [group.group_id for group in groups[-3:]]
    assert mapped[-1] == groups[-1]
    with pytest.raises(IndexError):
        mapped[len(groups)]


def test_columns_say_what_the_groups_say(groups, mapped):
    """Each fact against the groups themselves, of all and of some in another order."""
    places = np.random.default_rng(0).permutation(len(groups))[:100]
    some = [groups[place] for place in places]
    for facts, of in ((mapped.facts, groups), (mapped.take(places).facts, some)):
        responses = [response for group in of for response in group.responses]
        assert facts.sizes.tolist() == [len(group.responses) for group in of]
        assert facts.splits.tolist() == [group.split for group in of]
        assert [*Ids(facts.group_keys)] == [group.group_id for group in of]
        assert [*Ids(facts.prompt_keys)] == [group.prompt_id for group in of]
        assert [*Ids(facts.response_keys)] == [key for g in of for key in g.response_ids]
        scores = [None if np.isnan(score) else score for score in facts.scores]
        assert scores == [response.score for response in responses]
        labels = [{1: True, 0: False, -1: None}[label] for label in facts.labels.tolist()]
        assert labels == [response.chosen for response in responses]
        lengths = [len(response.message.written.encode()) for response in responses]
        assert facts.num_bytes.tolist() == lengths
        assert facts.has_scores.tolist() == [group.has_scores for group in of]
        assert facts.has_labels.tolist() == [group.has_labels for group in of]
        assert facts.owners.tolist() == [g for g, group in enumerate(of) for _ in group.responses]
        columns = [n for group in of for n in range(len(group.responses))]
        assert facts.columns.tolist() == columns


@pytest.mark.parametrize("split", ["train", "test", "all", None])
def test_a_split_is_the_same_of_both(groups, mapped, split):
    expected = [group for group in groups if split in (None, "all") or group.split == split]
    for source in (groups, mapped):
        members = in_split(source, split)
        assert list(members) == expected
        assert len(members) == len(expected)
        digest = "\n".join(group.group_id for group in expected)
        assert hash_groups(members) == hashlib.sha256(digest.encode()).hexdigest()
        sorted_digest = "\n".join(sorted(group.group_id for group in expected))
        unordered = hash_groups(members, in_order=False)
        assert unordered == hashlib.sha256(sorted_digest.encode()).hexdigest()


def test_no_group_in_a_split_names_those_there_are(groups, mapped):
    messages = []
    for source in (groups, mapped):
        with pytest.raises(UsageError) as refused:
            in_split(source, "dev")
        messages.append(str(refused.value))
    count = sum(group.split is None for group in groups)
    assert messages[0] == messages[1]
    assert f"no split {count}" in messages[0]


def test_kinds_of_judgement_ask_the_judged_alone(groups):
    judged = [group for group in groups if group.has_scores]
    scored = [replace(group, responses=tuple(replace(r, chosen=None) for r in group.responses))
              for group in judged]  # fmt: skip
    unjudged = Group(user_prompt("?"), (Response("a"), Response("b")))
    assert kinds_of_judgement([*scored, unjudged]) == (True, False)
    labelled = Group(user_prompt("?"), (Response("a", chosen=True), Response("b", chosen=False)))
    assert kinds_of_judgement([*scored, labelled]) == (False, False)
    assert kinds_of_judgement([unjudged]) == (True, True)
    half = Group(user_prompt("?"), (Response("a", 1.0, True), Response("b", None, False)))
    assert kinds_of_judgement([half]) == (False, True)


def test_taken_groups_keep_their_order(groups, mapped):
    places = np.array([5, 2, 9])
    assert list(taken(groups, places)) == [groups[5], groups[2], groups[9]]
    assert list(taken(mapped, places[:0])) == []
    assert list(taken(taken(mapped, places), np.array([2, 0]))) == [groups[9], groups[5]]
    assert list(taken(mapped, places)) == [groups[5], groups[2], groups[9]]


@pytest.mark.parametrize("seed", range(5))
def test_doubted_labels_are_counted_as_group_by_group(seed):
    """In the order in which they are met, which a record keeps."""
    groups = made_up(60, seed)
    expected = Counter(doubt for group in groups for doubt in doubted_labels(group))
    counted = count_doubted_labels(facts_of(groups))
    assert list(counted.items()) == list(expected.items())
    assert len(counted) >= 2


half_ids = st.sampled_from(["0" * 16, "f" * 16, "00000000000000a1", "8000000000000000"])
ids = st.builds(lambda a, b: a + b, half_ids, half_ids)


@given(st.lists(ids, max_size=30), st.lists(ids, max_size=30))
def test_finding_is_what_a_dictionary_does(wanted, present):
    """Halves in common on purpose: the first of equal ids counts, whatever their halves."""
    at: dict[str, int] = {}
    for place, key in enumerate(present):
        at.setdefault(key, place)
    found = find(keys_of(wanted), keys_of(present)).tolist()
    assert found == [at.get(key, -1) for key in wanted]
    order: dict[str, int] = {}
    assert numbered(keys_of(present)).tolist() == [order.setdefault(k, len(order)) for k in present]


@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(0, 300))
def test_finding_among_many_is_what_a_dictionary_does(seed, here, there):
    """Ids without halves in common, with repetitions: the fast way."""
    rng = random.Random(seed)
    pool = [hashlib.sha256(str(rng.random()).encode()).hexdigest()[:32] for _ in range(200)]
    wanted, present = (rng.choices(pool, k=count) for count in (here, there))
    at: dict[str, int] = {}
    for place, key in enumerate(present):
        at.setdefault(key, place)
    assert find(keys_of(wanted), keys_of(present)).tolist() == [at.get(k, -1) for k in wanted]


def test_ids_survive_their_keys():
    texts = ["0" * 32, "f" * 32, "0123456789abcdef" * 2]
    assert [*Ids(keys_of(texts))] == texts
    assert hash_keys(keys_of(texts)) == hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert hash_keys(keys_of([])) == hashlib.sha256(b"").hexdigest()


def test_facts_of_no_groups():
    facts = facts_of([])
    assert (len(facts.sizes), len(facts.response_keys), len(facts.owners)) == (0, 0, 0)
