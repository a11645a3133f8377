"""`mrpo judge` against judges of the tests' own, on a real HTTP server: what is asked, paid, told.

Answers are `NAME-QUALITY` and some padding; a rule-following judge prefers the higher quality.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import FAULTS, FakeServer, Judging, RefusedByServer, as_json, mixed

from mrpo_tools.cache import Cache
from mrpo_tools.errors import ServerError, UsageError
from mrpo_tools.evaluation.contest import bout_result, bouts_of
from mrpo_tools.evaluation.contestants import Entered
from mrpo_tools.evaluation.win_rates import keep_win_rates
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.judging import judge_of
from mrpo_tools.judging.ensure import ensure_verdicts
from mrpo_tools.judging.purse import Budget, Prices, budget_of
from mrpo_tools.judging.questions import question
from mrpo_tools.runs.outcomes import every_outcome

PATH = "/v1/chat/completions"
KEY = "sk-a-secret-0123456789"


def quality(answer: str) -> int:
    return int(answer.split("-")[1])


def by_rule(_prompt: str, first: str, second: str) -> str:
    one, other = quality(first), quality(second)
    return "tie" if one == other else "A" if one > other else "B"


def first_of_both(_prompt: str, _first: str, _second: str) -> str:
    return "A"


def coin(*texts: object) -> float:
    """In [0, 1), of the texts alone."""
    digest = hashlib.sha256(json.dumps(texts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def answers(path: Path, name: str, qualities, padding=lambda _: 0, **words) -> Path:
    """A file as `mrpo generate` writes it."""
    rows = [
        Group(
            user_prompt(f"q{number}"),
            (Response(f"{name}-{each}-{'x' * padding(number)}", model=name),),
            **words,
        ).as_dict()
        for number, each in enumerate(qualities)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judged(mrpo, server, *words: str, code: int = 0):
    """The JSON of a command in the working directory."""
    line = f"judge {' '.join(words)} --judge {server.url}/v1#tiny --json"
    printed = mrpo(line, code)
    return json.loads(printed.out) if code == 0 else printed


def questions_of(count: int) -> list:
    group = Group(user_prompt("q"), ())
    return [question(group, Response(f"a-{n}-"), Response(f"b-{n + 1}-")) for n in range(count)]


@pytest.fixture(autouse=True)
def _here(here, monkeypatch):
    for name in ("MRPO_SERVER_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_judge_that_follows_the_rule(here, mrpo):
    """5 wins, 2 ties (one of equal answers, not asked), 3 losses: (5 + 1) / 10."""
    a = answers(here / "a.jsonl", "s", [3, 3, 3, 3, 3, 2, 2, 1, 1, 1])
    b = answers(here / "b.jsonl", "s", [1, 1, 1, 1, 1, 2, 2, 3, 3, 3], lambda n: int(n == 5))
    with FakeServer({PATH: Judging(by_rule)}) as server:
        told = judged(mrpo, server, str(a), str(b), "--repeats 4")
        [bout] = told["judges"][0]["bouts"]
        assert len(server.answered(PATH)) == 9 * 2 + 4
        again = judged(mrpo, server, str(a), str(b), "--repeats 4")
        assert len(server.answered(PATH)) == 9 * 2 + 4  # nothing is paid twice
        table = mrpo(f"judge {a} {b} --judge {server.url}/v1#tiny --repeats 4").out
    assert (bout["wins"], bout["ties"], bout["losses"], bout["identical"]) == (5, 2, 3, 1)
    assert bout["win_rate"]["value"] == pytest.approx(0.6)
    assert bout["win_rate"]["low"] < 0.6 < bout["win_rate"]["high"]
    assert (bout["flips"], bout["asked_again"], bout["same_again"]) == (0, 4, 4)
    assert bout["first_shown"] == 0.5
    assert again["judges"][0]["asked"] == 0
    assert again["judges"][0]["bouts"] == [bout]
    assert "a.jsonl : b.jsonl" in table
    assert "asked once more, the judge said the same 4 of 4 times" in table
    assert "22 verdicts were there, 0 asked now" in table


def test_a_judge_for_the_first_place_flips_always(here, mrpo):
    a = answers(here / "a.jsonl", "a", range(12))
    b = answers(here / "b.jsonl", "b", range(12))
    with FakeServer({PATH: Judging(first_of_both)}) as server:
        [bout] = judged(mrpo, server, str(a), str(b))["judges"][0]["bouts"]
    assert (bout["flips"], bout["ties"], bout["flip_share"]) == (12, 12, 1.0)
    assert bout["win_rate"]["value"] == 0.5
    assert bout["first_shown"] == 1.0


def test_a_win_takes_both_orders(here, mrpo):
    """One order says A, the other neither: a tie, but no flip."""
    a, b = (answers(here / f"{name}.jsonl", name, range(5)) for name in "ab")

    def timid(_prompt: str, first: str, _second: str) -> str:
        return "A" if first.startswith("a") else "tie"

    with FakeServer({PATH: Judging(timid)}) as server:
        [bout] = judged(mrpo, server, str(a), str(b))["judges"][0]["bouts"]
    assert (bout["wins"], bout["ties"], bout["flips"]) == (0, 5, 0)


def test_a_judge_that_likes_length_and_the_rate_at_equal_lengths(here, mrpo):
    """A's answers are longer, and no better: the judge's logit is 0.012 a character, 0 at equal
    lengths. The plain rate calls A better; the controlled one does not, and finds the slope."""
    rng = random.Random(7)
    more = [rng.randint(-60, 200) for _ in range(300)]
    a = answers(here / "a.jsonl", "a", [1] * 300, lambda n: 60 + max(more[n], 0))
    b = answers(here / "b.jsonl", "b", [1] * 300, lambda n: 60 - min(more[n], 0))

    def long(_prompt: str, first: str, second: str) -> str:
        """The same in both orders: drawn by the pair, not by their order."""
        by_name = sorted((first, second))
        logit = 0.012 * (len(by_name[0]) - len(by_name[1]))
        wins = coin(_prompt, *by_name) < 1 / (1 + math.exp(-logit))
        return "A" if (by_name[0] == first) == wins else "B"

    with FakeServer({PATH: Judging(long)}) as server:
        [bout] = judged(mrpo, server, str(a), str(b), "--concurrency 4")["judges"][0]["bouts"]
    assert bout["win_rate"]["low"] > 0.55
    assert bout["length_controlled"]["low"] < 0.5 < bout["length_controlled"]["high"]
    slope, scale = bout["length_slope"], bout["length_scale"]
    assert abs(slope - 0.012 * scale) < 3 * bout["length_slope_error"]
    assert bout["longer"] == pytest.approx(sum(more) / 300)


def test_parts_that_the_names_of_rows_tell_apart(here):
    """Math: won, lost; Safety: won, won."""
    names = ("Math/1", "Safety/1", "Math/2", "Safety/2")
    groups = [Group(user_prompt(name), (), source_id=name) for name in names]
    said = [[Response(f"a-{n}-") for n in (3, 3, 1, 3)], [Response("b-2-")] * 4]
    entry = Entered(["one", "other"], groups, said, {})
    [bout] = bouts_of(entry, 0)
    with FakeServer({PATH: Judging(by_rule)}, models=("tiny",)) as server:
        judge = judge_of(f"{server.url}/v1#tiny")
        rows = ensure_verdicts(judge, bout.questions, Cache(here / "cache")).rows
    parts = {each.part: each.win_rate.value for each in bout_result(bout, entry.names, rows).parts}
    assert parts == {"Math": 0.5, "Safety": 1.0}


def test_win_rates_are_outcomes_of_runs(here, mrpo):
    """Both sides of a bout, ties half; a contestant that is no run gets no file; what another judge
    said stays beside."""
    words = ("runs/one", "runs/other", "base.jsonl")
    for word in words[:2]:
        (here / word).mkdir(parents=True)
        for name in ("run.json", "recipe.yaml"):
            (here / word / name).write_text("{}")
    groups = [Group(user_prompt(f"q{n}"), ()) for n in range(10)]
    qualities = ([3] * 6 + [1] * 4, [2] * 10, [0] * 10)
    said = [[Response(f"{name}-{quality}-") for quality in own]
            for name, own in zip("abc", qualities, strict=True)]  # fmt: skip
    entry = Entered(["one", "other", "base.jsonl"], groups, said, {})
    bouts = bouts_of(entry, 0)
    questions = [each for bout in bouts for each in bout.questions]
    cache = Cache(here / "cache")
    for model in ("first", "second"):
        with FakeServer({PATH: Judging(by_rule)}, models=(model,)) as server:
            asked = ensure_verdicts(judge_of(f"{server.url}/v1#{model}"), questions, cache)
            files = keep_win_rates(words, entry, bouts, [asked])
    assert [file.parent.parent.name for file in files] == ["one", "other"]
    record = every_outcome(here / "runs/other", "test")
    rates = {each.scorer: each for each in record.outcomes}
    assert {each.kind for each in record.outcomes} == {"judge"}
    assert rates["second-pairwise against one"].mean == pytest.approx(0.4)
    assert rates["first-pairwise against one"].mean == pytest.approx(0.4)
    assert rates["second-pairwise against base.jsonl"].mean == 1.0
    mine = every_outcome(here / "runs/one", "test").outcomes[0]
    assert mine.mean == pytest.approx(0.6)
    low, high = rates["second-pairwise against one"].intervals["mean"]
    assert mine.intervals["mean"] == pytest.approx((1 - high, 1 - low))
    assert low < 0.4 < high


def test_where_length_decides_everything_no_rate_at_equal_lengths_is_told(here, mrpo):
    a = answers(here / "a.jsonl", "a", [1] * 30, lambda n: n)
    b = answers(here / "b.jsonl", "b", [1] * 30, lambda n: 29 - n)

    def longest(_prompt: str, first: str, second: str) -> str:
        return "A" if len(first) > len(second) else "B"

    with FakeServer({PATH: Judging(longest)}) as server:
        [bout] = judged(mrpo, server, str(a), str(b))["judges"][0]["bouts"]
        table = mrpo(f"judge a.jsonl b.jsonl --judge {server.url}/v1#tiny").out
    assert bout["length_controlled"]["value"] is None
    assert "no win rate at equal lengths" in table


def test_a_judge_that_does_not_know_its_own_mind(here, mrpo):
    """It tosses a coin for each request: asked once more, it says the same about half the time."""
    a, b = (answers(here / f"{name}.jsonl", name, range(60)) for name in "ab")

    def fickle(prompt: str, first: str, second: str, seed: int) -> str:
        return "A" if coin(prompt, first, second, seed) < 0.5 else "B"

    with FakeServer({PATH: Judging(fickle)}) as server:
        words = (str(a), str(b), "--repeats 60", "--concurrency 4")
        [bout] = judged(mrpo, server, *words)["judges"][0]["bouts"]
    seeds = Counter(body["seed"] for body in server.answered(PATH))
    assert seeds == {0: 120, 1: 60}
    assert bout["asked_again"] == 60
    assert 15 < bout["same_again"] < 45
    assert 15 < bout["flips"] < 45


def test_three_contestants_have_strengths_and_two_judges_a_kappa(here, mrpo):
    """c beats b beats a where the qualities say so; the second judge says the opposite."""
    rng = random.Random(1)
    draw = [[rng.randint(0, 9) + lift for _ in range(40)] for lift in (0, 2, 4)]
    a, b, c = (answers(here / f"{name}.jsonl", name, each)
               for name, each in zip("abc", draw, strict=True))  # fmt: skip

    def contrary(prompt: str, first: str, second: str) -> str:
        return {"A": "B", "B": "A", "tie": "tie"}[by_rule(prompt, first, second)]

    with (
        FakeServer({PATH: Judging(by_rule)}) as one,
        FakeServer({PATH: Judging(contrary)}) as other,
    ):
        line = f"judge {a} {b} {c} --repeats 0 --judge {one.url}/v1#tiny"
        told = json.loads(mrpo(f"{line} --judge {other.url}/v1#tiny --json").out)
        table = mrpo(line).out
    first, second = told["judges"]
    assert [row["name"] for row in first["strengths"]] == ["c.jsonl", "b.jsonl", "a.jsonl"]
    assert [row["name"] for row in second["strengths"]] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    values = {row["name"]: row["strength"]["value"] for row in first["strengths"]}
    turned = {row["name"]: -row["strength"]["value"] for row in second["strengths"]}
    assert values == pytest.approx(turned)
    assert sum(values.values()) == pytest.approx(0)
    assert "Bradley-Terry" in table
    pairs = [(1 if x > y else -1 if x < y else 0)
             for one, two in itertools.combinations(draw, 2)
             for x, y in zip(one, two, strict=True)]  # fmt: skip
    shares = Counter(pairs)
    same = shares[0] / len(pairs)
    chance = (2 * shares[1] * shares[-1] + shares[0] ** 2) / len(pairs) ** 2
    assert told["two_judges"]["agreement"] == pytest.approx(same)
    assert told["two_judges"]["kappa"] == pytest.approx((same - chance) / (1 - chance))


def test_parts_of_the_data_and_prompts_that_one_side_lacks(here, mrpo):
    a = answers(here / "a.jsonl", "a", [2] * 6, split="train")
    answers(here / "b.jsonl", "b", [1, 1, 3, 3, 1])
    rows = [json.loads(line) | {"split": "test"} for line in a.read_text().splitlines()[3:]]
    a.write_text("\n".join([*a.read_text().splitlines()[:3], *map(json.dumps, rows)]))
    with FakeServer({PATH: Judging(by_rule)}) as server:
        line = f"judge a.jsonl b.jsonl --judge {server.url}/v1#tiny"
        printed = mrpo(f"{line} --json")
        [bout] = json.loads(printed.out)["judges"][0]["bouts"]
        only = judged(mrpo, server, "a.jsonl", "b.jsonl", "--split test")
        few = judged(mrpo, server, "a.jsonl", "b.jsonl", "--limit 2")
    assert "1 prompts have no answer by b.jsonl" in printed.err
    parts = {name: each["win_rate"]["value"] for name, each in bout["parts"].items()}
    assert parts == {"train": pytest.approx(2 / 3), "test": 0.5}
    assert (only["prompts"], few["prompts"]) == (2, 2)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ({"words": lambda label: f"I cannot decide on {label}{{"}, "unusable"),
        ({"finish_reason": "length"}, "length"),
        ({"finish_reason": "content_filter"}, "refused"),
        ({"message": {"content": None, "refusal": "no"}}, "refused"),
    ],
)
def test_what_is_no_verdict_is_counted_and_asked_again_only_where_it_may_help(
    here, mrpo, words, status
):
    a, b = (answers(here / f"{name}.jsonl", name, [2 if name == "a" else 1] * 4) for name in "ab")
    with FakeServer({PATH: Judging(by_rule, **words)}) as server:
        [bout] = judged(mrpo, server, str(a), str(b), "--repeats 0")["judges"][0]["bouts"]
        assert bout["without"] == {status: 4}
        assert bout["win_rate"]["value"] is None
        assert len(server.answered(PATH)) == 8
        server.endpoints = {PATH: Judging(by_rule)}
        [bout] = judged(mrpo, server, str(a), str(b), "--repeats 0")["judges"][0]["bouts"]
    assert bout["wins"] == (4 if status == "unusable" else 0)
    assert len(server.answered(PATH)) == (16 if status == "unusable" else 8)


@pytest.mark.parametrize("words", [{"json_object": False}, {"limit": "max_completion_tokens"}])
def test_a_server_that_knows_fewer_words_is_asked_in_them(words):
    with FakeServer({PATH: Judging(by_rule, **words)}) as server:
        said = ensure_verdicts(judge_of(f"{server.url}/v1"), questions_of(6), Cache("c"))
    assert {row.label for row in said.rows.values()} == {"B"}
    assert len(server.answered(PATH)) == 6


def test_a_server_that_will_not_judge_some_content_refuses_that_alone():
    """A 400 for one question after others were answered; at a first question its words decide."""

    def some(body):
        if "a-3-" in body["messages"][-1]["content"]:
            raise RefusedByServer(400, "flagged by the content management policy")
        return Judging(by_rule)(body)

    with FakeServer({PATH: some}) as server:
        judge = judge_of(f"{server.url}/v1#tiny", concurrency=1)
        said = ensure_verdicts(judge, questions_of(5), Cache("c"))
        alone = ensure_verdicts(judge, questions_of(5)[3:4], Cache("d"))
    statuses = Counter(row.status for row in said.rows.values())
    assert statuses == {"ok": 4, "refused": 1}
    assert [row.status for row in alone.rows.values()] == ["refused"]
    assert "policy" in next(iter(alone.rows.values())).reasoning


def test_faults_of_every_kind_cost_nothing_twice_and_tell_no_key(tmp_path, monkeypatch, capsys):
    """Errors, 429 with Retry-After, cut JSON, slow answers, restarts; replies that tell the key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def tells(label: str) -> str:
        return json.dumps({"reasoning": f"your key is {KEY}", "verdict": label})

    asked = questions_of(60)
    with FakeServer(
        {PATH: Judging(by_rule, words=tells)}, faults=mixed(seed=5), key=KEY, late=0.6
    ) as server:
        judge = judge_of(f"{server.url}/v1#tiny", concurrency=8)
        quick = replace(judge.server, first_wait=0.01, timeout=0.4, attempts=20)
        said = ensure_verdicts(replace(judge, server=quick), asked, Cache("c"))
    assert set(FAULTS) < server.happened()
    assert [said.rows[each.verdict_id].label for each in asked] == ["B"] * 60
    assert len(server.answered(PATH)) == 60
    bodies = [json.dumps(body) for body in server.answered(PATH)]
    assert len(set(bodies)) == 60
    out = capsys.readouterr()
    told = out.out + out.err + repr(said) + json.dumps(judge.words)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in told
    assert KEY.encode() not in kept
    assert all("***" in row.reasoning for row in said.rows.values())


def test_requests_that_come_to_nothing_end_the_command_and_what_was_said_is_kept():
    answered = itertools.count()

    def dying(body):
        if next(answered) >= 3:
            raise RefusedByServer(403, "quota is used up")
        return Judging(by_rule)(body)

    with FakeServer({PATH: dying}) as server:
        judge = judge_of(f"{server.url}/v1#tiny", concurrency=1)
        with pytest.raises(ServerError, match="quota is used up"):
            ensure_verdicts(judge, questions_of(20), Cache("c"))
        server.endpoints = {PATH: Judging(by_rule)}
        said = ensure_verdicts(judge, questions_of(20), Cache("c"))
    assert (said.reused, said.asked) == (3, 17)


def test_another_judge_template_or_length_is_another_identity(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("labels: A, B\n---\n---\n{{prompt}}{{first}}{{second}}")
    where = "http://h:1/v1#m"
    judges = [
        judge_of(where), judge_of("http://h:2/v1#m"), judge_of("http://h:1/v1#n"),
        judge_of(where, "mrpo"), judge_of(where, str(mine)), judge_of(where, max_tokens=7),
    ]  # fmt: skip
    assert len({each.identity.hash for each in judges}) == 6
    same = judge_of("https://H:1/v1/#m", concurrency=3, timeout=1.0)
    assert same.identity.hash == judges[0].identity.hash


def test_two_identities_of_a_judge_are_told_apart_by_name(here, mrpo):
    with FakeServer({PATH: Judging(by_rule)}) as server:
        stores = [
            ensure_verdicts(
                judge_of(f"{server.url}/v1#tiny", max_tokens=most), questions_of(1), Cache("cache")
            ).store
            for most in (8, 9)
        ]
    told = json.loads(mrpo(f"cache diff {stores[0]} {stores[1]} --json").out)
    assert told == [{"field": "max_tokens", str(stores[0]): 8, str(stores[1]): 9}]
    assert f"{stores[0].name}@" in mrpo(f"cache diff {stores[0].name} {stores[1]}", 3).err
    assert "no verdicts" in mrpo(f"cache diff {stores[0].name}@00 {stores[1]}", 3).err


def test_a_budget_of_calls_stops_there_and_the_next_command_goes_on():
    with FakeServer({PATH: Judging(by_rule)}) as server:
        judge = judge_of(f"{server.url}/v1#tiny")
        said = ensure_verdicts(judge, questions_of(30), Cache("c"), Budget(calls=11))
        assert (said.asked, said.unpaid) == (11, 19)
        assert len(server.answered(PATH)) == 11
        said = ensure_verdicts(judge, questions_of(30), Cache("c"))
    assert (said.reused, said.asked, said.unpaid) == (11, 19, 0)
    assert len(server.answered(PATH)) == 30


def test_a_budget_of_money_is_not_exceeded_whatever_is_on_its_way():
    prices = Prices(1000.0, 5000.0)
    with FakeServer({PATH: Judging(by_rule)}) as server:
        judge = judge_of(f"{server.url}/v1#tiny", max_tokens=20)
        budget = budget_of("6.5usd", prices)
        said = ensure_verdicts(judge, questions_of(60), Cache("c"), budget, prices)
        bodies = server.answered(PATH)
    cost = sum(
        sum(len(turn["content"]) for turn in body["messages"]) // 4 * 1000 / 1e6 + 10 * 5000 / 1e6
        for body in bodies
    )
    assert 4.0 < cost <= 6.5
    assert said.purse.spent == pytest.approx(cost)
    assert said.unpaid == 60 - len(bodies)


def test_two_judges_share_a_budget(here, mrpo):
    a, b = (answers(here / f"{name}.jsonl", name, [2 if name == "a" else 1] * 8) for name in "ab")
    with FakeServer({PATH: Judging(by_rule)}, models=("one", "other")) as server:
        line = f"judge {a} {b} --repeats 0 --budget 20 --json --judge {server.url}/v1#one"
        told = json.loads(mrpo(f"{line} --judge {server.url}/v1#other").out)
        asked = Counter(body["model"] for body in server.answered(PATH))
    assert asked == {"one": 16, "other": 4}
    assert [each["unpaid"] for each in told["judges"]] == [0, 12]
    assert told["judges"][1]["bouts"][0]["without"]["not asked"] >= 4


@pytest.mark.parametrize("word", ["many", "-3", "2.5", "1.5usd"])
def test_a_budget_that_cannot_be_meant_is_refused(word):
    with pytest.raises(UsageError, match="--budget"):
        budget_of(word, None)


def test_a_dry_run_asks_nothing_and_counts(here, mrpo):
    a, b = (answers(here / f"{name}.jsonl", name, range(5)) for name in "ab")
    with FakeServer({PATH: Judging(by_rule)}) as server:
        words = (str(a), str(b), "--dry-run", "--price-in 2", "--price-out 8", "--repeats 3")
        [cost] = judged(mrpo, server, *words)
        assert server.requests == []
        judged(mrpo, server, str(a), str(b), "--repeats 3")
        [after] = judged(mrpo, server, *words)
        told = mrpo(f"judge a.jsonl b.jsonl --dry-run --judge {server.url}/v1#tiny").out
        bodies = server.answered(PATH)
    counted = sum(len(turn["content"]) for body in bodies for turn in body["messages"]) / 4
    assert cost["calls"] == len(bodies) == 13
    assert cost["prompt_tokens"] == pytest.approx(counted, rel=0.02)
    assert cost["price"] == pytest.approx((2 * cost["prompt_tokens"] + 8 * 150 * 13) / 1e6)
    assert (after["calls"], after["reused"]) == (0, 13)
    assert "nothing was asked" in told


def test_verdicts_in_sql_and_looked_after_with_the_cache(here, mrpo):
    a, b = (answers(here / f"{name}.jsonl", name, [2 if name == "a" else 1] * 3) for name in "ab")
    with FakeServer({PATH: Judging(by_rule)}) as server:
        judged(mrpo, server, str(a), str(b), "--repeats 1")
    query = (
        "SELECT judge, label, repeat, preference, reasoning FROM verdicts ORDER BY label, repeat"
    )
    rows = json.loads(mrpo(f'sql "{query}" --format json').out)
    assert Counter((row["label"], row["preference"]) for row in rows if not row["repeat"]) == {
        ("A", 1.0): 3,
        ("B", -1.0): 3,
    }
    assert {row["judge"] for row in rows} == {"tiny-pairwise"}
    assert rows[0]["reasoning"] == "I looked, and A it is"
    assert [row["ok"] for row in json.loads(mrpo("cache verify --json").out)["verdicts"]] == [7]
    assert "tiny-pairwise" in mrpo("cache status").out
    part = next(here.glob("cache/verdicts/tiny-pairwise-*/part-*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert "hash" in mrpo("cache verify", 3).err
    mrpo("cache repair")
    assert not part.exists()


def test_a_file_with_answers_of_several_models_must_say_whose(here, mrpo):
    group = Group(user_prompt("q"), (Response("u-1-", model="untrained"),
                                     Response("t-2-", model="trained")))  # fmt: skip
    Path("both.jsonl").write_text(json.dumps(group.as_dict()) + "\n")
    line = "judge both.jsonl both.jsonl#untrained --judge http://h/v1#m"
    assert "trained, untrained" in mrpo(line, 2).err
    with FakeServer({PATH: Judging(by_rule)}) as server:
        told = judged(mrpo, server, "both.jsonl#trained", "both.jsonl#untrained")
    assert told["judges"][0]["bouts"][0]["wins"] == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("judge a.jsonl --judge http://h/v1#m", "two contestants"),
        ("judge a.jsonl a.jsonl --judge http://h/v1#m", "named twice"),
        ("judge a.jsonl bad.jsonl --judge http://h/v1#m", "bad.jsonl:1"),
        ("judge a.jsonl b.jsonl --judge http://k:y@h/v1#m", "would be shown"),
        ("judge a.jsonl b.jsonl --judge http://h/v1#m --judge http://h/v1#m", "named twice"),
        ("judge a.jsonl b.jsonl --judge http://h/v1#m --price-in 3", "two sides"),
        ("judge a.jsonl other.jsonl --judge http://h/v1#m", "no prompt"),
        ("judge a.jsonl b.jsonl --judge http://h/v1#m --template rating", "rates one"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(here, mrpo, line, why):
    for name in "ab":
        answers(here / f"{name}.jsonl", name, [1, 2])
    Path("bad.jsonl").write_text('{"prompt": 3}\n')
    other = Group(user_prompt("else"), (Response("o-1-"),))
    Path("other.jsonl").write_text(json.dumps(other.as_dict()) + "\n")
    assert why in mrpo(line, 2).err


CHILD = """
import sys
from test_judge import questions_of
from mrpo_tools.cache import Cache
from mrpo_tools.judging import judge_of
from mrpo_tools.judging.ensure import ensure_verdicts
ensure_verdicts(judge_of(sys.argv[1], concurrency=8), questions_of(int(sys.argv[2])), Cache("c"))
"""


class Gate:
    """Lets so many questions through and holds the rest; those of a dead asker go unanswered."""

    def __init__(self) -> None:
        self.left, self.asker, self.turn = 0, 0, threading.Condition()

    def next_asker(self) -> None:
        with self.turn:
            self.left, self.asker = 0, self.asker + 1
            self.turn.notify_all()

    def open(self, count: int) -> None:
        with self.turn:
            self.left = count
            self.turn.notify_all()

    def __call__(self, body):
        with self.turn:
            asker = self.asker
            self.turn.wait_for(lambda: self.left > 0 or self.asker > asker)
            if self.asker > asker:
                raise RefusedByServer(503, "nobody listens")
            self.left -= 1
        return Judging(by_rule)(body)


def killed_and_going_on(count: int, kills: int) -> None:
    """SIGKILL whenever another share was answered and nothing more is: each is paid once.

    The server answers so many, and waits. What it answered must be on the disk by then, though
    nothing further happens: that is waited for, and then the process dies in the middle of its
    other requests, which were not answered.
    """
    gate, share = Gate(), count // (kills + 1)
    here = {"PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, *sys.path)))}
    with FakeServer({PATH: gate}) as server:
        words = [sys.executable, "-c", CHILD, f"{server.url}/v1#tiny", str(count)]
        store = None
        for number in range(1, kills + 1):
            child = subprocess.Popen(words, env={**os.environ, **here})
            gate.open(share)
            patience = time.monotonic() + 120
            while store is None or len(store.keys()) < number * share:
                assert child.poll() is None
                assert time.monotonic() < patience
                time.sleep(0.02)
                cache = Cache("c")
                store = next(iter(cache.judges()), None) if cache.path.is_dir() else None
            child.send_signal(signal.SIGKILL)
            child.wait()
            gate.next_asker()
        gate.open(count)
        subprocess.run(words, env={**os.environ, **here}, check=True)
        answered = Counter(json.dumps(body) for body in server.answered(PATH))
    assert len(answered) == count
    assert set(answered.values()) == {1}
    [store] = Cache("c").judges()
    assert store.count_by_status()["ok"] == count
    assert len(store.part_paths()) <= 8


def test_killed_in_between_each_verdict_is_paid_once():
    killed_and_going_on(200, kills=2)


@pytest.mark.long
def test_two_thousand_verdicts_killed_again_and_again_each_paid_once():
    killed_and_going_on(2000, kills=7)


def test_replies_as_they_should_be_are_json():
    assert json.loads(as_json("A"))["verdict"] == "A"
