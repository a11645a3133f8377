"""A judge as a scorer: ratings of one answer, kept and used like any other score."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from fake_server import FakeServer, Judging, RefusedByServer
from stores import write_groups

from mrpo_tools.cache import Cache
from mrpo_tools.config import Project, ScoringJudge, parse
from mrpo_tools.errors import CacheStale, ServerError, UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.scoring import ensure_scores
from mrpo_tools.scoring.judge import judge_scorer
from mrpo_tools.scoring.named import current_scores, scorer_named

PATH = "/v1/chat/completions"
DATA = [
    Group(
        user_prompt(f"q{n}"),
        (Response("o" * (n + 1)), Response("o" * (n + 4) + "x")),
        split="train",
    )
    for n in range(5)
]


def by_length(_prompt: str, answer: str) -> int:
    return min(len(answer) + 1, 10)


@pytest.fixture(autouse=True)
def _here(here, monkeypatch):
    for name in ("MRPO_SERVER_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    write_groups(here / "data.jsonl", DATA)


def test_ratings_are_scores_and_are_asked_for_once(here, mrpo):
    with FakeServer({PATH: Judging(by_length)}) as server:
        line = f"score data.jsonl --judge {server.url}/v1#tiny --json"
        [first] = json.loads(mrpo(line).out)
        [again] = json.loads(mrpo(line).out)
        [dry] = json.loads(mrpo(f"{line} --dry-run").out)
        assert len(server.answered(PATH)) == 10
    assert (first["scorer"], first["scored"], again["reused"]) == ("tiny-rating", 10, 10)
    assert dry["missing"] == 0
    rows = json.loads(mrpo('sql "SELECT * FROM scores" --format json').out)
    texts = {key: each.content for group in DATA
             for key, each in zip(group.response_ids, group.responses, strict=True)}  # fmt: skip
    assert {row["response_id"]: row["score"] for row in rows} == {
        key: float(min(len(text) + 1, 10)) for key, text in texts.items()
    }
    assert all(row["num_tokens"] > 0 and "I looked" in row["reason"] for row in rows)
    [store] = Cache("cache").scorers()
    assert store.identity.fields["scorer"] == "judge"
    assert len(store.part_paths()) == 1
    shown = mrpo("data show data.jsonl --score tiny-rating").out
    assert "10" in shown


def test_the_projects_name_of_a_judge_counts_while_it_is_that_judge(here, mrpo):
    """Another template is another judge; so is another server, and a cache alone names none."""
    with FakeServer({PATH: Judging(by_length)}) as server:
        words = {"judge": f"{server.url}/v1#tiny", "concurrency": 2}
        Path("mrpo.yaml").write_text(yaml.safe_dump({"scorers": {"strict": words}}))
        mrpo("score data.jsonl")
        mrpo("score data.jsonl --judge strict")
        assert len(server.answered(PATH)) == 10
        named = parse(Project, {"scorers": {"strict": words}}, "project").scorers
        assert isinstance(named["strict"], ScoringJudge)
        cache = Cache("cache")
        assert current_scores(cache, "strict", named).name == "strict"
        mine = here / "mine.txt"
        mine.write_text("labels: 1-5\n---\n---\n{{prompt}}{{response}}")
        changed = {"strict": named["strict"].model_copy(update={"template": str(mine)})}
        with pytest.raises(CacheStale, match="has changed"):
            current_scores(cache, "strict", changed)
        with pytest.raises(UsageError, match="is a judge"):
            scorer_named("strict", {}, cache)


def test_what_is_no_rating_is_failed_with_the_reason_and_asked_again():
    def some(body):
        if "ooox" in body["messages"][-1]["content"]:
            return Judging(by_length, words=lambda _: "lovely!")(body)
        return Judging(by_length)(body)

    with FakeServer({PATH: some}) as server:
        words = ScoringJudge(judge=f"{server.url}/v1")
        summary = ensure_scores(judge_scorer("j", words), DATA, Cache("c"))
        assert summary.computed == {"ok": 5, "failed": 5}
        assert "unusable: lovely!" in summary.warnings[0]
        server.endpoints = {PATH: Judging(by_length)}
        summary = ensure_scores(judge_scorer("j", words), DATA, Cache("c"))
    assert (summary.reused, summary.computed) == (5, {"ok": 5})


def test_what_was_rated_before_a_server_failed_is_kept():
    asked = iter(range(100))

    def dying(body):
        if next(asked) >= 4:
            raise RefusedByServer(403, "no more")
        return Judging(by_length)(body)

    with FakeServer({PATH: dying}) as server:
        scorer = judge_scorer("j", ScoringJudge(judge=f"{server.url}/v1#tiny", concurrency=1))
        with pytest.raises(ServerError, match="no more"):
            ensure_scores(scorer, DATA, Cache("c"))
        server.endpoints = {PATH: Judging(by_length)}
        assert ensure_scores(scorer, DATA, Cache("c")).reused == 4


def test_a_rating_that_was_paid_is_on_the_disk_before_the_next_one_comes():
    """Each answer waits until those before it are; one at a time, so nothing else writes them."""
    seen = []

    def kept() -> int:
        stores = Cache("c").scorers() if Path("c").is_dir() else []
        return sum(len(store.keys()) for store in stores)

    def waiting(body):
        patience = time.monotonic() + 10
        while kept() < len(seen):
            if time.monotonic() > patience:
                raise RefusedByServer(403, "what was paid is not on the disk")
            time.sleep(0.01)
        seen.append(body)
        return Judging(by_length)(body)

    with FakeServer({PATH: waiting}) as server:
        words = ScoringJudge(judge=f"{server.url}/v1#tiny", concurrency=1)
        summary = ensure_scores(judge_scorer("j", words), DATA, Cache("c"))
    assert summary.computed == {"ok": 10}
    assert len(seen) == 10


def test_models_answer_for_themselves_and_a_dry_run_samples_nothing(
    here, mrpo, tiny_models, some_groups
):
    """A model's greedy answers against a file; they are kept as `mrpo generate` keeps them."""
    write_groups(here / "some.jsonl", [group.with_split("test") for group in some_groups])
    model, few = tiny_models["llama"], "--max-new-tokens 3 --limit 4 --dataset some.jsonl"

    def shorter(_prompt: str, first: str, second: str) -> str:
        return "tie" if first == second else "A" if len(first) < len(second) else "B"

    with FakeServer({PATH: Judging(shorter)}) as server:
        judge = f"--judge {server.url}/v1#tiny --repeats 0 --json"
        line = f"judge {model} {tiny_models['mistral']} {few} {judge}"
        [cost] = json.loads(mrpo(f"{line} --dry-run").out)
        assert cost["calls"] == 8
        assert not Path("cache/answers").exists()
        told = json.loads(mrpo(line).out)
        [after] = json.loads(mrpo(f"{line} --dry-run").out)
        assert after["reused"] == len(server.answered(PATH))
        assert len(list(Path("cache/answers").iterdir())) == 2
        words = f"{model} --split test --max-new-tokens 3 --dataset some.jsonl --limit 4"
        mrpo(f"generate {words} -o mine.jsonl")
        same = json.loads(mrpo(f"judge mine.jsonl {tiny_models['mistral']} {few} {judge}").out)
    assert told["contestants"] == ["llama", "mistral"]
    assert same["judges"][0]["bouts"][0]["win_rate"] == told["judges"][0]["bouts"][0]["win_rate"]
    assert same["judges"][0]["asked"] == 0
