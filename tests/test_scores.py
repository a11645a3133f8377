"""Stored scores: written once, whoever is killed; which of them count, in every command."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from stores import said, write_groups

from mrpo_tools.cache import Cache, ScoreRow, WriterRecord, upkeep
from mrpo_tools.cache.parts import SCORES
from mrpo_tools.config import Project, Reference, ScoringRule, parse
from mrpo_tools.errors import CacheDamaged, CacheMissing, CacheStale, UsageError
from mrpo_tools.groups import Group, Response, user_prompt
from mrpo_tools.maths.noise import Noise
from mrpo_tools.references.identity import Identity
from mrpo_tools.runs.run import load_run
from mrpo_tools.scoring import ensure_scores, marks_of, with_scores
from mrpo_tools.scoring.beside import beside
from mrpo_tools.scoring.named import SCORES_OF_DATA, current_scores, scorer_named, scorer_of
from mrpo_tools.scoring.rules import Rule, load_rule
from mrpo_tools.sql import open_sql
from mrpo_tools.training.prepare import prepare
from mrpo_tools.training.train import train

RULES = """
def vowels(messages, answer):
    return float(sum(letter in "aeiou" for letter in answer))

def length(messages, answer):
    return float(len(answer))

def picky(messages, answer):
    if "x" in answer:
        raise KeyError("no x")
    return 1.0
"""


@pytest.fixture
def rules(here) -> str:
    """A module of rules in the working directory; every test's has a name of its own."""
    name = f"score_rules_{here.parent.name.replace('-', '_')}_{here.name}"
    (here / f"{name}.py").write_text(RULES)
    return name


def vowels(content: str) -> float:
    return float(sum(letter in "aeiou" for letter in content))


def group(*contents: str, prompt: str = "q", split: str | None = "train", **judged) -> Group:
    return Group(user_prompt(prompt), tuple(Response(text, **judged) for text in contents),
                 split=split)  # fmt: skip


class Counted:
    """A rule that counts its calls, and may stop at one of them."""

    def __init__(self, stop_at: int = -1) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, messages, answer: str) -> float:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return vowels(answer)


DATA = [group("aeiou", "b", prompt=f"q{n}") for n in range(10)]


def test_rows_come_back_and_bad_ones_are_refused(tmp_path):
    store = Cache(tmp_path / "c").score_store("judge", Identity({"scorer": "made up"}))
    rows = [
        ScoreRow("r1", "p", 1 / 3), ScoreRow("r2", "p", None, "overlong", 900),
        ScoreRow("r3", "p", None, "failed", reason="why"), ScoreRow("r4", "p", -2.5, "ok", 7, True),
    ]  # fmt: skip
    store.append(rows, WriterRecord(scorer={"rule": "m:f"}))
    read = [ScoreRow(**values) for values in store.table().to_pylist()]
    assert sorted(read, key=lambda row: row.response_id) == rows
    assert store.recorded_scorer() == {"rule": "m:f"}
    assert store.count_by_status() == {"ok": 2, "overlong": 1, "nonfinite": 0, "failed": 1}
    for bad in (
        ScoreRow("r", "p", 1.0, "overlong"), ScoreRow("r", "p", None), ScoreRow("r", "p", 1.0, "?"),
        ScoreRow("r", "p", float("nan")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="status"):
            SCORES.table([bad])


def test_only_missing_responses_are_scored(tmp_path):
    """Interrupted, resumed, repeated, and with one more response: each is scored once."""
    cache, rule = Cache(tmp_path / "c"), Counted(stop_at=7)
    scorer = Rule("m:f", rule, "one")
    with pytest.raises(KeyboardInterrupt):
        ensure_scores(scorer, DATA, cache)
    rule.stop_at = -1
    summary = ensure_scores(scorer, DATA, cache)
    assert (summary.reused, summary.computed) == (7, {"ok": 13})
    assert rule.calls == 20
    more = [*DATA, group("aeiou", "new", prompt="q3")]
    assert ensure_scores(scorer, more, cache).computed == {"ok": 1}
    keys = [key for each in more for key in each.response_ids]
    expected = [vowels(response.content) for each in more for response in each.responses]
    assert summary.store.scores_of(keys).score == expected
    assert summary.store.table().num_rows == len(set(keys))
    again = ensure_scores(Rule("m:f", rule, "another version"), DATA, cache)
    assert again.computed == {"ok": 20}
    assert len(cache.scorers()) == 2


def test_a_kill_loses_a_part_and_nothing_else(tmp_path):
    """SIGKILL while a slow rule scores 60 responses in parts of 10."""
    script = """
        import sys, time
        from mrpo_tools.cache import Cache
        from mrpo_tools.groups import Group, Response, user_prompt
        from mrpo_tools.scoring import ensure_scores
        from mrpo_tools.scoring.rules import Rule

        def slow(messages, answer):
            print("scored", flush=True)
            time.sleep(float(sys.argv[2]))
            return float(len(answer))

        data = [Group(user_prompt(f"q{n}"), (Response("a"), Response("bb"))) for n in range(30)]
        ensure_scores(Rule("m:f", slow, "one"), data, Cache(sys.argv[1]), part_rows=10)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "c")]
    with subprocess.Popen([*command, "0.005"], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(33):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    [store] = Cache(tmp_path / "c").scorers()
    kept = store.table().num_rows
    assert 33 - 10 <= kept < 60
    result = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert result.stdout.count("scored") == 60 - kept
    assert store.table().num_rows == 60
    assert sum(part.table.num_rows for part in store.parts()) == 60
    assert upkeep.damaged(Cache(tmp_path / "c")) == []


def test_damage_is_named_and_mended(tmp_path, capsys):
    cache, scorer = Cache(tmp_path / "c"), Rule("m:f", Counted(), "one")
    store = ensure_scores(scorer, DATA, cache).store
    cache.save_groups("some", DATA)
    [path] = store.part_paths()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    at = ("--cache", str(cache.path))
    assert path.name in said(capsys, "cache", "verify", *at, code=3)
    assert path.name in said(capsys, "sql", "SELECT * FROM scores", *at, code=3)
    with pytest.raises(CacheDamaged, match=path.name):
        with_scores(DATA, store)
    assert "removed" in said(capsys, "cache", "repair", *at)
    assert ensure_scores(scorer, DATA, cache).computed == {"ok": 20}
    store.identity_path.unlink()
    assert "restored from a part" in said(capsys, "cache", "repair", *at)
    assert ensure_scores(scorer, DATA, cache).reused == 20
    assert "m.f" in said(capsys, "cache", "verify", *at)
    assert [(row["scorer"], row["rows"], row["coverage"][0]["ok"])
            for row in json.loads(said(capsys, "cache", "status", "--json", *at))] == [
        ("m.f", 20, 20)
    ]  # fmt: skip
    assert upkeep.foreign(cache) == []


def test_two_scores_of_a_response(tmp_path, capsys):
    """The earliest counts; a difference beyond the noise that was measured is told."""
    cache = Cache(tmp_path / "c")
    store = cache.score_store("rm", Identity({"scorer": "made up", "dtype": "float32"}))
    store.append([ScoreRow(f"r{n}", "p", 20.0) for n in range(3)])
    store.append([ScoreRow("r0", "p", 20.0 + 1.9e-4), ScoreRow("r1", "p", 20.0 + 2.1e-4)])
    assert [each.response_id for each in upkeep.disagreements(store)] == ["r1"]
    assert "rm@" in said(capsys, "cache", "verify", "--cache", str(cache.path), code=3)
    store.append([ScoreRow("r2", "p", 20.0)], WriterRecord(noise=Noise(rms=0.01)))
    assert upkeep.disagreements(store) == []
    upkeep.compact(cache)
    assert store.scores_of(["r0", "r1", "r2"]).score == [20.0] * 3


def test_what_failed_is_asked_again(here, rules, capsys):
    """The reason is kept; once there is a score, that counts, in SQL and after a merge too."""
    data = [group("plain", "fox", prompt="q")]
    cache = Cache("cache")
    summary = ensure_scores(load_rule(f"{rules}:picky"), data, cache)
    assert summary.computed == {"ok": 1, "failed": 1}
    assert "KeyError" in summary.warnings[0]
    assert with_scores(data, summary.store)[1] == {"no score: failed": 1}
    again = ensure_scores(load_rule(f"{rules}:picky"), data, cache)
    assert (again.reused, again.computed) == (1, {"failed": 1})
    key = data[0].response_ids[1]
    summary.store.append([ScoreRow(key, data[0].prompt_id, 4.0)])
    assert summary.store.scores_of([key]).score == [4.0]
    assert upkeep.disagreements(summary.store) == []
    with open_sql(cache.path) as database:
        query = "SELECT scorer, score FROM scores WHERE response_id = $key"
        rows = database.query(query, {"key": key}).to_pylist()
    assert rows == [{"scorer": summary.store.name, "score": 4.0}]
    upkeep.compact(cache)
    assert summary.store.scores_of([key]).score == [4.0]
    assert ensure_scores(load_rule(f"{rules}:picky"), data, cache).reused == 2
    with pytest.raises(UsageError, match="KeyError"):
        marks_of(load_rule(f"{rules}:picky"), data)


def test_groups_with_scores(tmp_path):
    """Scores replace scores and labels; what has none is left out; a missing cell is an error."""
    cache = Cache(tmp_path / "c")
    store = cache.score_store("rm", Identity({"scorer": "made up"}))
    labelled = group("a", "b", "c", score=9.0, chosen=True)
    alone = group("d", prompt="other")
    keys = [*labelled.response_ids, *alone.response_ids]
    numbers = [0.5, None, -1.0, None]
    rows = [ScoreRow(key, "p", number, "ok" if number is not None else "overlong")
            for key, number in zip(keys, numbers, strict=True)]  # fmt: skip
    store.append(rows[:3], WriterRecord(scorer={"model": "m"}))
    with pytest.raises(CacheMissing, match="scores for 3 of 4 responses") as error:
        with_scores([labelled, alone], store)
    assert error.value.hint == f"mrpo score --reward-model rm --cache {cache.path}"
    store.append(rows[3:])
    scored, left_out = with_scores([labelled, alone], store)
    assert [[(r.content, r.score, r.chosen) for r in each.responses] for each in scored] == [
        [("a", 0.5, None), ("c", -1.0, None)]
    ]
    assert left_out == {"no score: overlong": 2}


def test_a_held_out_scorer_beside(tmp_path):
    """By hand: of the pairs a>b, a>c, b>c it orders (3, 1, 1) as yes, yes, tied."""
    cache = Cache(tmp_path / "c")
    store = cache.score_store("other", Identity({"scorer": "made up"}))
    own = Group(user_prompt("q"), (Response("a", 3.0), Response("b", 2.0), Response("c", 1.0)))
    store.append([ScoreRow(key, "p", score) for key, score in
                  zip(own.response_ids, (3.0, 1.0, 1.0), strict=True)])  # fmt: skip
    found = beside([own], store)
    assert (found.agreement, found.pairs) == (1.0, 2)
    assert found.better == pytest.approx((3 + 3 + 1) / 3)
    assert found.worse == pytest.approx((1 + 1 + 1) / 3)
    worst = Group(own.prompt, tuple(Response(r.content, -r.score) for r in own.responses))
    assert beside([worst], store).agreement == 0.0


def test_names_and_words_of_scorers(here, rules, tiny_reward):
    project = parse(Project, {"scorers": {
        "tiny": str(tiny_reward), "vowels": {"rule": f"{rules}:vowels", "full_marks": 5},
    }}, "mrpo.yaml")  # fmt: skip
    assert project.scorers["tiny"] == Reference(model=str(tiny_reward))
    assert project.scorers["vowels"] == ScoringRule(rule=f"{rules}:vowels", full_marks=5)
    rule = scorer_of("vowels", project.scorers["vowels"])
    assert (rule.store_name, rule.name, rule.full_marks) == ("vowels", f"{rules}:vowels", 5)
    assert load_rule("mrpo_tools.demo.tasks:score").store_name == "tasks.score"
    with pytest.raises(UsageError, match=r"scorers\.x.*lr: unknown key"):
        parse(Project, {"scorers": {"x": {"rule": "a:b", "lr": 1}}}, "mrpo.yaml")
    assert "mean" in SCORES_OF_DATA
    with pytest.raises(UsageError, match="data may have scores of this name"):
        scorer_of("mean", project.scorers["vowels"])


def test_a_changed_scorer_is_not_taken_for_the_old_one(here, rules):
    cache = Cache("cache")
    words = {"v": ScoringRule(rule=f"{rules}:vowels")}
    first = ensure_scores(scorer_of("v", words["v"]), DATA, cache).store
    assert str(current_scores(cache, "v", words)) == str(first)
    Path(f"{rules}.py").write_text(RULES.replace("aeiou", "aeiouy"))
    with pytest.raises(CacheStale, match="has changed since") as error:
        current_scores(cache, "v", words)
    assert "mrpo score --rule v" in error.value.hint
    second = ensure_scores(scorer_of("v", words["v"]), DATA, cache).store
    assert str(current_scores(cache, "v", words)) == str(second) != str(first)
    assert str(current_scores(cache, f"v@{first.short[:5]}", words)) == str(first)
    with pytest.raises(CacheStale, match="2 identities"):
        current_scores(cache, "v", {})
    with pytest.raises(CacheMissing, match="cached: v@"):
        current_scores(cache, "w", words)


def test_code_that_only_a_cache_names_does_not_run(here, rules, tiny_reward):
    """A cache may come from elsewhere; a reward model without code of its own is only read."""
    cache = Cache("cache")
    ensure_scores(load_rule(f"{rules}:vowels"), DATA, cache)
    with pytest.raises(UsageError, match="is code, which is run only where"):
        scorer_named(f"{rules}.vowels", {}, cache)
    words = {"tiny": Reference(model=str(tiny_reward), dtype="float32")}
    store = ensure_scores(scorer_of("tiny", words["tiny"]), DATA[:2], cache).store
    assert scorer_named(str(store), {}, cache).stored_identity == store.identity
    with pytest.raises(UsageError, match="no longer"):
        scorer_named(f"tiny@{'0' * 12}", words, cache)
    with pytest.raises(UsageError, match="no scorer is named 'tinny'"):
        scorer_named("tinny", words, cache)


@pytest.fixture
def project(here, rules, references, some_groups, cached) -> Path:
    """A project of two references, some of whose responses have numbers, and a data file."""
    write_groups(here / "data.jsonl", [g.with_split(("train", "test")[n % 2])
                                       for n, g in enumerate(some_groups)])  # fmt: skip
    shutil.copytree(cached.path, here / "cache")
    words = {"dataset": str(here / "data.jsonl"), "scorers": {
        "vowels": {"rule": f"{rules}:vowels"}, "length": {"rule": f"{rules}:length"},
    }, "references": {name: references[name].model_dump(exclude_none=True)
                      for name in ("llama", "mistral")}}  # fmt: skip
    Path("mrpo.yaml").write_text(yaml.safe_dump(words, sort_keys=False))
    return here


def test_score_and_what_it_decides(project, mrpo, some_groups, rules):
    """`mrpo score` of both scorers; `--score` in data show, rank, sql, train and evaluate."""
    dry = json.loads(mrpo("score --dry-run --json").out)
    count = sum(len(each.responses) for each in some_groups)
    assert [(row["scorer"], row["missing"]) for row in dry] == [
        ("vowels", count), ("length", count)
    ]  # fmt: skip
    train_alone = [r for g in some_groups[::2] for r in g.responses]
    [row] = json.loads(mrpo("score --rule vowels --split train --json").out)
    assert row["scored"] == len(train_alone)
    error = mrpo("rank --score vowels --split all", 3).err
    assert f"scorer 'vowels' has scores for {len(train_alone)} of {count} responses" in error
    assert f"mrpo score --rule {rules}:vowels --name vowels" in error
    scored = json.loads(mrpo("score --json").out)
    assert [(row["reused"], row["scored"]) for row in scored] == [
        (len(train_alone), count - len(train_alone)), (0, count)
    ]  # fmt: skip

    shown = mrpo("data show --score vowels --json")
    assert "those by vowels@" in shown.err
    first = json.loads(shown.out)["first"][0]["responses"]
    assert [each["score"] for each in first] == [vowels(each["content"]) for each in first]

    rows = json.loads(mrpo('sql --score length --format json "SELECT content, score, chosen '
                           'FROM responses"').out)  # fmt: skip
    assert {(row["score"] == len(row["content"]), row["chosen"]) for row in rows} == {(True, None)}
    query = "SELECT avg(accuracy) AS a FROM margins('llama')"
    by = {name: json.loads(mrpo(f'sql --score {name} --format json "{query}"').out)[0]["a"]
          for name in ("vowels", "length")}  # fmt: skip
    store = Cache("cache").find_scores("length")
    ours, _ = with_scores(some_groups, store)
    assert by["length"] == pytest.approx(mean_accuracy(ours), abs=1e-9)
    assert by["length"] != by["vowels"]

    ranked = json.loads(mrpo("rank --score length --split all --refs llama --json").out)
    assert ranked["longer"]["value"] == 1.0  # the longer answer is always the better one


def mean_accuracy(groups: list[Group]) -> float:
    """Mean over groups of llama's share of pairs ranked right, by a plain loop."""
    table = Cache("cache").find("llama").table()
    logps = dict(zip(table["response_id"].to_pylist(), table["logp"].to_pylist(), strict=True))
    shares = []
    for each in groups:
        rows = list(zip(each.response_ids, each.responses, strict=True))
        marks = [logps[a] > logps[b] for a, x in rows for b, y in rows if x.score > y.score]
        if marks:
            shares.append(sum(marks) / len(marks))
    return sum(shares) / len(shares)


def test_training_by_a_scorer(project, mrpo, some_groups, references):
    """The run is that of data with these scores in it; its record names the scorer, and it goes on
    with no other."""
    mrpo("score")
    line = ("train --loss dpo --refs llama --max-steps 2 --learning-rate 1e-2 "
            "--pairing best_worst")  # fmt: skip
    printed = mrpo(f"{line} --score vowels --held-out-score length --output runs/by --json")
    assert "those by vowels@" in printed.err
    run = load_run(Path("runs/by"))
    cache = Cache("cache")
    assert run.record.score == run.recipe.score == str(cache.find_scores("vowels"))
    metrics = json.loads(printed.out)
    held = metrics["held_out_score"]
    trained = [each.with_split("train") for each in some_groups[::2]]
    ours, _ = with_scores(trained, cache.find_scores("vowels"))
    pairs = [(a, b) for each in ours for a in each.responses for b in each.responses
             if a.score > b.score]  # fmt: skip
    told = [len(a.content) > len(b.content) for a, b in pairs if len(a.content) != len(b.content)]
    assert held["agreement"] == pytest.approx(sum(told) / len(told))
    assert held["better"] == pytest.approx(sum(len(a.content) for a, _ in pairs) / len(pairs))

    write_groups(Path("scored.jsonl"), ours)
    mrpo(f"{line} --dataset scored.jsonl --output runs/data")
    logs = [json.loads(Path(f"runs/{name}/trainer_state.json").read_text())["log_history"]
            for name in ("by", "data")]  # fmt: skip
    assert [entry.get("loss") for entry in logs[0]] == [entry.get("loss") for entry in logs[1]]
    plain = load_run(Path("runs/data")).record.as_json()
    assert "score" not in plain

    evaluated = json.loads(mrpo("evaluate runs/by --json").out)
    assert evaluated["score"] == run.record.score
    mrpo("evaluate runs/by --score length")
    assert {path.name for path in Path("runs/by/evaluation").glob("*.json")} == {
        "test.json", "test-by-length.json"
    }  # fmt: skip


def test_a_run_goes_on_with_its_own_scores_alone(project, mrpo, some_groups, references):
    mrpo("score")
    cache = Cache("cache")
    from trained import cut_short, recipe

    words = recipe(refs=["llama"], loss="dpo", score="vowels", max_steps=2, save_steps=1)
    data = [each.with_split("train") for each in some_groups]
    train(words, data, cache, references, Path("run"))
    assert prepare(words, data, cache, references).score.name == "vowels"
    cut_short(Path("run"), "metrics.json", "checkpoint-2")
    [store] = cache.scorers()[1:]
    other = {**store.identity.fields, "source": "0" * 64}
    rows = [ScoreRow(**values) for values in store.table().to_pylist()]
    cache.score_store("vowels", Identity(other)).append(rows)
    shutil.rmtree(store.directory)
    with pytest.raises(UsageError, match="began with other score than there are now"):
        train(words, data, cache, references, Path("run"), resume=True)


def test_nothing_of_torch_is_needed(tmp_path, blocked):
    """Rules, data show and SQL by a scorer's scores."""
    write_groups(tmp_path / "data.jsonl", DATA)
    (tmp_path / "my_rules.py").write_text(RULES)
    for line in (
        ["score", "data.jsonl", "--rule", "my_rules:vowels"],
        ["data", "show", "data.jsonl", "--score", "my_rules.vowels"],
        ["cache", "status"],
    ):
        result = subprocess.run(
            [sys.executable, "-m", "mrpo_tools", *line], cwd=tmp_path, env=blocked,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
